"""One episode in one process, without ROS: for benchmarks, tests and measuring the expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim_bridge.environment import Environment, Observation

ROTATION_NOISE = 0.3  # the rotation's share of the actuation noise


@dataclass(frozen=True)
class Rollout:
    """What an episode gave."""

    success: bool
    steps: int
    collisions: int


class ActuationNoise:
    """Gaussian noise on the executed pose deltas, in policy units; the recorded action is clean.

    Demonstrations recorded like this show the way back from states that the expert alone would
    never reach (DART, Laskey et al. 2017).
    """

    def __init__(self, std: float, seed: int) -> None:
        """Seed an episode's noise; std 0 gives none."""
        if not 0 <= std < 2:
            raise ValueError(f'action noise {std}; expected 0 or more, and less than 2.')
        self._std = np.array([std] * 3 + [std * ROTATION_NOISE] * 3 + [0.0])
        self._rng = np.random.default_rng(seed)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return (7,) with noise added."""
        if not self._std.any():
            return action
        return action + self._std * self._rng.standard_normal(7)


def play(
    env: Environment,
    act: Callable[[Observation], np.ndarray | None],
    observation: Observation,
    max_steps: int,
    noise: ActuationNoise | None = None,
) -> Rollout:
    """Play from an observation until success, the limit, or `act` returning None."""
    noise = noise or ActuationNoise(0.0, 0)
    collisions = 0
    for step in range(max_steps):
        action = act(observation)
        if action is None:
            return Rollout(False, step, collisions)
        observation = env.step(noise(action))
        collisions += bool(observation.scene.collisions)
        if observation.scene.success:
            return Rollout(True, step + 1, collisions)
    return Rollout(False, max_steps, collisions)
