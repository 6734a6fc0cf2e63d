"""Scores many bags, resumably.

A run that is stopped keeps its finished rows; the next one scores only the rest, and whatever was
scored with another cost, configuration, code or label. A bag that cannot be read is reported in
its row and scoring goes on. A sandbox that does not work is no trial's fault: it ends the run.

The text of the costs is kept beside the table, as costs/<cost_sha256>.txt.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from grape_episode.bag import BagError, read_episode, read_info
from grape_episode.label import effective_outcome
from grape_episode.outcome import Outcome
from grape_episode.version import code_version
from grape_trainer.scoring.cost import CostError, CostProgram
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.cost_source import ProgramError
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.reward import (
    RewardError,
    SpreadReport,
    TrialScore,
    score_trial,
    spread_report,
)
from grape_trainer.scoring.score_setup import ScoreSetup, prepare
from grape_trainer.scoring.score_table import (
    CORRUPTED,
    FAILED,
    NO_LOG_PROBS,
    SCORED,
    UNSCORABLE,
    ScoreRow,
    ScoreTableError,
    append_score,
    read_scores,
    write_scores,
)
from grape_trainer.scoring.stage import StageError

NO_R_SELF = (
    'no R_self: steps without token log-probabilities (an expert, a person, or a served policy '
    'without them); ranked only with lambda_self 0'
)
BAGS_A_PROCESS = 8  # fewer do not pay for its start
COSTS_FOLDER = 'costs'  # beside the table


@dataclass(frozen=True)
class ScoreReport:
    """What score_bags did."""

    rows: tuple[ScoreRow, ...]
    resumed: int  # rows taken over from the table that was there
    spread: SpreadReport

    def with_status(self, *statuses: str) -> tuple[ScoreRow, ...]:
        """Return the rows of these statuses."""
        return tuple(row for row in self.rows if row.status in statuses)

    @property
    def exit_code(self) -> int:
        """Return 1 if a bag is corrupted or unscorable or none was scored, else 0."""
        scored = self.with_status(SCORED, NO_LOG_PROBS)
        return int(bool(self.with_status(*FAILED)) or not scored)


def score_bags(
    bags: Iterable[Path | str],
    objective: Objective | ScoreSetup,
    out_csv: Path | str,
    progress: Callable[[int, int, ScoreRow], None] | None = None,
    jobs: int = 1,
) -> ScoreReport:
    """Score bags into a table; one that cannot be scored is reported in its row, and it goes on.

    Args:
        bags: bag folders; a bag named twice is scored once.
        objective: what to score them for; `prepare` reads what it names.
        out_csv: the table; an existing one is resumed, rows of bags not asked for are dropped.
        progress: called with (done, total, row) after each bag.
        jobs: processes to score with; the table is the same for any number.

    Raises:
        ScoreTableError: no bags, or out_csv is something else than a score table.
        ApprovalError, ObjectiveError, KeypointError: as `prepare`, before anything is scored.
        SandboxError: cost programs cannot be run here; finished rows are kept.

    """
    paths = list(dict.fromkeys(Path(bag).resolve() for bag in bags))
    if not paths:
        raise ScoreTableError('There are no bags to score. Name bag folders or a folder of them.')
    out_csv = Path(out_csv)
    setup = objective if isinstance(objective, ScoreSetup) else prepare(objective)
    names = setup.stage_names
    stamps = {
        'objective': setup.objective.name,
        'approval': setup.approval,
        'cost_sha256': setup.costs.sha256,
        'config_sha256': setup.config_sha256,
        'code_version': code_version(),
    }
    kept = _still_valid(out_csv, paths, stamps)
    write_scores(out_csv, kept.values(), names)
    _keep_text(out_csv.parent, setup.costs)
    rows = dict(kept)
    for done, row in enumerate(kept.values(), start=1):
        if progress is not None:
            progress(done, len(paths), row)
    for row in _scored([path for path in paths if path not in kept], setup, stamps, jobs):
        append_score(out_csv, row, names)
        rows[row.bag] = row
        if progress is not None:
            progress(len(rows), len(paths), row)
    ordered = tuple(rows[path] for path in paths)
    write_scores(out_csv, ordered, names)
    return ScoreReport(ordered, len(kept), spread_of(ordered, setup.objective))


def _scored(
    paths: Sequence[Path], setup: ScoreSetup, stamps: Mapping[str, str], jobs: int
) -> Iterator[ScoreRow]:
    """Yield each bag's row as soon as it is there; each process has one sandbox."""
    jobs = min(jobs, len(paths) // BAGS_A_PROCESS)
    if jobs <= 1:
        with CostSandbox() as sandbox:
            yield from (score_bag(path, setup, stamps, sandbox) for path in paths)
        return
    # Spawned: a fork would copy locks that torch's and OpenMP's threads hold.
    pool = ProcessPoolExecutor(
        jobs, get_context('spawn'), initializer=_begin_process, initargs=(setup, stamps)
    )
    try:
        waiting = [pool.submit(_score_in_process, path) for path in paths]
        for future in as_completed(waiting):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process(setup: ScoreSetup, stamps: Mapping[str, str]) -> None:
    """Keep what is the same for all bags of this process."""
    sandbox = CostSandbox()
    atexit.register(sandbox.close)
    _process.update(setup=setup, stamps=stamps, sandbox=sandbox)


def _score_in_process(path: Path) -> ScoreRow:
    return score_bag(path, **_process)


_process: dict[str, object] = {}


def score_bag(
    path: Path, setup: ScoreSetup, stamps: Mapping[str, str], sandbox: CostSandbox
) -> ScoreRow:
    """Return the row of one bag, whatever is in it; stamps go into the row as they are.

    Raises:
        SandboxError: the sandbox does not work, whatever the bag.

    """
    about: dict[str, object] = {'bag': path, **stamps}
    try:
        info = read_info(path)
        outcome = Outcome(effective_outcome(path))
        about |= {
            'episode_id': info.episode_id,
            'task': info.task,
            'init_state': info.init_state,
            'seed': info.seed,
            'temperature': info.temperature,
            'adapter_id': info.adapter_id,
            'policy_sha256': str(info.policy.get('policy_sha256', '')),
            'outcome': str(outcome),
            'steps': info.steps,
        }
        if outcome not in (Outcome.SUCCESS, Outcome.FAILURE):
            return ScoreRow(**about, status=str(outcome), detail=_one_line(info.detail))
        episode = read_episode(path, images=setup.from_cameras)
    except (BagError, OSError) as error:
        return ScoreRow(**about, status=CORRUPTED, detail=_one_line(error))
    try:
        score = score_trial(episode, setup, sandbox, outcome)
    except (RewardError, StageError, KeypointError, BagError, CostError, ProgramError) as error:
        return ScoreRow(**about, status=UNSCORABLE, detail=_one_line(error))
    return ScoreRow(**about | _score_fields(score))


def _keep_text(folder: Path, costs: CostProgram) -> None:
    """Write the text of the costs under its sha256, unless it is there."""
    kept = folder / COSTS_FOLDER / f'{costs.sha256}.txt'
    if kept.is_file():
        return
    kept.parent.mkdir(exist_ok=True)
    partial = kept.with_name(f'{kept.name}.{os.getpid()}.partial')
    partial.write_bytes(costs.text.encode())
    os.replace(partial, kept)


def spread_of(rows: Sequence[ScoreRow], objective: Objective) -> SpreadReport:
    """Return how much the three terms of Eq. 9 vary over the scored rows."""
    scored = [row for row in rows if row.r_ext is not None]
    per_token = objective.reward.self_reward == 'per_token'
    own = [row.r_self_per_token if per_token else row.r_self for row in scored]
    return spread_report(
        [value for value in own if value is not None],
        [row.r_ext for row in scored],
        [bool(row.success) for row in scored],
        objective.reward,
    )


def _still_valid(
    out_csv: Path, paths: Sequence[Path], stamps: Mapping[str, str]
) -> dict[Path, ScoreRow]:
    """Return the rows of an existing table that another run would only repeat."""
    if not out_csv.is_file():
        return {}
    asked = set(paths)
    kept = {}
    for row in read_scores(out_csv):
        same = all(vars(row)[name] == value for name, value in stamps.items())
        if row.bag in asked and same and row.status not in FAILED and _unchanged(row):
            kept[row.bag] = row
    return {path: kept[path] for path in paths if path in kept}


def _unchanged(row: ScoreRow) -> bool:
    try:
        return (
            read_info(row.bag).episode_id == row.episode_id
            and str(effective_outcome(row.bag)) == row.outcome
        )
    except (BagError, OSError):
        return False


def _score_fields(score: TrialScore) -> dict[str, object]:
    reward = score.reward
    return {
        'success': score.success,
        'steps': score.steps,
        'status': SCORED if score.r_self is not None else NO_LOG_PROBS,
        'detail': '' if score.r_self is not None else NO_R_SELF,
        'r_self': score.r_self,
        'r_self_per_token': score.r_self_per_token,
        'self_left_out': score.self_left_out,
        'stage_costs': {stage.stage: stage.cost for stage in score.stages},
        'log_r_ext': score.log_r_ext,
        'r_ext': score.r_ext,
        'r_gcpg': score.r_gcpg,
        'collisions': score.collisions,
        'path_length_m': score.path_length_m,
        'grasps': score.grasps,
        'drops': score.drops,
        'left_out': ' '.join(score.left_out),
        'lambda_self': reward.lambda_self,
        'lambda_ext': reward.lambda_ext,
        'lambda_success': reward.lambda_success,
        'self_reward': reward.self_reward,
        'keypoints': score.keypoints,
    }


def _one_line(text: object) -> str:
    return ' '.join(str(text).split())
