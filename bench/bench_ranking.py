"""How well the reward's terms order trials: a success over a failure of the same start (AUC).

    .venv/bin/python bench/bench_ranking.py BAGS... [--objectives completion safety efficiency]

Only trials of the same task and initial state are compared, as pairs are made. The AUC is the
share of (success, failure) pairs that a term puts the right way round, ties count half; 0.5 is
chance. The interval is a 95 % bootstrap over initial states. Success itself is left out of what is
ranked by: R_ext and R_self have to know it from the trial.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from grape_episode.bag import find_bags
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.score_table import ScoreRow
from grape_trainer.scoring.scorer import score_bags

DRAWS = 2000


def main() -> None:
    """Score and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bags', type=Path, nargs='+')
    parser.add_argument('--objectives', nargs='+', default=['completion', 'safety', 'efficiency'])
    parser.add_argument('--jobs', type=int, default=2)
    options = parser.parse_args()
    bags = find_bags(options.bags)
    table = Table('objective', 'ranked by', 'AUC', '95 %', 'trials', 'pairs')
    with tempfile.TemporaryDirectory() as folder:
        for name in options.objectives:
            objective = load_objective(name)
            out = Path(folder, f'{name}.csv')
            rows = [r for r in score_bags(bags, objective, out, jobs=options.jobs).rows if r.r_ext]
            for term, value in terms_of(rows).items():
                auc, low, high, pairs = grouped_auc(rows, value)
                table.add_row(
                    name, term, f'{auc:.3f}', f'{low:.3f} - {high:.3f}', str(len(rows)), str(pairs)
                )
    Console().print(table)


def terms_of(rows: Sequence[ScoreRow]) -> dict[str, Callable[[ScoreRow], float]]:
    """Return what trials are ranked by, more is better."""
    terms: dict[str, Callable[[ScoreRow], float]] = {'R_ext': lambda row: row.r_ext}
    for stage in rows[0].stage_costs:
        terms[f'-C {stage}'] = lambda row, stage=stage: -row.stage_costs[stage]
    if all(row.r_self is not None for row in rows):
        terms['R_self (sum)'] = lambda row: row.r_self
        terms['R_self per token'] = lambda row: row.r_self_per_token
    return terms


def grouped_auc(
    rows: Sequence[ScoreRow], value: Callable[[ScoreRow], float]
) -> tuple[float, float, float, int]:
    """Return AUC, its interval and the number of pairs, over groups of the same start."""
    groups: dict[tuple, list[ScoreRow]] = defaultdict(list)
    for row in rows:
        groups[row.task, row.init_state].append(row)
    won, count = [], []
    for group in groups.values():
        good = np.array([value(row) for row in group if row.success])
        bad = np.array([value(row) for row in group if not row.success])
        if len(good) and len(bad):
            difference = good[:, None] - bad[None]
            won.append(float((difference > 0).sum() + 0.5 * (difference == 0).sum()))
            count.append(difference.size)
    won, count = np.array(won), np.array(count)
    chosen = np.random.default_rng(0).integers(0, len(won), (DRAWS, len(won)))
    drawn = won[chosen].sum(1) / count[chosen].sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return won.sum() / count.sum(), float(low), float(high), int(count.sum())


if __name__ == '__main__':
    main()
