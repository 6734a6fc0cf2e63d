"""Pairs of trials that share no initial state, by how far apart they began (a real robot).

Within a task, every trial is the chosen one of a pair with each of the m nearest trials that score
less than it by more than `min_margin`; trials that began more than `nearest_m` apart are not
paired. The distance is initial_state.initial_distance_m's; each pair keeps its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from grape_trainer.scoring.initial_state import (
    InitialState,
    initial_distance_m,
    read_initial_state,
)
from grape_trainer.scoring.preference import (
    Pair,
    PairingError,
    PairSet,
    PairSettings,
    SkippedGroup,
    as_pair,
    no_pairs_text,
    rank,
    require_one_origin,
    require_one_policy,
    stamps_of,
    write_pairs_of,
)
from grape_trainer.scoring.score_table import ScoreRow, read_scores

ANY_STATE = -1  # in a skipped group: the task's trials of all initial states

log = logging.getLogger(__name__)


def pair_nearest(scores_csv: Path | str, settings: PairSettings, out_json: Path | str) -> PairSet:
    """Pair a score table into a pairs file; the initial states are read from the bags.

    Raises:
        ScoreTableError: a table that cannot be read.
        BagError, KeypointError: a scored bag that cannot be read, or without keypoints.
        PairingError: as make_nearest_pairs.

    """
    rows = read_scores(scores_csv)
    states = {row.bag: read_initial_state(row.bag) for row in rows if row.r_gcpg is not None}
    return write_pairs_of(scores_csv, make_nearest_pairs(rows, states, settings), out_json)


def make_nearest_pairs(
    rows: Sequence[ScoreRow], states: Mapping[Path, InitialState], settings: PairSettings
) -> PairSet:
    """Pair each trial of a task with the m nearest ones that score less.

    Args:
        rows: of a score table; those without R_GCPG are left out.
        states: of every scored row's bag.
        settings: `nearest_m` is the greatest distance, m.

    Raises:
        PairingError: no pair at all (the text says per task why), no `nearest_m`, rows of several
            objectives or code versions, or several policies in one task.

    """
    if settings.nearest_m is None:
        raise PairingError('nearest_m is not given; expected the greatest distance, m.')
    usable = [row for row in rows if row.r_gcpg is not None]
    require_one_origin(usable)
    pairs: list[Pair] = []
    skipped: list[SkippedGroup] = []
    for task, group in groupby(sorted(usable, key=lambda row: row.task), key=lambda r: r.task):
        ranked = rank(group)
        if not settings.allow_mixed_policies:
            require_one_policy(ranked)
        candidates = _candidates(ranked, states, settings)
        found = _nearest(candidates, settings)
        _log_distances(task, candidates, found, settings)
        pairs += found
        if not found:
            reason = _reason(candidates, settings)
            skipped.append(SkippedGroup(task, ANY_STATE, len(ranked), reason))
    if not pairs:
        raise PairingError(no_pairs_text(rows, skipped))
    return PairSet(settings, stamps_of(usable), tuple(pairs), tuple(skipped))


def _candidates(
    ranked: Sequence[ScoreRow], states: Mapping[Path, InitialState], settings: PairSettings
) -> list[Pair]:
    """Return all pairs that the scores allow, whatever their distance, by the chosen's rank."""
    return [
        as_pair(better, worse, initial_distance_m(states[better.bag], states[worse.bag]))
        for better in ranked
        for worse in ranked
        if better.r_gcpg - worse.r_gcpg > settings.min_margin
        and (not settings.require_outcome_gap or (better.success and not worse.success))
    ]


def _nearest(candidates: Sequence[Pair], settings: PairSettings) -> list[Pair]:
    """Keep each chosen trial's m nearest pairs within the distance."""
    found: list[Pair] = []
    for _, group in groupby(candidates, key=lambda pair: pair.chosen.bag):
        near = [pair for pair in group if pair.distance_m <= settings.nearest_m]
        near.sort(key=lambda pair: (pair.distance_m, pair.rejected.episode_id))
        found += near[: settings.m]
    return found


def _log_distances(
    task: str, candidates: Sequence[Pair], found: Sequence[Pair], settings: PairSettings
) -> None:
    distances = np.array([pair.distance_m for pair in candidates])
    known = distances[np.isfinite(distances)]
    if len(known) < len(distances):
        log.warning(
            '%s: %d pairs of trials have different keypoints and no distance; they are not made',
            task, len(distances) - len(known),
        )  # fmt: skip
    if len(known):
        low, first, middle, third, high = np.quantile(known, (0, 0.25, 0.5, 0.75, 1))
        log.info(
            '%s: %d possible pairs began %.3f to %.3f m apart (quartiles %.3f, %.3f, %.3f); %d '
            'above %g m are not made; %d pairs are, of the %d nearest of each trial',
            task, len(known), low, high, first, middle, third,
            (known > settings.nearest_m).sum(), settings.nearest_m, len(found), settings.m,
        )  # fmt: skip


def _reason(candidates: Sequence[Pair], settings: PairSettings) -> str:
    if not candidates:
        return 'no trial scores more than another by min_margin (and outcome, if required)'
    least = min(pair.distance_m for pair in candidates)
    return f'the nearest two began {least:.3g} m apart, above {settings.nearest_m:g} m'
