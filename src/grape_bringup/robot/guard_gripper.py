"""When a wanted gripper opening becomes a command: only a change, and not too often.

A policy says its opening at every step; a gripper's action or serial line jams when it is told the
same thing ten times a second, and a flickering policy would drop what it holds.
"""

from __future__ import annotations

import math


class GripperGate:
    """The last command, and the one that is waiting."""

    def __init__(self, change: float, settle_s: float, interval_s: float) -> None:
        """Take the smallest change, how long it must last and the time between commands."""
        self._change = change
        self._settle_s = settle_s
        self._interval_s = interval_s
        self._wanted: float | None = None
        self._since_s = 0.0
        self._sent_s = -math.inf
        self.commanded: float | None = None

    def begin(self, measured: float | None) -> None:
        """Take the measured opening as what was commanded; nothing is wanted yet."""
        self._wanted, self.commanded = None, measured

    def want(self, opening: float, now_s: float) -> None:
        """Take note of an opening, 0 closed .. 1 open."""
        if self._wanted is None or not self._is_near(self._wanted, opening):
            self._since_s = now_s
        self._wanted = opening

    def due(self, now_s: float) -> float | None:
        """Return the opening to command now, None for none."""
        wanted = self._wanted
        if wanted is None or self.commanded is not None and self._is_near(self.commanded, wanted):
            return None
        if now_s - self._since_s < self._settle_s or now_s - self._sent_s < self._interval_s:
            return None
        self.commanded, self._sent_s = wanted, now_s
        return wanted

    def _is_near(self, one: float, other: float) -> bool:
        return one == other or abs(one - other) < self._change
