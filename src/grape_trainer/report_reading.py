"""How to read a run's numbers: what a difference of success rates says at this n, and what not.

A point estimate of twenty episodes moves by chance as much as most methods gain. The page says
so beside its headline, instead of leaving it to the reader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grape_trainer.evaluation import Z_95, EvaluationSummary, PairedComparison, compare
from grape_trainer.report_run import Evaluation, Trial
from grape_trainer.scoring.objective import RewardSettings
from grape_trainer.scoring.reward import SpreadReport, spread_report

# One-sided 80 % quantile of the normal distribution: the usual power of a planned comparison.
_Z_POWER_80 = 0.8416212335729143
_ALPHA = 0.05


@dataclass(frozen=True)
class Verdict:
    """One policy against the base policy.

    difference: of the success rates, -1..1. overlap: the 95 % intervals share a point.
    paired: on the same initial states, None where they are not the same (paired_problem says why).
    """

    label: str
    difference: float
    overlap: bool
    paired: PairedComparison | None
    paired_problem: str
    text: str


def verdicts(evaluations: Sequence[Evaluation]) -> tuple[Verdict, ...]:
    """Return what each later evaluation says against the first one (the base policy)."""
    if not evaluations or not evaluations[0].label.startswith('base'):
        return ()
    base, later = evaluations[0], evaluations[1:]
    return tuple(
        _verdict(base, after)
        for after in later
        if base.summary.success is not None and after.summary.success is not None
    )


def percent(rate: float | None) -> str:
    """Return a rate as a person writes it, `42 %`; a dash where there is none."""
    return '\N{EN DASH}' if rate is None else f'{100 * rate:.0f}\N{NO-BREAK SPACE}%'


def episodes_to_resolve(first: float, second: float) -> int | None:
    """Return the episodes of each policy that show a difference of two rates.

    Two independent samples, two-sided 5 % level, 80 % power, normal approximation; None where the
    rates are equal.
    """
    if first == second:
        return None
    variance = first * (1 - first) + second * (1 - second)
    return max(1, math.ceil((Z_95 + _Z_POWER_80) ** 2 * variance / (first - second) ** 2))


def term_spread(trials: Sequence[Trial]) -> SpreadReport | None:
    """Return how much each term of Eq. 9 moves the ranking; None without two scored trials."""
    rows = [t.row for t in trials if t.row.r_gcpg is not None and t.row.r_ext is not None]
    weights = {(r.lambda_self, r.lambda_ext, r.lambda_success, r.self_reward) for r in rows}
    # Rows of several objectives have no common weights.
    if len(rows) < 2 or len(weights) != 1:
        return None
    row = rows[0]
    reward = RewardSettings(
        lambda_self=row.lambda_self,
        lambda_ext=row.lambda_ext,
        lambda_success=row.lambda_success,
        self_reward=row.self_reward,
    )
    own = [r.r_self_per_token if row.self_reward == 'per_token' else r.r_self for r in rows]
    return spread_report(
        [value for value in own if value is not None],
        [r.r_ext for r in rows],
        [bool(r.success) for r in rows],
        reward,
    )


def _verdict(base: Evaluation, after: Evaluation) -> Verdict:
    difference = after.summary.success - base.summary.success
    overlap = _overlap(base.summary, after.summary)
    paired, problem = None, ''
    try:
        paired = compare(base.results, after.results)
    except ValueError as error:
        problem = str(error)
    return Verdict(
        after.label, difference, overlap, paired, problem, _text(base, after, overlap, paired)
    )


def _overlap(first: EvaluationSummary, second: EvaluationSummary) -> bool:
    bounds = (first.wilson_low, first.wilson_high, second.wilson_low, second.wilson_high)
    if None in bounds:
        return True
    return bounds[0] <= bounds[3] and bounds[2] <= bounds[1]


def _text(
    base: Evaluation, after: Evaluation, overlap: bool, paired: PairedComparison | None
) -> str:
    one, two = base.summary, after.summary
    points = 100 * (two.success - one.success)
    digits = 0 if abs(points) >= 1 else 1
    change = f'{points:+.{digits}f} percentage points' if points else 'no change'
    parts = [f'{after.label.capitalize()} against the {base.label}: {change}.']
    significant = paired is not None and paired.p_value < _ALPHA
    if overlap and not significant:
        parts.append(
            f'The 95 % intervals overlap: the difference is within the noise at this n '
            f'({one.n} and {two.n} episodes).'
        )
        needed = episodes_to_resolve(one.success, two.success)
        if needed is not None:
            parts.append(
                f'If the rates were truly {percent(one.success)} and {percent(two.success)}, '
                f'about {needed} episodes of each policy would show it (5 % level, 80 % power).'
            )
    elif overlap:
        parts.append(
            'The 95 % intervals overlap, but on the same initial states the paired test finds a '
            f'difference (p = {paired.p_value:.3f}).'
        )
    else:
        parts.append('The 95 % intervals do not overlap: more than noise at this n.')
    excluded = one.errors + one.interrupted + two.errors + two.interrupted
    if excluded:
        parts.append(
            f'{excluded} episodes ended in an infrastructure error or were interrupted; they are '
            'counted apart and are not in n.'
        )
    return ' '.join(parts)
