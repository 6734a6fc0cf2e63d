"""What a gripper's output keeps: the newest command, and what the gripper last said.

Only the newest command counts, and only when it is a change. A policy says an opening at every
step; a gripper that is told so again and again stutters, and one that is given a queue of openings
lives in the past.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from grape_bringup.robot.gripper import GripperError, GripperState


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


class KeptState:
    """What the gripper last said, and what is wrong; between its thread and the guard's."""

    def __init__(self, stale_s: float, silent: Callable[[str], str]) -> None:
        """Begin not connected; `silent` says that nothing came for how long."""
        self._stale_s, self._silent = stale_s, silent
        self._lock = threading.Lock()
        self._state: GripperState | None = None
        self._fault = 'not connected yet'

    @property
    def age_s(self) -> float | None:
        """Seconds since the gripper said anything; None: it never did."""
        with self._lock:
            return None if self._state is None else time.monotonic() - self._state.stamp_s

    @property
    def fault(self) -> str:
        """What is wrong now, also before the first state; empty while it works."""
        with self._lock:
            fault = self._fault
        age_s = self.age_s
        if not fault and age_s is not None and age_s > self._stale_s:
            return self._silent(f'for {age_s:.1f} s')
        return fault

    def get(self) -> GripperState | None:
        """Return the latest state with what is wrong; None before the first one."""
        with self._lock:
            state = self._state
        return state and replace(state, fault=self.fault)

    def put(self, state: GripperState) -> None:
        """Take what the gripper said."""
        with self._lock:
            self._state = state

    def set_fault(self, fault: str) -> bool:
        """Take what is wrong, '' for nothing; returns whether that is news."""
        with self._lock:
            is_other, self._fault = fault != self._fault, fault
        return is_other
