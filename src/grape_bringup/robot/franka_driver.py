"""franka_ros2's driver as a source of state: mode and errors, recovery, collision thresholds.

Thin: what the messages mean is in franka_modes.py, the order of a recovery in
franka_recovery.py. Nothing here moves the arm, and nothing resumes by itself.
"""

from __future__ import annotations

import time

from rclpy.node import Node
from rclpy.serialization import deserialize_message

from grape_bringup.robot.arm import ArmMode, ArmState
from grape_bringup.robot.arm_config import FrankaRos2
from grape_bringup.robot.arm_state_topics import PoseTopicState, qos_of
from grape_bringup.robot.call_sequence import CallSequence, Steps
from grape_bringup.robot.franka_calls import NEEDED_FOR, DriverCalls
from grape_bringup.robot.franka_modes import FrankaStatus, robot_mode_name
from grape_bringup.robot.franka_recovery import recovery, set_collision_behavior
from grape_bringup.robot.ros_interface import load_interface

TICK_S = 0.05
RESTART_S = 2.0  # after such a silence it may be another driver, with thresholds of its own
UNSET = (
    'collision_behavior is not set: the driver takes it only while the robot is idle, and this '
    "one is in mode '{mode}'. Call guard/recover, which pauses the controller for it"
)


class FrankaDriver:
    """Mode, errors and recovery of a robot under franka_ros2."""

    def __init__(
        self, node: Node, config: FrankaRos2, pose: PoseTopicState, timeout_s: float
    ) -> None:
        """Begin to listen.

        Raises:
            MissingInterfaceError: franka_msgs or controller_manager_msgs is not installed.

        """
        self._node, self._config, self._pose = node, config, pose
        self._status = FrankaStatus(config.robot_state.name, timeout_s)
        self._calls = DriverCalls(node, config, self._status)
        self._state_type = load_interface('franka_msgs/msg/FrankaRobotState', NEEDED_FOR)
        self._sequence: CallSequence | None = None
        self._failed = ''  # what the last sequence ended with
        self._is_collision_set = config.collision_behavior is None
        self._is_collision_tried = False
        self._wants_recovery = False
        self._decoded_s = 0.0
        self._skipped: tuple[bytes, float] | None = None
        self._subscription = node.create_subscription(
            self._state_type,
            config.robot_state.name,
            self._hear,
            qos_of(config.robot_state),
            raw=True,
        )
        self._timer = node.create_timer(TICK_S, self._tick)

    def state(self) -> ArmState | None:
        """Return pose, mode and errors together."""
        pose = self._pose.state()
        if pose is None or not self._status.robot_mode:
            return None
        mode, errors = self._status.read(time.monotonic())
        if pose.mode is ArmMode.LOST and mode is ArmMode.READY:
            mode = ArmMode.LOST
        errors += pose.errors
        if self._failed:
            errors += (self._failed,)
        elif mode is ArmMode.READY and not self._is_collision_set:
            errors += (UNSET.format(mode=self._status.robot_mode),)
        if mode is ArmMode.READY and (self._failed or not self._is_collision_set):
            # The robot itself may be well again after half of a recovery.
            mode = ArmMode.REFLEX
        if self._sequence is not None or self._wants_recovery:
            mode = ArmMode.RECOVERING
        return ArmState(pose.pose, mode, pose.stamp_s, errors)

    def recover(self) -> None:
        """Begin the recovery, unless one is running; any thread may ask."""
        self._wants_recovery = True

    def close(self) -> None:
        """Listen no more; a recovery in progress is left to the driver."""
        self._node.destroy_timer(self._timer)
        if self._sequence is not None:
            self._sequence.abandon()
        self._node.destroy_subscription(self._subscription)
        self._calls.close()
        self._pose.close()

    # On the executor's thread

    def _hear(self, data: bytes) -> None:
        now_s = time.monotonic()
        if now_s - self._decoded_s < 1.0 / self._config.decode_rate_hz:
            self._skipped = data, now_s
        else:
            self._decode(data, now_s)

    def _decode(self, data: bytes, now_s: float) -> None:
        self._skipped, self._decoded_s = None, time.monotonic()
        message = deserialize_message(data, self._state_type)
        current = message.current_errors
        errors = tuple(
            name for name in current.get_fields_and_field_types() if getattr(current, name)
        )
        silent_s = self._status.hear(robot_mode_name(message.robot_mode), errors, now_s)
        if silent_s > RESTART_S and self._config.collision_behavior is not None:
            self._is_collision_set = self._is_collision_tried = False

    def _tick(self) -> None:
        if self._skipped is not None:
            # It may be the last before a silence, and tell of the reflex that is its reason.
            self._decode(*self._skipped)
        if self._sequence is None:
            self._begin()
        if self._sequence is None:
            return
        self._sequence.tick(time.monotonic())
        if self._sequence.is_over:
            self._failed = self._sequence.error
            self._sequence = None
            log = self._node.get_logger()
            if self._failed:
                log.error(self._failed)
            else:
                log.info('franka_ros2: done; nothing moves before the guard is armed again')

    def _begin(self) -> None:
        mode, _ = self._status.read(time.monotonic())
        is_idle = mode is ArmMode.READY and self._status.robot_mode == 'idle'
        if self._wants_recovery:
            steps = recovery(self._calls, self._config, has_error=mode is not ArmMode.READY)
            title = 'recovery'
        elif is_idle and not self._is_collision_set and not self._is_collision_tried:
            self._is_collision_tried = True
            steps, title = set_collision_behavior(self._calls), 'collision behaviour'
        else:
            return
        self._sequence = CallSequence(
            title, self._noting_thresholds(steps), self._config.step_timeout_s
        )
        self._wants_recovery = False

    def _noting_thresholds(self, steps: Steps) -> Steps:
        yield from steps
        self._is_collision_set = True
