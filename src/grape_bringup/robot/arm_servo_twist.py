"""An arm behind MoveIt Servo's delta_twist_cmds.

Servo integrates a twist from where the arm is, so a stream of twists alone drifts from the
target's path: the distance to it is fed back. It halts incoming_command_timeout (0.1 s) after the
last twist, which makes silence the safe command here.
"""

from __future__ import annotations

import threading

import numpy as np
from geometry_msgs.msg import TwistStamped, Vector3
from rclpy.node import Node
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmError, ArmState, ArmTarget, Pose
from grape_bringup.robot.arm_command import check_ready, checked
from grape_bringup.robot.arm_config import ServoConfig
from grape_bringup.robot.arm_state_topics import ArmStateSource
from grape_bringup.robot.controller_topic import ControllerTopic
from grape_bringup.robot.ros_calls import on_executor
from grape_bringup.robot.servo_gate import ServoGate


def twist_towards(
    target: ArmTarget, measured: Pose, config: ServoConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the twist that follows a target.

    Args:
        target: pose and velocity.
        measured: where the arm is.
        config: gain, limits and Servo's units.

    Returns:
        (3,) linear and (3,) angular, base frame, in Servo's units: m/s and rad/s, or fractions of
        its scales. As fractions no component exceeds 1: Servo would drop the whole command.

    """
    gain = config.position_gain_per_s
    behind_m = target.pose.position_m - measured.position_m
    behind_rad = (
        Rotation.from_quat(target.pose.quaternion_xyzw)
        * Rotation.from_quat(measured.quaternion_xyzw).inv()
    ).as_rotvec()
    parts = []
    for velocity, behind, limit, scale in (
        (target.linear_m_s, behind_m, config.max_linear_m_s, config.scale_linear_m_s),
        (
            target.angular_rad_s,
            behind_rad,
            config.max_angular_rad_s,
            config.scale_rotational_rad_s,
        ),
    ):
        is_unitless = config.command_in_type == 'unitless'
        wanted = velocity + gain * behind
        norm = float(np.linalg.norm(wanted))
        most = min(limit, scale) if is_unitless else limit
        if norm > most:
            wanted = wanted * (most / norm)
        parts.append(wanted / scale if is_unitless else wanted)
    return parts[0], parts[1]


class ServoTwistOutput:
    """ArmOutput over Servo's twist topic."""

    def __init__(
        self, node: Node, config: ServoConfig, source: ArmStateSource, gate: ServoGate
    ) -> None:
        """Open the topic; source and gate are closed with this output."""
        self._node, self._config = node, config
        self._source, self._gate = source, gate
        self._topic = ControllerTopic(node, TwistStamped, config.twist)
        self._lock = threading.Lock()  # nothing goes out after close
        self._is_closed = False

    def state(self) -> ArmState | None:
        """Return what the arm last said."""
        return self._gate.read(self._source.state())

    def send(self, target: ArmTarget) -> None:
        """Publish the twist towards the target.

        Raises:
            ArmError: it is not finite, the arm takes none, or it would not be ours alone.

        """
        if self._is_closed:
            raise ArmError('the output is closed')
        target = checked(target)
        state = self.state()
        check_ready(state)
        self._topic.check()
        twist = twist_towards(target, state.pose, self._config)
        with self._lock:
            if not self._is_closed:
                self._publish(*twist)

    def hold(self) -> None:
        """Publish no motion."""
        with self._lock:
            if not self._is_closed:
                self._publish(np.zeros(3), np.zeros(3))

    def recover(self) -> None:
        """Have the driver clear its errors, and Servo listen again."""
        self._source.recover()
        self._gate.start()

    def close(self) -> None:
        """Hold, then close the topic."""
        with self._lock:
            if self._is_closed:
                return
            self._publish(np.zeros(3), np.zeros(3))
            self._is_closed = True
        self._topic.flush()
        on_executor(self._node, self._release)

    def _release(self) -> None:
        self._topic.close()
        self._gate.close()
        self._source.close()

    def _publish(self, linear: np.ndarray, angular: np.ndarray) -> None:
        message = TwistStamped()
        message.header.frame_id = self._config.base_frame
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.twist.linear = Vector3(**dict(zip('xyz', linear.tolist(), strict=True)))
        message.twist.angular = Vector3(**dict(zip('xyz', angular.tolist(), strict=True)))
        self._topic.publish(message)
