"""The arm that a configuration names."""

from __future__ import annotations

from rclpy.node import Node

from grape_bringup.robot.arm import ArmOutput
from grape_bringup.robot.arm_config import (
    ArmConfig,
    FciConfig,
    PoseTopicConfig,
    ServoConfig,
    check_command_rate,
)
from grape_bringup.robot.arm_state_topics import ArmStateSource, PoseTopicState


def make_arm_output(config: ArmConfig, node: Node, rate_hz: float | None = None) -> ArmOutput:
    """Return the output, which begins to connect at once.

    Args:
        config: from `load_arm_config`.
        node: for topics, services and the log. Its executor spins later, or calls this itself: an
            action client that is made beside a spinning executor ends that executor.
        rate_hz: how often targets will be sent, to check that the controller does not halt in
            between; None: not checked.

    Raises:
        RobotConfigError: the rate is too low for the controller.
        MissingInterfaceError: a message package is not installed; names the apt package.
        ArmError: franka-rs is not installed.

    """
    if rate_hz is not None:
        check_command_rate(config, rate_hz)
    if isinstance(config, FciConfig):
        from grape_bringup.robot.arm_fci import FciOutput

        return FciOutput(config, node.get_logger())
    return _over_topics(config, node)


def _over_topics(config: PoseTopicConfig | ServoConfig, node: Node) -> ArmOutput:
    from grape_bringup.robot.arm_pose_topic import PoseTopicOutput

    source = _source(config, node)
    if isinstance(config, PoseTopicConfig):
        return PoseTopicOutput(node, config.target, config.base_frame, source)
    from grape_bringup.robot.servo_gate import ServoGate

    gate = ServoGate(node, config)
    if config.kind == 'servo_pose':
        return PoseTopicOutput(node, config.pose_target, config.base_frame, source, gate)
    from grape_bringup.robot.arm_servo_twist import ServoTwistOutput

    return ServoTwistOutput(node, config, source, gate)


def _source(config: PoseTopicConfig | ServoConfig, node: Node) -> ArmStateSource:
    pose = PoseTopicState(node, config.pose, config.base_frame, config.state_timeout_s)
    if config.franka_ros2 is None:
        return pose
    from grape_bringup.robot.franka_driver import FrankaDriver

    return FrankaDriver(node, config.franka_ros2, pose, config.state_timeout_s)
