"""Which trials to look at before a cost program is approved: good, typical, and ranked wrongly.

A cost ranks a trial wrongly against one of the other kind where the failure costs less than the
success, ties counting half: what is left of an AUC (cost_review.py) when it is taken apart by
trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grape_trainer.scoring.cost_program import CostFunction, Program
from grape_trainer.scoring.cost_review import Trial, judged_cost

CHANCE = 0.5  # share ranked wrongly by a cost that says nothing


@dataclass(frozen=True)
class Example:
    """A trial, and why it was chosen."""

    trial: Trial
    why: str


def choose_examples(program: Program, trials: Sequence[Trial], count: int) -> tuple[Example, ...]:
    """Return at most `count` trials, each once.

    First the success that the costs rank best and the failure in the middle, then the failures
    that a cost ranks before most successes, the successes that one ranks behind most failures, and
    the others as they were given.
    """
    wrong = _wrong_shares(program.functions, trials)
    overall = [float(np.mean([*shares.values()] or [CHANCE])) for shares in wrong]
    by_rank = sorted(range(len(trials)), key=lambda index: overall[index])
    successes = [index for index in by_rank if trials[index].success]
    failures = [index for index in by_rank if not trials[index].success]
    chosen: dict[int, str] = {}
    if successes:
        chosen[successes[0]] = 'The success that the costs rank best'
    if failures:
        chosen[failures[len(failures) // 2]] = 'A typical failure, the middle one by its costs'
    for group, text in (
        (failures, 'A failure that {} ranks before {:.0%} of the successes'),
        (successes, 'A success that {} ranks behind {:.0%} of the failures'),
    ):
        worst = {index: max(wrong[index].items(), key=_share) for index in group if wrong[index]}
        for index, (name, share) in sorted(worst.items(), key=lambda item: -_share(item[1])):
            if share > CHANCE:
                chosen.setdefault(index, text.format(name, share))
    for index, trial in enumerate(trials):
        chosen.setdefault(index, 'Another success' if trial.success else 'Another failure')
    return tuple(Example(trials[index], why) for index, why in list(chosen.items())[:count])


def _share(entry: tuple[str, float]) -> float:
    return entry[1]


def _wrong_shares(
    functions: Sequence[CostFunction], trials: Sequence[Trial]
) -> list[dict[str, float]]:
    """Return, a trial, cost -> share of the trials of the other kind that it ranks wrongly.

    A cost that compares a trial with no other has no share.
    """
    found: list[dict[str, float]] = [{} for _ in trials]
    for function in functions:
        reached = [index for index, trial in enumerate(trials) if function.name in trial.costs]
        costs = [judged_cost(function, trials[index].costs[function.name]) for index in reached]
        good = np.array([trials[index].success for index in reached], dtype=bool)
        for index, cost in zip(reached, costs, strict=True):
            success = trials[index].success
            others = np.array(costs)[good != success]
            if len(others):
                off = cost - others if success else others - cost
                found[index][function.name] = float(((off > 0) + 0.5 * (off == 0)).mean())
    return found
