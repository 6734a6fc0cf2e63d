"""The newest command of a gripper: only that one counts, and only when it is a change.

A policy says an opening at every step; a gripper that is told so again and again stutters, and
one that is given a queue of openings lives in the past.
"""

from __future__ import annotations

import math
import threading

from grape_bringup.robot.gripper import GripperError


class NewestCommand:
    """Holds one opening between the guard's thread and the gripper's.

    It begins blocked, and is blocked while the gripper is lost or in a fault: what is offered
    then is dropped, so that a gripper that comes back does nothing until it is told anew.
    """

    def __init__(self, min_change: float) -> None:
        """Begin without a command; smaller changes of the opening than min_change are none."""
        self._min_change = min_change
        self._lock = threading.Lock()
        self._sent: float | None = None
        self._offered: float | None = None
        self._blocked = True

    def offer(self, opening: float) -> None:
        """Replace the command that waits.

        Raises:
            GripperError: not a number from 0 to 1.

        """
        if not (isinstance(opening, int | float) and math.isfinite(opening) and 0 <= opening <= 1):
            raise GripperError(
                f'a gripper opening of {opening!r} was asked for; expected a number from 0 '
                '(closed) to 1 (open)'
            )
        with self._lock:
            if not self._blocked:
                self._offered = float(opening)

    def take(self) -> float | None:
        """Return the newest opening if it differs from the one taken before; else None."""
        with self._lock:
            offered, self._offered = self._offered, None
            if offered is None:
                return None
            if self._sent is not None and abs(offered - self._sent) < self._min_change:
                return None
            self._sent = offered
            return offered

    def block(self) -> None:
        """Drop what waits and what is offered from now on."""
        with self._lock:
            self._blocked, self._offered, self._sent = True, None, None

    def unblock(self) -> None:
        """Take commands; the first one is sent, whatever it is."""
        with self._lock:
            self._blocked = False
