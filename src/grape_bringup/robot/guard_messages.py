"""ROS messages <-> the guard's values."""

from __future__ import annotations

import math

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped, Quaternion, Vector3
from geometry_msgs.msg import Pose as RosPose
from grape.msg import GuardState, PolicyStep, TeleopCommand

from grape_bringup.robot.arm import Pose
from grape_bringup.robot.guard import Guard
from grape_bringup.robot.guard_inputs import Executed, Step, Teleop, Verdict
from grape_bringup.robot.guard_loop import Snapshot
from grape_episode.action import EndEffectorDelta

NOWHERE = Pose(np.full(3, np.nan), np.array([0.0, 0.0, 0.0, 1.0]))


class FrameError(ValueError):
    """A command in a frame that the guard does not know."""


def stamp_ns(stamp: Time) -> int:
    """Return a stamp."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def time_of(ns: int) -> Time:
    """Return a message's stamp."""
    return Time(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def step_of(message: PolicyStep) -> Step:
    """Return what a policy asks; a verdict that is none counts as held."""
    known = {verdict.value for verdict in Verdict}
    return Step(
        stamp_ns=stamp_ns(message.header.stamp),
        frame_id=message.header.frame_id,
        episode_id=message.episode_id,
        step=message.step,
        delta=EndEffectorDelta(
            _array(message.delta_translation),
            _array(message.delta_rotation),
            message.gripper_opening,
        ),
        source=message.source or 'policy',
        verdict=Verdict(message.verdict) if message.verdict in known else Verdict.HELD,
        reason=message.verdict_reason,
    )


def teleop_of(message: TeleopCommand, arrived_s: float, base_frame: str) -> Teleop:
    """Return what a person asks.

    Raises:
        FrameError: it is not in the robot's base frame.

    """
    if message.header.frame_id not in ('', base_frame):
        raise FrameError(
            f"teleop/command is in frame '{message.header.frame_id}'; expected '{base_frame}'"
        )
    return Teleop(
        arrived_s,
        message.engaged,
        _array(message.linear),
        _array(message.angular),
        message.gripper_opening,
    )


def executed_step(done: Executed) -> PolicyStep:
    """Return the answer to a step; tokens stay with the step that was proposed."""
    message = PolicyStep(
        episode_id=done.step.episode_id,
        step=done.step.step,
        delta_translation=_vector(done.delta.translation_m),
        delta_rotation=_vector(done.delta.rotation_rotvec_rad),
        gripper_opening=float(done.delta.gripper_opening),
        temperature=math.nan,
        source=done.source,
        latency_ms=done.latency_s * 1e3,
        verdict=int(done.verdict),
        verdict_reason=done.reason,
    )
    message.header.stamp = time_of(done.step.stamp_ns)
    message.header.frame_id = done.step.frame_id
    return message


def guard_state(guard: Guard, seen: Snapshot, base_frame: str) -> GuardState:
    """Return the guard's state; poses that are not known are NaN."""
    measured = NOWHERE if seen.arm is None else seen.arm.pose
    target = NOWHERE if seen.target is None else seen.target.pose
    message = GuardState(
        mode=int(guard.mode),
        reason=guard.reason,
        target=_pose(target),
        measured=_pose(measured),
        gripper_opening=float(guard.gripper),
        travel_m=guard.travel_m,
        source=guard.source,
    )
    message.header.stamp = time_of(seen.now.clock_ns)
    message.header.frame_id = base_frame
    return message


def pose_stamped(pose: Pose, clock_ns: int, frame_id: str) -> PoseStamped:
    """Return a pose as a message."""
    message = PoseStamped(pose=_pose(pose))
    message.header.stamp, message.header.frame_id = time_of(clock_ns), frame_id
    return message


def _pose(pose: Pose) -> RosPose:
    x, y, z = (float(value) for value in pose.position_m)
    qx, qy, qz, qw = (float(value) for value in pose.quaternion_xyzw)
    return RosPose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def _array(vector: Vector3) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = (float(value) for value in values)
    return Vector3(x=x, y=y, z=z)
