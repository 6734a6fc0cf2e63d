"""What an arm is to the guard, whichever controller drives it.

The guard is the only one that commands the arm. It sends a target pose at its own rate (50 to
100 Hz), already interpolated and limited; an output turns it into the controller's messages.
`test/arm_conformance.py` is what every output passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np


class ArmMode(StrEnum):
    """What the arm says it can do now."""

    READY = 'ready'  # idle or moving: takes targets
    GUIDED = 'guided'  # a person moves it by hand
    STOPPED = 'stopped'  # user stop or hardware e-stop
    REFLEX = 'reflex'  # a limit or a collision; needs recovery
    RECOVERING = 'recovering'
    LOST = 'lost'  # no state for too long


class ArmError(RuntimeError):
    """An arm that cannot be commanded; the text says what to do."""


@dataclass(frozen=True)
class Pose:
    """A pose of the end effector in the robot's base frame."""

    position_m: np.ndarray  # (3,) float64
    quaternion_xyzw: np.ndarray  # (4,) float64, norm 1


@dataclass(frozen=True)
class ArmState:
    """What the arm last said of itself.

    Attributes:
        pose: measured.
        mode: see ArmMode.
        stamp_s: monotonic clock, when it arrived.
        errors: names of the controller's active errors.

    """

    pose: Pose
    mode: ArmMode
    stamp_s: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArmTarget:
    """Where the arm should be now, and how fast it passes there.

    Attributes:
        pose: target.
        linear_m_s: (3,) velocity of the target, base frame.
        angular_rad_s: (3,) angular velocity of the target, base frame.

    """

    pose: Pose
    linear_m_s: np.ndarray
    angular_rad_s: np.ndarray


class ArmOutput(Protocol):
    """One way to an arm. All methods return at once; none blocks the guard's loop."""

    def state(self) -> ArmState | None:
        """Return the latest state; None before the first one. Mode LOST when it is too old."""
        ...

    def send(self, target: ArmTarget) -> None:
        """Command a target.

        Raises:
            ArmError: it is not finite, or the arm does not take commands.

        """
        ...

    def hold(self) -> None:
        """Stop where the arm is; also the last thing that is ever sent."""
        ...

    def recover(self) -> None:
        """Begin to clear a reflex; `state().mode` tells how it goes. The arm does not move."""
        ...

    def close(self) -> None:
        """Hold, and let go of the controller."""
        ...
