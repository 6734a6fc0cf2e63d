"""An arm behind a controller that follows a PoseStamped in the base frame.

crisp_controllers' target_pose: ignores frame_id, does not check for NaN, drops all messages while
there is a second publisher, holds the last target for ever. FZI's target_frame: drops a frame that
is not robot_base_link, holds for ever. MoveIt Servo's pose_target_cmds: transforms the frame,
halts incoming_command_timeout after the last message.
"""

from __future__ import annotations

import threading

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped, Quaternion
from rclpy.node import Node

from grape_bringup.robot.arm import ArmError, ArmState, ArmTarget, Pose
from grape_bringup.robot.arm_command import HoldPoint, check_ready, checked
from grape_bringup.robot.arm_config import Topic
from grape_bringup.robot.arm_state_topics import ArmStateSource
from grape_bringup.robot.controller_topic import ControllerTopic
from grape_bringup.robot.ros_calls import on_executor
from grape_bringup.robot.servo_gate import ServoGate


def pose_message(pose: Pose, frame_id: str, stamp: Time) -> PoseStamped:
    """Return a pose as a message: position in m, quaternion x, y, z, w."""
    message = PoseStamped()
    message.header.frame_id = frame_id
    message.header.stamp = stamp
    message.pose.position = Point(**dict(zip('xyz', pose.position_m.tolist(), strict=True)))
    message.pose.orientation = Quaternion(
        **dict(zip('xyzw', pose.quaternion_xyzw.tolist(), strict=True))
    )
    return message


class PoseTopicOutput:
    """ArmOutput over one pose topic."""

    def __init__(
        self,
        node: Node,
        topic: Topic,
        base_frame: str,
        source: ArmStateSource,
        gate: ServoGate | None = None,
    ) -> None:
        """Open the topic.

        Args:
            node: its executor must spin.
            topic: of the controller.
            base_frame: frame_id of every target; the state comes in the same.
            source: of the arm's state; closed with this output.
            gate: MoveIt Servo has to be told first what kind of command comes.

        """
        self._node, self._base_frame = node, base_frame
        self._source, self._gate = source, gate
        self._topic = ControllerTopic(node, PoseStamped, topic)
        self._hold = HoldPoint()
        self._lock = threading.Lock()  # nothing goes out after close
        self._is_closed = False

    def state(self) -> ArmState | None:
        """Return what the arm last said."""
        state = self._source.state()
        return state if self._gate is None else self._gate.read(state)

    def send(self, target: ArmTarget) -> None:
        """Publish the target.

        Raises:
            ArmError: it is not finite, the arm takes none, or it would not be ours alone.

        """
        if self._is_closed:
            raise ArmError('the output is closed')
        target = checked(target)
        check_ready(self.state())
        self._topic.check()
        with self._lock:
            if not self._is_closed:
                self._publish(target.pose)
                self._hold.sent(target.pose)

    def hold(self) -> None:
        """Publish where it is to stay; nothing if no target was sent."""
        with self._lock:
            if not self._is_closed:
                self._publish_hold()

    def recover(self) -> None:
        """Have the driver clear its errors."""
        self._source.recover()
        if self._gate is not None:
            self._gate.start()

    def close(self) -> None:
        """Hold, then close the topic: the controller keeps that pose."""
        with self._lock:
            if self._is_closed:
                return
            self._publish_hold()
            self._is_closed = True
        self._topic.flush()
        on_executor(self._node, self._release)

    def _release(self) -> None:
        self._topic.close()
        if self._gate is not None:
            self._gate.close()
        self._source.close()

    def _publish_hold(self) -> None:
        pose = self._hold.hold(self.state())
        if pose is not None:
            self._publish(pose)

    def _publish(self, pose: Pose) -> None:
        stamp = self._node.get_clock().now().to_msg()
        self._topic.publish(pose_message(pose, self._base_frame, stamp))
