"""What a person's hand asks of the arm, and six axes with buttons turned into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from grape_bringup.robot.teleop_config import AXES, AxesConfig


class DeviceLostError(RuntimeError):
    """The device is not there any more; the text says what happened."""


@dataclass(frozen=True)
class Command:
    """One moment of a person's command.

    Attributes:
        engaged: the person has the arm.
        linear: (3,) share of the full speed along x, y, z of the base, -1 .. 1.
        angular: (3,) share of the full turning speed about them, -1 .. 1.
        gripper_opening: 0 closed .. 1 open; NaN: as it is.

    """

    engaged: bool
    linear: np.ndarray = field(default_factory=lambda: np.zeros(3))
    angular: np.ndarray = field(default_factory=lambda: np.zeros(3))
    gripper_opening: float = math.nan


class AxesTeleop:
    """Deflection becomes speed; deflecting, or holding a button, is what takes the arm."""

    def __init__(self, config: AxesConfig) -> None:
        self._config = config
        self._engaged_until = -math.inf
        self._opening = math.nan  # as asked for since the person took the arm

    def command(self, axes: Sequence[float], buttons: Sequence[int], now_s: float) -> Command:
        """Return the command of a device's state.

        Args:
            axes: (6,) deflections -1 .. 1: x, y, z, roll, pitch, yaw.
            buttons: 1 where pressed.
            now_s: monotonic.

        """
        config = self._config
        values = np.asarray(axes, np.float64)
        if values.shape != (len(AXES),) or not np.isfinite(values).all():
            raise DeviceLostError(f'the device gave {list(axes)!r}; expected six finite numbers')
        beyond = np.clip(np.abs(values) - config.deadband, 0.0, None) / (1.0 - config.deadband)
        speeds = np.clip(np.sign(values) * beyond, -1.0, 1.0)
        wants_grip = _pressed(buttons, config.close_button), _pressed(buttons, config.open_button)
        if config.engage == 'button':
            engaged = _pressed(buttons, config.engage_button)
        else:
            if speeds.any() or any(wants_grip):
                self._engaged_until = now_s + config.linger_s
            engaged = now_s <= self._engaged_until
        if not engaged:
            self._opening = math.nan
            return Command(False)
        if wants_grip[0] != wants_grip[1]:
            self._opening = 0.0 if wants_grip[0] else 1.0
        return Command(True, speeds[:3], speeds[3:], self._opening)


def _pressed(buttons: Sequence[int], number: int) -> bool:
    return number < len(buttons) and bool(buttons[number])
