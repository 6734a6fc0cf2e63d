"""The arm's measured pose from a topic: all that is known of an arm without franka_ros2."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from grape_bringup.robot.arm import ArmMode, ArmState, Pose
from grape_bringup.robot.arm_config import Topic


class ArmStateSource(Protocol):
    """Where an output over topics has the arm's state from."""

    def state(self) -> ArmState | None:
        """Return the latest state, as ArmOutput does."""
        ...

    def recover(self) -> None:
        """Begin to clear a reflex, as ArmOutput does."""
        ...

    def close(self) -> None:
        """Listen no more."""
        ...


def qos_of(topic: Topic) -> QoSProfile:
    """Return the profile of a configured topic."""
    return QoSProfile(depth=topic.depth, reliability=ReliabilityPolicy[topic.reliability.upper()])


class PoseTopicState:
    """Listens to a PoseStamped in the robot's base frame."""

    def __init__(self, node: Node, topic: Topic, base_frame: str, timeout_s: float) -> None:
        self._node = node
        self._base_frame = base_frame
        self._timeout_s = timeout_s
        self._heard: tuple[Pose, float] | None = None
        self._wrong = ''
        self._subscription = node.create_subscription(
            PoseStamped, topic.name, self._hear, qos_of(topic)
        )
        self._topic = self._subscription.topic_name  # asked for after close too

    def state(self) -> ArmState | None:
        """Return the pose; LOST once it is too old, or came in another frame."""
        heard = self._heard
        if heard is None:
            return None
        pose, stamp_s = heard
        age_s = time.monotonic() - stamp_s
        if self._wrong:
            return ArmState(pose, ArmMode.LOST, stamp_s, (self._wrong,))
        if age_s > self._timeout_s:
            silence = f'nothing heard on {self._topic} for {age_s:.1f} s'
            return ArmState(pose, ArmMode.LOST, stamp_s, (silence,))
        return ArmState(pose, ArmMode.READY, stamp_s)

    def recover(self) -> None:
        """Say that there is no way to do it from here."""
        self._node.get_logger().warning(
            'only the pose of this arm is known (no franka_ros2 in its configuration): clear its '
            'errors at its own driver'
        )

    def close(self) -> None:
        """Listen no more."""
        self._node.destroy_subscription(self._subscription)

    def _hear(self, message: PoseStamped) -> None:
        p, q = message.pose.position, message.pose.orientation
        pose = Pose(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
        is_number = np.isfinite(pose.position_m).all() and np.isfinite(pose.quaternion_xyzw).all()
        wrong = ''
        if message.header.frame_id != self._base_frame:
            wrong = (
                f"{self._topic} is in frame '{message.header.frame_id}', but "
                f"base_frame is '{self._base_frame}': make them the same"
            )
        elif not is_number:
            wrong = f'{self._topic} holds NaN or infinity'
        if wrong and wrong != self._wrong:
            self._node.get_logger().error(wrong)
        self._wrong = wrong
        self._heard = (pose, time.monotonic())
