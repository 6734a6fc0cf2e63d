"""What the policy node counts, for /diagnostics."""

from __future__ import annotations

from collections import deque

import numpy as np

from grape_policy_node.backend import Health

LATENCIES_KEPT = 1000


class StepStatistics:
    """Steps, held ones among them, errors and latencies since the node was started."""

    def __init__(self) -> None:
        self.steps = 0
        self.held = 0
        self.errors = 0
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def take(self, latency_ms: float, is_held: bool) -> None:
        """Count a published step."""
        self.steps += 1
        self.held += is_held
        self._latencies_ms.append(latency_ms)

    def values(self) -> dict[str, object]:
        """Return the numbers by name; latencies are of the last thousand steps."""
        latencies = np.array(self._latencies_ms or [0.0])
        return {
            'steps': self.steps,
            'held': self.held,
            'errors': self.errors,
            'latency_p50_ms': f'{np.percentile(latencies, 50):.2f}',
            'latency_p99_ms': f'{np.percentile(latencies, 99):.2f}',
        }

    def problems(self, health: Health) -> str:
        """Return what is not well in one line; '' where all is."""
        errors = f'{self.errors} errors' if self.errors else ''
        return '; '.join(text for text in (health.message, errors) if text)
