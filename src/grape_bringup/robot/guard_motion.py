"""Where the arm is to go: the goal that commands are composed on, and the way to it.

The goal is the sum of what was asked and allowed; the target that is sent follows it within the
bounds of speed, acceleration and jerk. A policy's deltas are composed on the goal and not on the
measured pose: a compliant arm lags, and would lose a part of every step.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmTarget, Pose
from grape_bringup.robot.guard_config import GuardConfig
from grape_bringup.robot.guard_inputs import Finding, Teleop
from grape_bringup.robot.guard_rules import (
    compose,
    limit_box,
    limit_lead,
    limit_step,
    limit_tilt,
    limit_vector,
)
from grape_bringup.robot.interpolation import Interpolator, MotionLimits
from grape_episode.action import EndEffectorDelta
from grape_episode.contract import Contract

LAST_LOOK = 1.05  # of the largest step between two targets
LAST_LOOK_M = 1e-4  # outside of the box by rounding


class MotionError(RuntimeError):
    """A target that may not be sent; it should never come to this."""


class Motion:
    """The goal, the interpolator behind it and their bounds; `seed` before anything else."""

    def __init__(self, config: GuardConfig, contract: Contract) -> None:
        action = contract.action
        self._config = config
        self._limits = MotionLimits(
            config.max_speed_m_s,
            config.max_acceleration_m_s2,
            config.max_jerk_m_s3,
            config.max_turn_rad_s,
            config.max_turn_rad_s2,
            config.max_turn_rad_s3,
        )
        self._period_s = 1.0 / config.rate_hz
        self._max_step_m = config.max_step_m or action.max_translation_m
        self._max_step_rad = config.max_step_rad or action.max_rotation_rad
        self._axis_step_m = self._limits.axis_speed_m_s / contract.control_rate_hz
        self._axis_step_rad = self._limits.axis_turn_rad_s / contract.control_rate_hz
        self.in_base_frame = action.frame == contract.base_frame
        self._low = self._box_low = np.array(config.workspace_min_m)
        self._high = self._box_high = np.array(config.workspace_max_m)
        self._interpolator: Interpolator | None = None
        self._start_xyzw: np.ndarray | None = None
        self._last: ArmTarget | None = None
        self.goal: Pose | None = None
        self.travel_m = 0.0

    def outside_m(self, pose: Pose) -> float:
        """Return how far a pose is outside of the box."""
        inside = np.clip(pose.position_m, self._box_low, self._box_high)
        return float(np.linalg.norm(inside - pose.position_m))

    def seed(self, measured: Pose) -> None:
        """Begin at rest where the arm is; what was asked before is forgotten."""
        self._interpolator = Interpolator(self._limits, self._period_s, measured)
        self._last = self._interpolator.target()
        # An arm that is armed a little outside is led back in, not thrown.
        self._low = np.minimum(self._box_low, measured.position_m)
        self._high = np.maximum(self._box_high, measured.position_m)
        self.goal = measured
        if self._start_xyzw is None:
            self._start_xyzw = measured.quaternion_xyzw

    def begin_episode(self) -> None:
        """Count travel from here, and the cone from the goal's orientation."""
        self.travel_m = 0.0
        self._start_xyzw = None if self.goal is None else self.goal.quaternion_xyzw

    def step(self, delta: EndEffectorDelta, measured: Pose) -> list[Finding]:
        """Go on by a policy's delta; returns what the rules changed.

        Raises:
            InterpolationError: no trajectory leads there; goal and motion stay.

        """
        delta, findings = limit_step(
            delta, self._max_step_m, self._max_step_rad, self._axis_step_m, self._axis_step_rad
        )
        goal = compose(self.goal, delta, self.in_base_frame)
        return findings + self._go(goal, measured)

    def drive(self, teleop: Teleop, measured: Pose) -> list[Finding]:
        """Go on for one tick by a person's velocities, base frame.

        Raises:
            InterpolationError: as `step`.

        """
        config, limits, period_s = self._config, self._limits, self._period_s
        linear = limit_vector(teleop.linear_m_s, config.teleop_speed_m_s, limits.axis_speed_m_s)
        angular = limit_vector(
            teleop.angular_rad_s, config.teleop_turn_rad_s, limits.axis_turn_rad_s
        )
        if not linear.any() and not angular.any():
            return []
        delta = EndEffectorDelta(linear * period_s, angular * period_s, 1.0)
        return self._go(compose(self.goal, delta, in_base_frame=True), measured)

    def stop(self) -> None:
        """Come to rest as soon as the bounds allow; that place is the goal.

        Raises:
            InterpolationError: no trajectory.

        """
        self._interpolator.brake()
        self.goal = self._interpolator.end()

    def halt(self) -> None:
        """Take the target of this moment for the goal: nothing more is sent."""
        if self._interpolator is not None:
            self.goal = self._interpolator.target().pose

    def advance(self) -> ArmTarget:
        """Return the next target, one period on.

        Raises:
            MotionError: it is not finite, outside of the box or too far from the last one.

        """
        target = self._interpolator.advance()
        position, last = target.pose.position_m, self._last.pose.position_m
        numbers = (position, target.pose.quaternion_xyzw, target.linear_m_s, target.angular_rad_s)
        if not all(np.isfinite(value).all() for value in numbers):
            raise MotionError(f'the target is not finite: {target}')
        if (position < self._low - LAST_LOOK_M).any() or (
            position > self._high + LAST_LOOK_M
        ).any():
            raise MotionError(f'the target {position.round(4).tolist()} m is outside of the box')
        moved = float(np.linalg.norm(position - last))
        if moved > self._limits.speed_m_s * self._period_s * LAST_LOOK:
            raise MotionError(f'the target jumps by {moved:.4f} m in one tick')
        self._last = target
        return target

    def _go(self, goal: Pose, measured: Pose) -> list[Finding]:
        config = self._config
        goal, findings = limit_lead(goal, measured, config.max_lead_m, config.max_lead_rad)
        if config.cone_rad:
            goal, tilted = limit_tilt(goal, self._start_xyzw, config.cone_rad)
            findings += tilted
        goal, boxed = limit_box(goal, self._box_low, self._box_high)
        # Rounding of many products would pile up otherwise.
        goal = Pose(goal.position_m, Rotation.from_quat(goal.quaternion_xyzw).as_quat())
        self._interpolator.aim(goal, self._low, self._high)
        self.travel_m += float(np.linalg.norm(goal.position_m - self.goal.position_m))
        self.goal = goal
        return findings + boxed
