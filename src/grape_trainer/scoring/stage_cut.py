"""Where the stages of a trial end: a monotone cut of boolean conditions over time.

Each of N stages ends when its condition comes true, in this order. The trial is cut so:

1. Forward: each stage's first state at or after the one before's. The first stage whose condition
   never comes true is where the trial stuck; the stages after it were never reached.
2. Backward: a condition that marks an attempt (a grasp, a touch) is moved to the last attempt
   from which the next stage was reached, or to the last of all where the trial stuck after it.
   What came before belongs to the earlier stage, so that retries never turn time back.

The last stage goes on to the last state, so that what happens at the end is seen by its costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 4! orders; a task of more goals is cut in the order of its plan.
MOST_LINKS_REORDERED = 4


@dataclass(frozen=True)
class Condition:
    """When a stage's end condition holds, over the T + 1 states."""

    holds: np.ndarray  # (T+1,) bool
    attempt: bool  # coming true again is another attempt
    lasting: bool  # as a task's last condition, it has to hold at the last state


@dataclass(frozen=True)
class Cut:
    """The states at which the stages end; None where a stage is not completed."""

    ends: tuple[int | None, ...]  # of the first N - 1 stages
    finished: bool  # whether the last stage is completed

    @property
    def completed(self) -> int:
        """How many stages are."""
        return sum(end is not None for end in self.ends) + self.finished


def cut(conditions: Sequence[Condition]) -> Cut:
    """Cut a trial at the ends of its stages.

    Args:
        conditions: one a stage, of equal length T + 1.

    """
    last = len(conditions[0].holds) - 1
    found: list[int] = []
    for condition in conditions:
        first = _first(condition.holds, found[-1] if found else 0)
        if first is None:
            break
        found.append(first)
    finished = len(found) == len(conditions)
    if finished and conditions[-1].lasting:
        finished = bool(conditions[-1].holds[last])
    limit = last if len(found) < len(conditions) else found[-1]
    inner = len(conditions) - 1
    for index in range(min(len(found), inner) - 1, -1, -1):
        following = found[index + 1] if index + 1 < len(found) else limit
        if conditions[index].attempt:
            found[index] = _last_onset(conditions[index].holds, found[index], following)
    ends = found[:inner]
    return Cut((*ends, *(None,) * (inner - len(ends))), finished)


def best_order(links: Sequence[Sequence[Condition]]) -> tuple[int, ...]:
    """Return the order of the links in which a trial completes most stages.

    Ties go to the order that comes first, the given one before all others.
    """
    given = tuple(range(len(links)))
    if len(links) > MOST_LINKS_REORDERED:
        return given

    def completed(order: tuple[int, ...]) -> int:
        return cut([condition for index in order for condition in links[index]]).completed

    return max(itertools.permutations(given), key=completed)


def _first(holds: np.ndarray, start: int) -> int | None:
    hits = np.flatnonzero(holds[start:])
    return start + int(hits[0]) if len(hits) else None


def _last_onset(holds: np.ndarray, first: int, limit: int) -> int:
    """Return the last state in [first, limit] where holds comes true; first where none does."""
    before = np.concatenate(([False], holds[:-1]))
    onsets = np.flatnonzero(holds & ~before)
    onsets = onsets[(onsets >= first) & (onsets <= limit)]
    return int(onsets[-1]) if len(onsets) else first
