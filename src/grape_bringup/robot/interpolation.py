"""From one target to the next without a jump: jerk-limited motion in six degrees of freedom.

Time-optimal trajectories under bounds of velocity, acceleration and jerk by Ruckig (Berscheid and
Kroeger, "Jerk-limited Real-time Trajectory Generation with Arbitrary Target States", RSS 2021),
which end at rest: when no new target comes, the arm stops at the last one by itself.

Rotations. A rotation vector is not a vector: it wraps at pi, and its derivative is the angular
velocity only where it is zero. So every plan counts rotations from where the target is then,

    R(t) = exp(r(t)) R_0,  r(0) = 0,  r(T) = log(R_goal R_0^-1),

which is at most pi whatever was turned before, and begins with r' = omega and r'' = alpha exactly.
Underway omega = J(r) r' with the left Jacobian J of SO(3) (Sola et al., "A micro Lie theory for
state estimation in robotics", arXiv 1812.01537, Eq. 145), whose singular values are at most 1: the
bound of r' is a bound of omega.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ruckig import (
    ControlInterface,
    InputParameter,
    Result,
    Ruckig,
    RuckigError,
    Synchronization,
    Trajectory,
)
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmTarget, Pose

AXES = 6
SMALL_RAD = 1e-4


class InterpolationError(RuntimeError):
    """No trajectory leads there; the motion that was planned before goes on."""


@dataclass(frozen=True)
class MotionLimits:
    """Bounds of the target's motion; of norms, so each axis gets 1/sqrt(3)."""

    speed_m_s: float
    acceleration_m_s2: float
    jerk_m_s3: float
    turn_rad_s: float
    turn_rad_s2: float
    turn_rad_s3: float

    @property
    def axis_speed_m_s(self) -> float:
        """Of one axis."""
        return self.speed_m_s / math.sqrt(3.0)

    @property
    def axis_turn_rad_s(self) -> float:
        """Of one axis."""
        return self.turn_rad_s / math.sqrt(3.0)


class Interpolator:
    """Where the target is now, and the plan that it follows."""

    def __init__(self, limits: MotionLimits, period_s: float, pose: Pose) -> None:
        """Begin at rest at `pose`; `advance` moves on by `period_s`."""
        self._planner = Ruckig(AXES)
        self._period_s = period_s
        self._bounds = {
            'max_velocity': _axes(limits.speed_m_s, limits.turn_rad_s),
            'max_acceleration': _axes(limits.acceleration_m_s2, limits.turn_rad_s2),
            'max_jerk': _axes(limits.jerk_m_s3, limits.turn_rad_s3),
        }
        self._position = np.array(pose.position_m, np.float64)
        self._rotation = Rotation.from_quat(pose.quaternion_xyzw)
        self._velocity = np.zeros(AXES)
        self._acceleration = np.zeros(AXES)
        self._plan: Trajectory | None = None
        self._plan_origin = self._rotation
        self._elapsed_s = 0.0

    @property
    def is_at_rest(self) -> bool:
        """Whether there is nothing left of the plan."""
        return self._plan is None

    def target(self) -> ArmTarget:
        """Return what the arm is to do now."""
        return ArmTarget(
            Pose(self._position.copy(), self._rotation.as_quat()),
            self._velocity[:3].copy(),
            self._velocity[3:].copy(),
        )

    def end(self) -> Pose:
        """Return where the plan ends."""
        if self._plan is None:
            return Pose(self._position.copy(), self._rotation.as_quat())
        position, _, _ = self._plan.at_time(self._plan.duration)
        turned = Rotation.from_rotvec(position[3:]) * self._plan_origin
        return Pose(np.array(position[:3]), turned.as_quat())

    def aim(self, goal: Pose, low_m: np.ndarray, high_m: np.ndarray) -> None:
        """Plan from the motion of this moment to rest at `goal`.

        Args:
            goal: inside of the box.
            low_m: (3,) lower corner of the box that the way there may not leave.
            high_m: (3,) upper corner.

        Raises:
            InterpolationError: there is no such trajectory.

        """
        turn = (Rotation.from_quat(goal.quaternion_xyzw) * self._rotation.inv()).as_rotvec()
        way = self._input()
        way.synchronization = Synchronization.Phase  # straight, where the motion of now allows it
        way.target_position = [*goal.position_m, *turn]
        plan = self._calculate(way)
        if not _stays_inside(plan, low_m, high_m):
            # Axes that wait for the slowest one may swing out further than they must; each on its
            # own brakes at once, before the goal that it was heading for.
            way.synchronization = Synchronization.No
            plan = self._calculate(way)
        self._follow(plan)

    def brake(self) -> None:
        """Plan to come to rest as soon as the bounds allow.

        Raises:
            InterpolationError: there is no such trajectory.

        """
        way = self._input()
        way.control_interface = ControlInterface.Velocity
        way.synchronization = Synchronization.No
        way.target_velocity = [0.0] * AXES
        self._follow(self._calculate(way))

    def advance(self) -> ArmTarget:
        """Move on by one period."""
        if self._plan is not None:
            self._elapsed_s += self._period_s
            self._read(min(self._elapsed_s, self._plan.duration))
            if self._elapsed_s >= self._plan.duration:
                self._plan = None
                self._velocity = np.zeros(AXES)
                self._acceleration = np.zeros(AXES)
        return self.target()

    def _input(self) -> InputParameter:
        way = InputParameter(AXES)
        for name, values in self._bounds.items():
            setattr(way, name, values)
        way.current_position = [*self._position, 0.0, 0.0, 0.0]
        way.current_velocity = list(self._velocity)
        way.current_acceleration = list(self._acceleration)
        return way

    def _calculate(self, way: InputParameter) -> Trajectory:
        plan = Trajectory(AXES)
        try:
            result = self._planner.calculate(way, plan)
        except RuckigError as error:
            raise InterpolationError(f'no trajectory to the target: {error}') from error
        if result not in (Result.Working, Result.Finished):
            raise InterpolationError(f'no trajectory to the target: {result.name}')
        return plan

    def _follow(self, plan: Trajectory) -> None:
        self._plan, self._plan_origin, self._elapsed_s = plan, self._rotation, 0.0

    def _read(self, time_s: float) -> None:
        position, velocity, acceleration = map(np.array, self._plan.at_time(time_s))
        turned = position[3:]
        jacobian = _left_jacobian(turned)
        self._position = position[:3]
        self._rotation = Rotation.from_rotvec(turned) * self._plan_origin
        # J' r' is left out of the acceleration: it is zero where a plan begins, and less than
        # |r'|^2 |r| / 6 + ... underway, 1 % of the bound at half a radian.
        self._velocity = np.concatenate([velocity[:3], jacobian @ velocity[3:]])
        self._acceleration = np.concatenate([acceleration[:3], jacobian @ acceleration[3:]])


def _axes(linear: float, angular: float) -> list[float]:
    return [linear / math.sqrt(3.0)] * 3 + [angular / math.sqrt(3.0)] * 3


def _stays_inside(plan: Trajectory, low_m: np.ndarray, high_m: np.ndarray) -> bool:
    extrema = plan.position_extrema[:3]
    return all(
        e.min >= low - 1e-9 and e.max <= high + 1e-9
        for e, low, high in zip(extrema, low_m, high_m, strict=True)
    )


def _left_jacobian(rotvec: np.ndarray) -> np.ndarray:
    """Return J (3, 3) with omega = J(r) r'."""
    angle = float(np.linalg.norm(rotvec))
    x, y, z = rotvec
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < SMALL_RAD:
        return np.eye(3) + 0.5 * cross
    square = angle * angle
    return (
        np.eye(3)
        + (1.0 - math.cos(angle)) / square * cross
        + (angle - math.sin(angle)) / (square * angle) * (cross @ cross)
    )
