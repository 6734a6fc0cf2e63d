"""Rewards of a recorded trial, one a step: r_t is paid for what holds at state t + 1.

grasp_hold     0.1 once for a first grasp, 0.1 once for a hold of one second, 1.0 for success at
               the last step (RL4VLA, arXiv 2505.19789).
grasp_hold_difference
               as RL4VLA's code pays them (gen-robot/RL4VLA, simpler_wrapper.py): the difference
               of phi = 0.1 held + 0.1 held for a second + 1.0 success between two states, so that
               a drop takes back what its grasp gave. Its success asks for an object still held;
               LIBERO's does not, hence not here.
success        1.0 for success at the last step: all that a trial without a scene can give.
stage          what was gained on the way through the task's stages (TGRPO, arXiv 2506.08440,
               with this project's stages).

RL4VLA's hold is 5 states in a row at 5 Hz; the second is what carries over to other rates.
"""

from __future__ import annotations

import numpy as np

from grape_trainer.scoring.stage import Segmentation

GRASP = 0.1
HOLD = 0.1
SUCCESS = 1.0
HOLD_S = 1.0


def success_rewards(steps: int, success: bool) -> np.ndarray:
    """Return (T,) float64: 1.0 at the last step of a success.

    Raises:
        ValueError: no steps.

    """
    if steps < 1:
        raise ValueError(f'The trial has {steps} steps; expected at least 1.')
    rewards = np.zeros(steps)
    rewards[-1] = SUCCESS * success
    return rewards


def grasp_hold_rewards(
    held: np.ndarray, success: bool, rate_hz: float, difference: bool = False
) -> np.ndarray:
    """Return (T,) float64 rewards for a grasp, a hold and success.

    Args:
        held: (T+1,) bool, the target is in the gripper (Segmentation.held).
        success: of the trial.
        rate_hz: control rate.
        difference: pay the difference of the states, not each reward once.

    Raises:
        ValueError: held is not (T+1,) with T >= 1, or the rate is not positive.

    """
    if held.ndim != 1 or len(held) < 2 or not rate_hz > 0:
        raise ValueError(
            f'held is {held.shape} at {rate_hz} Hz; expected (T+1,) with T >= 1, above 0 Hz.'
        )
    for_long = _held_in_a_row(held) >= max(1, round(HOLD_S * rate_hz))
    grasp, hold = held.astype(bool), for_long
    if not difference:
        grasp, hold = np.logical_or.accumulate(grasp), np.logical_or.accumulate(hold)
    paid = GRASP * grasp + HOLD * hold
    return np.diff(paid) + success_rewards(len(held) - 1, success)


def stage_rewards(found: Segmentation, success: bool) -> np.ndarray:
    """Return (T,) float64: the gain in the share of the way that is done, 1 for a success in all.

    Of n stages, the share at a state in stage k (from 0) is (k + progress) / (n + 1), where the
    progress is towards the event that ends the stage; success is the last of the n + 1 parts.

    Raises:
        ValueError: fewer than two states.

    """
    states = len(found.progress[0])
    if states < 2:
        raise ValueError(f'The trial has {states} states; expected at least 2.')
    done = np.zeros(states)
    for index, (span, progress) in enumerate(zip(found.spans, found.progress, strict=True)):
        if span.reached:
            done[span.states] = index + progress[span.states]
            done[span.stop] = index + (1.0 if span.completed else progress[span.stop])
    done /= len(found.spans) + 1
    if success:
        done[-1] = 1.0
    return np.diff(done)


def _held_in_a_row(held: np.ndarray) -> np.ndarray:
    """Return (T+1,) int: for how many states up to this one it has been held."""
    counts = np.zeros(len(held), dtype=int)
    for state, now in enumerate(held):
        counts[state] = (counts[state - 1] if state else 0) + 1 if now else 0
    return counts
