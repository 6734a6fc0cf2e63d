"""What may be sent to an arm, and where it holds: the part that all outputs share."""

from __future__ import annotations

import numpy as np

from grape_bringup.robot.arm import ArmError, ArmMode, ArmState, ArmTarget, Pose

UNIT_TOLERANCE = 1e-3  # of a quaternion's norm: rounding, not a mistake

ADVICE = {
    ArmMode.GUIDED: 'a person guides it by hand: let go, then arm again',
    ArmMode.STOPPED: 'release the user stop, then recover and arm again',
    ArmMode.REFLEX: 'see that it is free, call guard/recover, then arm again',
    ArmMode.RECOVERING: 'wait until it is ready, then arm again',
    ArmMode.LOST: 'see that driver and network are up, then arm again',
}


def checked(target: ArmTarget) -> ArmTarget:
    """Return the target as float64 arrays with a quaternion of norm 1.

    The outputs check again what the guard has checked: crisp_controllers does not look at NaN,
    and franka-rs takes any quaternion that is not zero.

    Raises:
        ArmError: a wrong shape, a number that is not finite, a quaternion that is no rotation.

    """
    parts = {
        'position_m': (target.pose.position_m, 3),
        'quaternion_xyzw': (target.pose.quaternion_xyzw, 4),
        'linear_m_s': (target.linear_m_s, 3),
        'angular_rad_s': (target.angular_rad_s, 3),
    }
    arrays = {}
    for name, (value, size) in parts.items():
        array = np.array(value, dtype=np.float64)
        if array.shape != (size,):
            raise ArmError(f'{name} of the target has shape {array.shape}; expected ({size},)')
        if not np.isfinite(array).all():
            raise ArmError(f'{name} of the target is {array.tolist()}; expected finite numbers')
        arrays[name] = array
    norm = float(np.linalg.norm(arrays['quaternion_xyzw']))
    if abs(norm - 1.0) > UNIT_TOLERANCE:
        raise ArmError(f"the target's quaternion has norm {norm:.4f}; expected 1 (x, y, z, w)")
    pose = Pose(arrays['position_m'], arrays['quaternion_xyzw'] / norm)
    return ArmTarget(pose, arrays['linear_m_s'], arrays['angular_rad_s'])


def check_ready(state: ArmState | None) -> None:
    """Check that the arm takes targets.

    Raises:
        ArmError: it does not; names its mode, its errors and what to do.

    """
    if state is None:
        raise ArmError('the arm has not said anything yet: is its driver running?')
    if state.mode is not ArmMode.READY:
        errors = f' ({"; ".join(state.errors)})' if state.errors else ''
        raise ArmError(f'the arm is {state.mode.value}{errors}: {ADVICE[state.mode]}')


class HoldPoint:
    """Where the arm is to stay.

    It is found once, at the first hold after a target, and kept: a hold that followed the
    measured pose from tick to tick would let a compliant arm sink under its load.
    """

    def __init__(self) -> None:
        self._sent: Pose | None = None
        self._held: Pose | None = None

    def sent(self, pose: Pose) -> None:
        """Take note of a target that went out."""
        self._sent, self._held = pose, None

    def hold(self, state: ArmState | None) -> Pose | None:
        """Return the pose to send, None where nothing is to be stopped.

        While the arm reports, that is its measured pose. Where it has fallen silent, it is the
        last target, which the controller is going to anyway: an old measured pose would send it
        back. In all other modes the arm has stopped by itself, and a pose that waited for the
        controller's return would be a jump: all is forgotten.
        """
        if state is not None and state.mode not in (ArmMode.READY, ArmMode.LOST):
            self._sent = self._held = None
        elif self._held is None and self._sent is not None:
            is_known = state is not None and state.mode is ArmMode.READY
            self._held = state.pose if is_known else self._sent
        return self._held
