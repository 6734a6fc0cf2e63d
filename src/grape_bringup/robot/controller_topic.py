"""The publisher towards an arm's controller: there is one, and somebody listens."""

from __future__ import annotations

import time
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node

from grape_bringup.robot.arm import ArmError
from grape_bringup.robot.arm_config import Topic
from grape_bringup.robot.arm_state_topics import qos_of

CHECK_S = 0.25  # looking at the graph takes a fraction of a millisecond: not at every command
FLUSH_S = 0.04  # a controller on this machine takes 1 ms


class ControllerTopic:
    """A command topic that is ours alone."""

    def __init__(self, node: Node, kind: type, topic: Topic) -> None:
        self._node = node
        self._publisher = node.create_publisher(kind, topic.name, qos_of(topic))
        self.name = self._publisher.topic_name
        self._checked_s = float('-inf')
        self._others: tuple[str, ...] = ()

    @property
    def has_listener(self) -> bool:
        """Whether the controller is there."""
        return self._publisher.get_subscription_count() > 0

    def check(self) -> None:
        """Check that a command would reach the controller, and only ours.

        crisp_controllers drops every message while the topic has a second publisher; the others
        would follow both in turns.

        Raises:
            ArmError: names the other publishers, or says that nobody listens.

        """
        now_s = time.monotonic()
        if now_s - self._checked_s > CHECK_S:
            self._others = self._other_publishers()
            self._checked_s = now_s
        if self._others:
            raise ArmError(
                f'{self.name} has other publishers: {", ".join(self._others)}. Only the guard may '
                'command the arm: stop them'
            )
        if not self.has_listener:
            raise ArmError(f'nobody listens to {self.name}: is the controller loaded and active?')

    def publish(self, message: Any) -> None:
        """Send."""
        self._publisher.publish(message)

    def flush(self) -> None:
        """Wait a moment until the controller has what was sent, before the topic is closed."""
        self._publisher.wait_for_all_acked(Duration(seconds=FLUSH_S))

    def close(self) -> None:
        """Send no more."""
        self._node.destroy_publisher(self._publisher)

    def _other_publishers(self) -> tuple[str, ...]:
        found = self._node.get_publishers_info_by_topic(self.name)
        if len(found) < 2:
            return ()
        own = self._node.get_fully_qualified_name()
        names = [f'{info.node_namespace.rstrip("/")}/{info.node_name}' for info in found]
        if own in names:
            names.remove(own)  # once: a second one of that name is another's
        return tuple(names)
