"""The gripper that a configuration names."""

from __future__ import annotations

from rclpy.node import Node

from grape_bringup.robot.gripper import GripperOutput
from grape_bringup.robot.gripper_config import ActionGripper, ModbusGripper


def make_gripper_output(config: ActionGripper | ModbusGripper, node: Node) -> GripperOutput:
    """Return the output, which begins to connect at once.

    Args:
        config: from `load_gripper_config`.
        node: for the action's client and the log; its executor must spin.

    Raises:
        GripperError: a package that the configuration needs is not installed.

    """
    if isinstance(config, ActionGripper):
        from grape_bringup.robot.gripper_action import GripperAction

        return GripperAction(config, node)
    from grape_bringup.robot.gripper_modbus import GripperModbus

    return GripperModbus(config, node.get_logger())
