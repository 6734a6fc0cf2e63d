"""A made-up person at a keyboard: the scripted expert's plan, done as people teleoperate.

Demonstrations of the expert alone make a policy without habits to correct. A person's have some,
and a policy that imitates them has them too:

- the arm moves in a few fixed speeds a direction, one a key;
- a fumbled grasp: the fingers close too high, the hand lifts nothing, opens and comes again;
- some trials carry low for most of the way, and not over what stands there;
- some trials never use the fastest speed.

Trials still end in success, by the expert's own retries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim_bridge.expert import CLOSED, OPEN, OPENING_STEPS, Approach, Expert, Grasp
from sim_bridge.libero import LiberoEnvironment

# Speeds in policy units a step (libero_tiny10: 0.1 m, 1 rad); a command takes the nearest one in
# the logarithm, and none below half of the first.
TRANSLATION_SPEEDS = (0.08, 0.28, 1.0)
ROTATION_SPEEDS = (0.06, 0.2)
SLOWLY = 0.5  # of the fastest speed, in a slow trial
FUMBLE_HEIGHT_M = 0.05
LOW_M, LOW_SHARE = 0.04, 0.6  # carrying low: lifted so far, for this share of the way


@dataclass(frozen=True)
class Habits:
    """How often: a fumble at each grasp, and carrying low and slowly in each trial."""

    fumble: float = 0.5
    low: float = 0.5
    slow: float = 0.5


class Operator(Expert):
    """Plays the current episode of an environment; call `action` once before each step."""

    def __init__(
        self, env: LiberoEnvironment, attempt: int = 0, seed: int = 0, habits: Habits | None = None
    ) -> None:
        """Plan for the scene as it is now; `seed` decides what goes wrong.

        Raises:
            SimulatorError: as the expert does.

        """
        self._rng = np.random.default_rng([seed, attempt])
        self._habits = habits or Habits()
        self._low = self._rng.random() < self._habits.low
        fastest = SLOWLY if self._rng.random() < self._habits.slow else 1.0
        self._speeds = (*TRANSLATION_SPEEDS[:-1], fastest * TRANSLATION_SPEEDS[-1])
        super().__init__(env, attempt)

    def _descend(self, grasp: Grasp, near: Approach) -> Iterator[np.ndarray]:
        above = self._above_m(grasp)
        too_high = Grasp(grasp.position_m + [0.0, 0.0, FUMBLE_HEIGHT_M], grasp.rotation)
        while self._rng.random() < self._habits.fumble:
            yield from self._go(grasp, above, OPEN, 0.02, 60, 0.1)
            yield from self._go(too_high, 0.0 * above, OPEN, near.above_m, 30, near.turn_rad)
            yield from self._hold(too_high, CLOSED, near.closing_steps)
            yield from self._go(grasp, above, CLOSED, 0.02, 60, 0.1)
            yield from self._hold(
                Grasp(grasp.position_m + above, grasp.rotation), OPEN, OPENING_STEPS
            )
        yield from super()._descend(grasp, near)

    def _lift(self, grasp: Grasp, carry_z: float, place: np.ndarray) -> Iterator[np.ndarray]:
        if self._low:
            way = (place - grasp.position_m) * [1.0, 1.0, 0.0]
            low = np.array([0.0, 0.0, LOW_M])
            yield from self._go(grasp, low, CLOSED, 0.02, 60, 0.1)
            grasp = Grasp(grasp.position_m + LOW_SHARE * way, grasp.rotation)
            yield from self._go(grasp, low, CLOSED, 0.03, 60, 0.1)
        yield from super()._lift(grasp, carry_z, place)

    def _servo(self, goal: Grasp, opening: float) -> np.ndarray:
        command = super()._servo(goal, opening)
        command[:3] = nearest_speed(command[:3], self._speeds)
        command[3:6] = nearest_speed(command[3:6], ROTATION_SPEEDS)
        return command


def nearest_speed(command: np.ndarray, speeds: tuple[float, ...]) -> np.ndarray:
    """Replace each number by 0 or plus or minus a speed, the nearest in the logarithm."""
    steps = np.array([0.0, *speeds])
    limits = np.concatenate([[speeds[0] / 2], np.sqrt(steps[1:-1] * steps[2:])])
    return np.sign(command) * steps[np.searchsorted(limits, np.abs(command))]
