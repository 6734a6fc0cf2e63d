"""The recorder's subscriptions: compatible with whoever publishes, and counted.

DDS matches a subscriber only with publishers that offer at least what it asks for. So what a
topic's publishers offer is looked at twice a second, and where it changed, a new subscription
takes over; the old one stays until the new one is heard, and what comes twice is dropped by its
number (recorder_intake.py).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.subscription import Subscription

from grape_episode.contract import Contract, ContractError, TopicSpec
from grape_episode.recorder_intake import Arrival, TopicIntake
from grape_episode.ros_qos import adapted, qos_profile

HANDOVER_S = 2.0  # how long two subscriptions of a topic live side by side
# Who publishes these together with another gives data that fit nobody.
EXCLUSIVE = ('image', 'depth', 'joint_state', 'ee_pose', 'scene_state')


class RecorderTopics:
    """One subscription for each topic of a contract."""

    def __init__(
        self, node: Node, contract: Contract, take: Callable[[TopicSpec, bytes, int], None]
    ) -> None:
        """Subscribe to all of them.

        Args:
            node: the recorder.
            contract: names the topics.
            take: called with a topic as the contract has it, a message's CDR, and when it was
                sent (ns, wall clock).

        Raises:
            ContractError: a type's package is not installed.

        """
        self.chosen = {topic.name: topic for topic in contract.topics}
        self.intakes = {topic.name: TopicIntake() for topic in contract.topics}
        self.publishers = dict.fromkeys(self.chosen, 0)  # at the last look
        self._node = node
        self._take = take
        self._wanted = contract.topics
        self._kinds = {topic.name: _message_class(topic) for topic in contract.topics}
        self._subscriptions = {t.name: self._subscribe(t) for t in contract.topics}
        self._leaving: list[tuple[float, Subscription]] = []
        self._knows_publishers = False  # rclpy tells who sent a message

    def adapt(self) -> None:
        """Look at the publishers, and subscribe again where theirs is another quality."""
        now = time.monotonic()
        for due, old in self._leaving:
            if now >= due:
                self._node.destroy_subscription(old)
        self._leaving = [entry for entry in self._leaving if now < entry[0]]
        for topic in self._wanted:
            offered = [
                info.qos_profile for info in self._node.get_publishers_info_by_topic(topic.name)
            ]
            self.publishers[topic.name] = len(offered)
            if not offered:  # whoever comes back is judged then
                continue
            best = adapted(topic, offered)
            if best != self.chosen[topic.name]:
                self._resubscribe(best, len(offered))

    def begin(self) -> None:
        """Begin an episode: losses and publishers are counted from here."""
        for intake in self.intakes.values():
            intake.begin()

    def lost(self) -> dict[str, int]:
        """Return what the network lost since the episode began, topic -> messages."""
        return {name: intake.lost_since_begin() for name, intake in self.intakes.items()}

    def rivals(self) -> str:
        """Name the nodes that publish one topic together in this episode; '' where none do."""
        for topic in self._wanted:
            heard = self.intakes[topic.name].heard
            if topic.role in EXCLUSIVE and topic.per_step and len(heard) > 1:
                nodes = sorted(self._node_of(topic.name, publisher) for publisher in heard)
                return (
                    f'topic {topic.name} came from {len(heard)} publishers in one episode '
                    f'({", ".join(nodes)}); expected one. Stop the other, or remap it.'
                )
        return ''

    def _node_of(self, topic: str, publisher: bytes) -> str:
        for info in self._node.get_publishers_info_by_topic(topic):
            if bytes(info.endpoint_gid) == publisher:
                return f'{info.node_namespace.rstrip("/")}/{info.node_name}'
        return 'a node that is gone'

    def _resubscribe(self, best: TopicSpec, publishers: int) -> None:
        old = self.chosen[best.name]
        was = self._subscriptions[best.name]
        if self._knows_publishers:
            self._leaving.append((time.monotonic() + HANDOVER_S, was))
        else:  # what would come twice could not be told apart
            self._node.destroy_subscription(was)
        self.chosen[best.name] = best
        self._subscriptions[best.name] = self._subscribe(best)
        self._node.get_logger().warning(
            f'{best.name}: subscribed {best.reliability}, {best.durability} instead of '
            f'{old.reliability}, {old.durability}: that is what its {publishers} publishers offer'
        )

    def _subscribe(self, topic: TopicSpec) -> Subscription:
        intake = self.intakes[topic.name]
        wanted = next(spec for spec in self._wanted if spec.name == topic.name)

        def arrive(cdr: bytes, info: dict) -> None:
            gid = info.get('publisher_gid')
            self._knows_publishers |= gid is not None
            arrival = Arrival(
                bytes(gid['data']) if gid is not None else None,
                info['publication_sequence_number'],
                info['source_timestamp'],
                info['received_timestamp'],
            )
            if intake.take(arrival):
                self._take(wanted, cdr, arrival.sent_ns)

        events = None
        if topic.reliability == 'best_effort':
            events = SubscriptionEventCallbacks(
                message_lost=lambda told: intake.report_lost(told.total_count_change)
            )
        return self._node.create_subscription(
            self._kinds[topic.name],
            topic.name,
            arrive,
            qos_profile(topic),
            raw=True,
            event_callbacks=events,
        )


def _message_class(topic: TopicSpec) -> type:
    package, _, name = topic.type.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise ContractError(
            f'topic {topic.name} has the type {topic.type}, which is not installed ({error}); '
            f'try: apt-get install ros-$ROS_DISTRO-{package.replace("_", "-")}'
        ) from error
