"""The contract's quality of service as rclpy's."""

from __future__ import annotations

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
