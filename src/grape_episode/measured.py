"""Rates and percentiles of what a node does, for its diagnostics; pure."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

KEPT = 1000  # values


class Measured:
    """The newest values of one quantity."""

    def __init__(self, name: str) -> None:
        """Take the quantity's name with its unit, such as latency_ms."""
        self.name = name
        self._kept: deque[float] = deque(maxlen=KEPT)

    def take(self, value: float) -> None:
        """Add a value; any thread."""
        self._kept.append(value)

    def values(self) -> dict[str, str]:
        """Return the median and the 99th percentile by name; {} without values."""
        kept = tuple(self._kept)
        if not kept:
            return {}
        p50, p99 = np.percentile(kept, (50, 99))
        return {f'{self.name}_p50': f'{p50:.2f}', f'{self.name}_p99': f'{p99:.2f}'}


class Rate:
    """How often something happens, from one look to the next."""

    def __init__(self) -> None:
        self._count = 0
        self._looked_at = time.monotonic()

    def take(self) -> None:
        """Count one."""
        self._count += 1

    def look(self) -> float:
        """Return Hz since the last look, and begin anew."""
        now = time.monotonic()
        hz = self._count / max(now - self._looked_at, 1e-9)
        self._count, self._looked_at = 0, now
        return hz
