"""Preference pairs: the best trials against the worst of the same task and initial state.

GRAPE Sec. 2.4 and Algorithm 1, lines 11-12: rank by R_GCPG, pair the top m with the bottom m, each
with each. A pair is kept only where the chosen trial scores more than the rejected one, so that
groups with fewer than 2 m trials give fewer pairs. The order is deterministic.

`ranking: random` is the paper's ablation: the same pairing of an order that is drawn instead of
ranked. Trials that share no initial state are paired by preference_nearest.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from grape_trainer.scoring.score_table import ScoreRow, portable_path, read_scores

VERSION = 1
RANKINGS = ('gcpg', 'random')
_STAMPS = ('objective', 'cost_sha256', 'config_sha256', 'code_version')


class PairingError(ValueError):
    """Scores that give no pairs, or should not be paired; the text says what to do."""


@dataclass(frozen=True)
class PairSettings:
    """How to pair."""

    m: int = 2  # top m against bottom m of each group
    min_margin: float = 0.0  # chosen score minus rejected score has to be more than this
    require_outcome_gap: bool = False  # only a success over a failure
    allow_mixed_policies: bool = False  # trials of several adapters or policies in one group
    ranking: str = 'gcpg'  # 'random': the order is drawn, scores do not matter
    seed: int = 0  # of the random ranking
    nearest_m: float | None = None  # pair trials that began at most this far apart, m

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.m < 1:
            raise PairingError(f'm is {self.m}; expected 1 or more.')
        if not self.min_margin >= 0:
            raise PairingError(f'min_margin is {self.min_margin}; expected 0 or more.')
        if self.ranking not in RANKINGS:
            raise PairingError(
                f"ranking is '{self.ranking}'; expected one of: {', '.join(RANKINGS)}."
            )
        if self.ranking == 'random' and (
            self.min_margin or self.require_outcome_gap or self.nearest_m is not None
        ):
            raise PairingError(
                'Random pairs look at no score, outcome or distance; leave out min_margin, '
                'require_outcome_gap and nearest_m.'
            )
        if self.nearest_m is not None and not self.nearest_m > 0:
            raise PairingError(f'nearest_m is {self.nearest_m}; expected metres above 0.')


@dataclass(frozen=True)
class Trial:
    """One side of a pair."""

    bag: Path
    episode_id: str
    score: float  # R_GCPG
    outcome: str
    adapter_id: str


@dataclass(frozen=True)
class Pair:
    """Two trials of one task and initial state; the chosen one scored more.

    Paired by distance, they began `distance_m` apart and `init_state` is the chosen trial's.
    """

    task: str
    init_state: int
    chosen: Trial
    rejected: Trial
    distance_m: float | None = None

    @property
    def margin(self) -> float:
        """Chosen score minus rejected score; above 0 but for random pairs."""
        return self.chosen.score - self.rejected.score


@dataclass(frozen=True)
class SkippedGroup:
    """A task and initial state that gave no pair, and why."""

    task: str
    init_state: int
    trials: int
    reason: str


@dataclass(frozen=True)
class PairSet:
    """Pairs beside what made them."""

    settings: PairSettings
    hashes: dict[str, str]  # objective, cost_sha256, config_sha256, code_version, scores_sha256
    pairs: tuple[Pair, ...]
    skipped: tuple[SkippedGroup, ...]


def make_pairs(rows: Sequence[ScoreRow], settings: PairSettings) -> PairSet:
    """Rank the scored rows of each task and initial state, and pair top with bottom.

    Rows without R_GCPG (errors, corrupted bags, experts) are left out.

    Raises:
        PairingError: no pair at all (the text says per group why and what to do), rows of several
            objectives or code versions, or several policies in one group.

    """
    usable = [row for row in rows if row.r_gcpg is not None]
    require_one_origin(usable)
    pairs: list[Pair] = []
    skipped: list[SkippedGroup] = []
    for (task, init_state), group in groupby(sorted(usable, key=_group), key=_group):
        ranked = rank(group)
        if settings.ranking == 'random':
            ranked = drawn_order(ranked, settings.seed)
        if not settings.allow_mixed_policies:
            require_one_policy(ranked)
        found, reason = _pairs_of_group(ranked, settings)
        pairs += found
        if not found:
            skipped.append(SkippedGroup(task, init_state, len(ranked), reason))
    if not pairs:
        raise PairingError(no_pairs_text(rows, skipped))
    return PairSet(settings, stamps_of(usable), tuple(pairs), tuple(skipped))


def pair_scores(scores_csv: Path | str, settings: PairSettings, out_json: Path | str) -> PairSet:
    """Pair a score table into a pairs file.

    Raises:
        ScoreTableError: a table that cannot be read.
        PairingError: as make_pairs.

    """
    return write_pairs_of(scores_csv, make_pairs(read_scores(scores_csv), settings), out_json)


def write_pairs_of(scores_csv: Path | str, made: PairSet, out_json: Path | str) -> PairSet:
    """Write pairs beside the hash of the table that they were made from; return both."""
    digest = hashlib.sha256(Path(scores_csv).read_bytes()).hexdigest()
    made = replace(made, hashes=made.hashes | {'scores_sha256': digest})
    write_pairs(out_json, made)
    return made


def write_pairs(path: Path | str, pair_set: PairSet) -> None:
    """Write pairs.json by renaming; bags are relative to its folder where below it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        'version': VERSION,
        'settings': asdict(pair_set.settings),
        'hashes': pair_set.hashes,
        'pairs': [_entry(pair, path.parent) for pair in pair_set.pairs],
        'skipped': [asdict(group) for group in pair_set.skipped],
    }
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(partial, path)


def read_pairs(path: Path | str) -> PairSet:
    """Read pairs.json; bags come back absolute.

    Raises:
        PairingError: no such file, another version, or not the form that write_pairs makes.

    """
    path = Path(path)
    if not path.is_file():
        raise PairingError(f"There is no pairs file '{path}'. Make one with 'grape pair'.")
    try:
        content = json.loads(path.read_text())
        if content['version'] != VERSION:
            raise PairingError(
                f"'{path}' has version {content['version']}; expected {VERSION}. Make it again "
                "with 'grape pair'."
            )
        pairs = tuple(
            Pair(
                task=entry['task'],
                init_state=entry['init_state'],
                chosen=_trial(entry['chosen'], path.parent),
                rejected=_trial(entry['rejected'], path.parent),
                distance_m=entry.get('distance_m'),
            )
            for entry in content['pairs']
        )
        return PairSet(
            PairSettings(**content['settings']),
            content['hashes'],
            pairs,
            tuple(SkippedGroup(**group) for group in content['skipped']),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PairingError(
            f"'{path}' is not a pairs file ({error!r}). Make it again with 'grape pair'."
        ) from error


def rank(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    """Return scored rows, the highest R_GCPG first; equals by name."""
    return sorted(rows, key=lambda row: (-row.r_gcpg, row.episode_id, str(row.bag)))


def drawn_order(rows: Iterable[ScoreRow], seed: int) -> list[ScoreRow]:
    """Return rows in an order drawn from (seed, episode id): a trial's place tells no score."""
    return sorted(
        rows, key=lambda row: hashlib.sha256(f'{seed}/{row.episode_id}'.encode()).digest()
    )


def _pairs_of_group(ranked: Sequence[ScoreRow], settings: PairSettings) -> tuple[list[Pair], str]:
    """Return the pairs of one ranked group, or none and the reason."""
    count = len(ranked)
    if count < 2:
        return [], 'fewer than 2 scored trials'
    ends = [
        (ranked[i], ranked[j])
        for i in range(min(settings.m, count))
        for j in reversed(range(max(count - settings.m, 0), count))
        if i < j
    ]
    if settings.ranking == 'random':
        return [as_pair(b, w) for b, w in ends], ''
    if ranked[0].r_gcpg == ranked[-1].r_gcpg:
        return [], 'all trials score the same'
    candidates = [(b, w) for b, w in ends if b.r_gcpg > w.r_gcpg]
    if settings.require_outcome_gap:
        candidates = [(b, w) for b, w in candidates if b.success and not w.success]
        if not candidates:
            return [], 'no success over a failure (require_outcome_gap)'
    wide = [(b, w) for b, w in candidates if b.r_gcpg - w.r_gcpg > settings.min_margin]
    if not wide:
        largest = max(b.r_gcpg - w.r_gcpg for b, w in candidates)
        return [], f'the largest margin is {largest:.3g}, min_margin {settings.min_margin:g}'
    return [as_pair(b, w) for b, w in wide], ''


def as_pair(chosen: ScoreRow, rejected: ScoreRow, distance_m: float | None = None) -> Pair:
    """Return two rows as a pair."""
    return Pair(chosen.task, chosen.init_state, _as_trial(chosen), _as_trial(rejected), distance_m)


def stamps_of(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """Return what the scores were made from."""
    return {name: vars(rows[0])[name] for name in _STAMPS}


def require_one_origin(rows: Sequence[ScoreRow]) -> None:
    """Raise PairingError if the rows' scores were made in several ways."""
    for name in (*_STAMPS, 'lambda_self', 'lambda_ext', 'lambda_success', 'self_reward'):
        values = sorted({str(vars(row)[name]) for row in rows})
        if len(values) > 1:
            raise PairingError(
                f'the scores differ in {name}: {", ".join(values)}. Scores of different making '
                "do not rank one another: score all bags again with one 'grape score'."
            )


def require_one_policy(group: Sequence[ScoreRow]) -> None:
    """Raise PairingError if several policies sampled the group."""
    made_by = sorted({(row.policy_sha256[:8], row.adapter_id) for row in group})
    if len(made_by) > 1:
        names = ', '.join(f'policy {sha or "?"} adapter {adapter}' for sha, adapter in made_by)
        raise PairingError(
            f'task {group[0].task}, initial state {group[0].init_state} mixes trials of: {names}. '
            'The reference policy is the one that sampled, so a group should have one. Pair each '
            "policy's trials alone, or allow mixed policies."
        )


def no_pairs_text(rows: Sequence[ScoreRow], skipped: Iterable[SkippedGroup]) -> str:
    """Say why there is no pair, and what to do."""
    if all(row.r_gcpg is None for row in rows):
        counts = sorted({(row.status, sum(r.status == row.status for r in rows)) for row in rows})
        found = ', '.join(f'{n} {status}' for status, n in counts) or 'no rows'
        return (
            f'No trial has an R_GCPG score; the table has: {found}. Collect trials with a policy '
            "that gives log-probabilities ('grape collect'; pi0 and Octo give none), then score "
            'them; or rank by what happened alone, with an objective that has lambda_self: 0.'
        )
    lines = ['No pair could be made:']
    lines += [
        f'  {group.task} initial state {group.init_state}, {group.trials} trials: {group.reason}'
        for group in skipped
    ]
    lines.append(
        'Collect more trials of each initial state (--trials), or sample at a higher temperature '
        '(--temperature), so that trials of one initial state differ.'
    )
    return '\n'.join(lines)


def _group(row: ScoreRow) -> tuple[str, int]:
    return row.task, -1 if row.init_state is None else row.init_state


def _as_trial(row: ScoreRow) -> Trial:
    return Trial(row.bag, row.episode_id, float(row.r_gcpg), row.outcome, row.adapter_id)


def _entry(pair: Pair, folder: Path) -> dict[str, object]:
    entry = {
        'task': pair.task,
        'init_state': pair.init_state,
        'margin': pair.margin,
        'chosen': _side(pair.chosen, folder),
        'rejected': _side(pair.rejected, folder),
    }
    return entry if pair.distance_m is None else entry | {'distance_m': pair.distance_m}


def _side(trial: Trial, folder: Path) -> dict[str, object]:
    return asdict(trial) | {'bag': portable_path(trial.bag, folder)}


def _trial(entry: dict[str, object], folder: Path) -> Trial:
    return Trial(**entry | {'bag': (folder / str(entry['bag'])).resolve()})
