"""Which trials are desirable, one by one: labels for KTO, which needs no pairs.

From a score table by one of three rules, or from bags alone by their outcome. `median` is of the
trials of one task, because R_GCPG grows with a task's length: what is above it is desirable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from grape_episode.bag import find_bags
from grape_episode.label import effective_outcome
from grape_episode.outcome import Outcome
from grape_trainer.scoring.score_table import ScoreRow, read_scores

DECIDED = (Outcome.SUCCESS, Outcome.FAILURE)

log = logging.getLogger(__name__)


class DesirabilityError(ValueError):
    """Trials that give no labels, or one kind only; the text says what to do."""


def label_scores(
    scores_csv: Path | str, rule: str, threshold: float | None = None
) -> dict[Path, bool]:
    """Return each scored bag and whether its trial is desirable, in the table's order.

    Args:
        scores_csv: of `grape score`.
        rule: 'success'; 'median', R_GCPG above the median of the task's trials; or 'threshold'.
        threshold: R_GCPG has to be above it.

    Raises:
        ScoreTableError: a table that cannot be read.
        DesirabilityError: no scored row, or one kind of trial only.

    """
    rows = read_scores(scores_csv)
    scored = [row for row in rows if row.r_gcpg is not None]
    _log_left_out(len(rows) - len(scored), len(rows), 'no R_GCPG')
    labels = {row.bag: _is_desirable(row, scored, rule, threshold) for row in scored}
    return _both_kinds(labels, f"'{scores_csv}'", rule)


def label_bags(folders: Sequence[Path]) -> dict[Path, bool]:
    """Return each decided bag below `folders` and whether it is a success (label, else recorded).

    Raises:
        DesirabilityError: no decided bag, or one kind of trial only.

    """
    bags = find_bags(folders)
    outcomes = {bag.resolve(): effective_outcome(bag) for bag in bags}
    labels = {bag: found == Outcome.SUCCESS for bag, found in outcomes.items() if found in DECIDED}
    _log_left_out(len(bags) - len(labels), len(bags), 'neither success nor failure')
    return _both_kinds(labels, ', '.join(map(str, folders)), 'success')


def _is_desirable(
    row: ScoreRow, scored: Sequence[ScoreRow], rule: str, threshold: float | None
) -> bool:
    if rule == 'success':
        return bool(row.success)
    if rule == 'threshold':
        return row.r_gcpg > threshold
    return row.r_gcpg > median(other.r_gcpg for other in scored if other.task == row.task)


def _both_kinds(labels: dict[Path, bool], where: str, rule: str) -> dict[Path, bool]:
    good = sum(labels.values())
    if not 0 < good < len(labels):
        raise DesirabilityError(
            f'{where} has {good} desirable and {len(labels) - good} undesirable trials by the '
            f"rule '{rule}'; expected at least one of each. Collect more trials, or choose "
            'another rule (desirable: median ranks by R_GCPG).'
        )
    return labels


def _log_left_out(count: int, total: int, reason: str) -> None:
    if count:
        log.info('%d of %d trials are left out: %s', count, total, reason)
