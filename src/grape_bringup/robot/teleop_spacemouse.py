"""A SpaceMouse as a teleop device, read by pyspacemouse (needs libhidapi: see the how-to).

Anything with `read()` that returns pyspacemouse's state object can stand in for the device; that
is how it is tested, since no HID device can be made up on a machine without uhid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from grape_bringup.robot.teleop_command import AxesTeleop, Command, DeviceLostError
from grape_bringup.robot.teleop_config import AXES, AxesConfig

READS = 32  # at most, a poll: one report each; a SpaceMouse sends about 125 a second
HINT = (
    'plug it in; and see docs/how-to/teleoperate.md (apt-get install libhidapi-hidraw0, and the '
    'udev rule that lets you read it)'
)


class StateSource(Protocol):
    """An open SpaceMouse."""

    def read(self) -> Any:
        """Return the state: t, x, y, z, roll, pitch, yaw (-1 .. 1), buttons."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


def open_spacemouse() -> StateSource:
    """Open the first SpaceMouse there is, axes as in REP 103: x forward, y left, z up.

    Raises:
        DeviceLostError: there is none, or hidapi is missing.

    """
    try:
        import pyspacemouse
    except ImportError as error:
        raise DeviceLostError(
            f"pyspacemouse cannot be imported ({error}); run: pip install '.[robot]'"
        ) from error
    try:
        return pyspacemouse.open(axis_convention=pyspacemouse.AxisConvention.ROS)
    except Exception as error:  # noqa: BLE001 - easyhid raises its own and AttributeError
        raise DeviceLostError(f'no SpaceMouse: {error}; {HINT}') from error


class SpaceMouseTeleop:
    """Polls a SpaceMouse; one that was unplugged is lost until `reopen` finds one again."""

    def __init__(
        self, config: AxesConfig, open_source: Callable[[], StateSource] = open_spacemouse
    ) -> None:
        self._open = open_source
        self._teleop = AxesTeleop(config)
        self._source: StateSource | None = None

    def poll(self, now_s: float) -> Command:
        """Return the command now.

        Raises:
            DeviceLostError: the device is not there.

        """
        if self._source is None:
            self._source = self._open()
        try:
            state = self._newest(self._source)
        except Exception as error:  # noqa: BLE001 - as in open_spacemouse
            self.close()
            raise DeviceLostError(f'the SpaceMouse is gone: {error}') from error
        axes = [getattr(state, axis) for axis in AXES]
        return self._teleop.command(axes, list(state.buttons), now_s)

    def close(self) -> None:
        """Let go of the device."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    @staticmethod
    def _newest(source: StateSource) -> Any:
        """Return the state after all reports that wait."""
        state = source.read()
        for _ in range(READS):
            before = state.t
            state = source.read()
            if state.t == before:
                break
        return state
