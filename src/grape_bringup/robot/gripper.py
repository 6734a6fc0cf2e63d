"""What a gripper is to the guard, whichever way it is driven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class GripperError(RuntimeError):
    """A gripper that cannot be commanded; the text says what to do."""


@dataclass(frozen=True)
class GripperState:
    """What the gripper last said of itself.

    Attributes:
        opening: measured, 0 closed .. 1 open.
        is_holding: it stopped at an object.
        stamp_s: monotonic clock, when it arrived.
        fault: empty while it works.

    """

    opening: float
    is_holding: bool
    stamp_s: float
    fault: str = ''


class GripperOutput(Protocol):
    """One way to a gripper. All methods return at once; none blocks the guard's loop."""

    def state(self) -> GripperState | None:
        """Return the latest state; None before the first one."""
        ...

    def command(self, opening: float) -> None:
        """Ask for an opening, 0 closed .. 1 open; the newest command counts.

        Raises:
            GripperError: not a number from 0 to 1.

        """
        ...

    def recover(self) -> None:
        """Begin to clear a fault (re-activation); `state().fault` tells how it goes."""
        ...

    def close(self) -> None:
        """Let go of the gripper; it stays as it is."""
        ...
