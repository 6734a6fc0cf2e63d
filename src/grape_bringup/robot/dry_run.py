"""A real arm that is watched and never commanded.

The guard behaves as if the arm followed at once: what it would have sent is the pose that it sees.
"""

from __future__ import annotations

from dataclasses import replace

from grape_bringup.robot.arm import ArmMode, ArmOutput, ArmState, ArmTarget, Pose
from grape_bringup.robot.arm_command import check_ready, checked


class DryRunArm:
    """An ArmOutput that passes nothing on."""

    def __init__(self, arm: ArmOutput) -> None:
        self._arm = arm
        self._pose: Pose | None = None

    def state(self) -> ArmState | None:
        """Return the real arm's mode, at the last target since the last hold."""
        state = self._arm.state()
        if state is None or state.mode is not ArmMode.READY:
            self._pose = None
        return state if self._pose is None else replace(state, pose=self._pose)

    def send(self, target: ArmTarget) -> None:
        """Check it as a real output does, and pretend."""
        target = checked(target)
        check_ready(self._arm.state())
        self._pose = target.pose

    def hold(self) -> None:
        """Be where the real arm is again."""
        self._pose = None

    def recover(self) -> None:
        """Leave the real arm as it is."""

    def close(self) -> None:
        """Let go of the real arm, which was never told anything."""
        self._arm.close()
