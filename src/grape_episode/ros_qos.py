"""The contract's quality of service as rclpy's, and adapted to the publishers that are there."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from grape_episode.contract import TopicSpec


def qos_profile(topic: TopicSpec) -> QoSProfile:
    """Return the profile that publishers and subscribers of a topic use."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=topic.depth,
        reliability=ReliabilityPolicy[topic.reliability.upper()],
        durability=DurabilityPolicy[topic.durability.upper()],
    )


def adapted(topic: TopicSpec, offered: Sequence[QoSProfile]) -> TopicSpec:
    """Return the topic with the best quality of service that every publisher of it can serve.

    A subscriber that asks for more than a publisher offers gets nothing from it, without a word:
    of drivers that became best effort (franka_ros2's convenience topics in May 2026) a reliable
    recorder would write empty topics. What the contract does not ask for is never added.
    """
    changes = {}
    if any(qos.reliability == ReliabilityPolicy.BEST_EFFORT for qos in offered):
        changes['reliability'] = 'best_effort'
    if any(qos.durability == DurabilityPolicy.VOLATILE for qos in offered):
        changes['durability'] = 'volatile'
    return topic.model_copy(update=changes)
