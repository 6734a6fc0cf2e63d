"""The arm and the gripper that the guard's parameters name; 'fake' ones live here."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from std_msgs.msg import Float32, String

from grape_bringup.robot.arm import ArmOutput, Pose
from grape_bringup.robot.dry_run import DryRunArm
from grape_bringup.robot.fake_arm import FakeArm, FakeGripper
from grape_bringup.robot.gripper import GripperOutput
from grape_bringup.robot.guard_messages import pose_stamped

FAKE, NONE = 'fake', 'none'
ARMS = ('fake', 'crisp', 'servo_pose', 'servo_twist', 'fzi', 'fci')
GRIPPERS = ('fake', 'action', 'modbus', 'none')


@runtime_checkable
class JointSource(Protocol):
    """An arm output that knows its joints; others leave them to their driver's own topic."""

    def joints(self) -> tuple[tuple[str, ...], np.ndarray] | None:
        """Return names and positions, rad; None before the first state."""
        ...


def make_arm(
    kind: str, config: str, dry_run: bool, node: Node, base_frame: str, rate_hz: float
) -> ArmOutput:
    """Return the output, which begins to connect.

    Args:
        kind: one of ARMS.
        config: YAML of the arm; empty: config/robot's own.
        dry_run: whether nothing may be sent.
        node: for topics and services.
        base_frame: of the fake arm's topics.
        rate_hz: how often targets are sent.

    Raises:
        ValueError: unknown kind, or a configuration that cannot be used.
        RuntimeError, ImportError: something that it needs is not installed.

    """
    if kind not in ARMS:
        raise ValueError(f"parameter 'arm' is '{kind}'; expected one of: {', '.join(ARMS)}")
    if kind == FAKE:
        arm: ArmOutput = _fake_arm(node, base_frame)
    else:
        from grape_bringup.robot.arm_config import load_arm_config
        from grape_bringup.robot.arm_outputs import make_arm_output

        arm = make_arm_output(load_arm_config(kind, config), node, rate_hz)
    return DryRunArm(arm) if dry_run else arm


def make_gripper(kind: str, config: str, dry_run: bool, node: Node) -> GripperOutput | None:
    """Return the output; None without a gripper. A dry run has a fake one.

    (A real one may let its fingers travel when it is activated.)

    Raises:
        ValueError, RuntimeError, ImportError: as `make_arm`.

    """
    if kind not in GRIPPERS:
        raise ValueError(
            f"parameter 'gripper' is '{kind}'; expected one of: {', '.join(GRIPPERS)}"
        )
    if kind == NONE:
        return None
    if kind == FAKE or dry_run:
        commands = node.create_publisher(Float32, 'fake_gripper/command', 10)
        return FakeGripper(lambda opening: commands.publish(Float32(data=opening)))
    from grape_bringup.robot.gripper_config import load_gripper_config
    from grape_bringup.robot.gripper_outputs import make_gripper_output

    return make_gripper_output(load_gripper_config(config or kind), node)


def _fake_arm(node: Node, base_frame: str) -> FakeArm:
    """Return a fake arm that shows on topics what it is told, and takes trouble from one.

    `fake_arm/target` has every target, `fake_arm/told` the rest with the number of targets so far;
    `fake_arm/trouble` takes a word: reflex, stop, guide, ready, silent, break, push.
    """
    targets = node.create_publisher(PoseStamped, 'fake_arm/target', 100)
    told = node.create_publisher(String, 'fake_arm/told', 100)
    sent = 0

    def say(what: str, pose: Pose | None) -> None:
        nonlocal sent
        if what == 'send':
            sent += 1
            now_ns = node.get_clock().now().nanoseconds
            targets.publish(pose_stamped(pose, now_ns, base_frame))
        else:
            told.publish(String(data=f'{what} after {sent} targets'))

    arm = FakeArm(say)

    def trouble(message: String) -> None:
        try:
            arm.trouble(message.data)
        except ValueError as error:
            node.get_logger().error(str(error))

    node.create_subscription(String, 'fake_arm/trouble', trouble, 10)
    return arm
