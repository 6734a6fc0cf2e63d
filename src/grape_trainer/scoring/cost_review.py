"""Look at a cost program on recorded trials before it ranks anything.

For each cost: does it order successes before failures (AUC against the labels, among the trials
that reached its stage), does it fall while its stage goes on, and is it one of the three that are
always wrong: constant, inverted, never active. A person approves what is good; the approval names
the sha256 of the text, so that another text is another program.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from grape_episode.episode import Episode
from grape_trainer.scoring.cost import states_of
from grape_trainer.scoring.cost_program import CostFunction, Program
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.keypoint import KeypointTrack
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.stage import segment_plan
from grape_trainer.scoring.stage_plan import plan_for

CONSTANT, INVERTED, INACTIVE = 'constant', 'inverted', 'never active'
INVERTED_AUC = 0.4
FEW = 3  # successes or failures: below, an AUC says nothing
SUFFIX = '.approval.json'


class ApprovalError(ValueError):
    """A program that nobody approved; the text says what to do."""


@dataclass(frozen=True)
class Trial:
    """One trial's costs.

    Attributes:
        name: of the bag.
        success: as labelled.
        costs: function name -> (N,) costs over the states of its stage; stages that the trial
            never reached have none.
    """

    name: str
    success: bool
    costs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CostReview:
    """What the trials say about one cost.

    Attributes:
        function: of the program.
        trials: that reached its stage.
        successes: among them.
        auc: share of (success, failure) pairs in which the success costs less, ties half; None
            with fewer than 3 of either.
        monotonicity: median over trials of Spearman's correlation of cost and time within the
            stage; -1: it always falls; None where it varies in no trial.
        lowest, highest: over all states.
        flags: what is wrong with it: constant, inverted, never active.
    """

    function: CostFunction
    trials: int
    successes: int
    auc: float | None
    monotonicity: float | None
    lowest: float
    highest: float
    flags: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Approval:
    """That a person looked at a program and wants it used."""

    sha256: str
    by: str
    at: str  # UTC, ISO 8601
    note: str
    trials: int  # that it was reviewed on
    flags: tuple[str, ...]  # that the person accepted


def trial_costs(
    episode: Episode,
    success: bool,
    track: KeypointTrack,
    objective: Objective,
    program: Program,
    sandbox: CostSandbox,
) -> Trial:
    """Run a program on one trial.

    Raises:
        StageError, KeypointError: what the recording lacks.
        ProgramError: a function failed on this trial; names function and state.
    """
    plan = plan_for(episode.info, track.names, objective.template)
    cut = segment_plan(episode, track, plan, objective.segmentation, objective.motion)
    reached = {
        span.stage.number: states
        for span, states in states_of(episode, track, cut)
        if states is not None
    }
    costs = sandbox.evaluate(program, reached)
    return Trial(episode.info.episode_id, success, costs)


def review(program: Program, trials: Sequence[Trial]) -> tuple[CostReview, ...]:
    """Return one review a function, in the program's order."""
    return tuple(_review(function, trials) for function in program.functions)


def _review(function: CostFunction, trials: Sequence[Trial]) -> CostReview:
    reached = [trial for trial in trials if function.name in trial.costs]
    curves = [trial.costs[function.name] for trial in reached]
    if not curves:
        return CostReview(function, 0, 0, None, None, np.nan, np.nan, (INACTIVE,))
    # What must not happen counts by its worst state, everything else by how the stage ended.
    at_worst = function.cost_class == 'collision'
    values = np.array([curve.max() if at_worst else curve[-1] for curve in curves])
    good = np.array([trial.success for trial in reached])
    auc = _auc(values[good], values[~good])
    everything = np.concatenate(curves)
    lowest, highest = float(everything.min()), float(everything.max())
    flags = []
    if highest - lowest < 1e-9:
        flags.append(CONSTANT)
    if highest <= 0.0:
        flags.append(INACTIVE)
    if auc is not None and auc < INVERTED_AUC:
        flags.append(INVERTED)
    return CostReview(
        function,
        len(reached),
        int(good.sum()),
        auc,
        _monotonicity(curves),
        lowest,
        highest,
        tuple(flags),
    )


def _auc(good: np.ndarray, bad: np.ndarray) -> float | None:
    if min(len(good), len(bad)) < FEW:
        return None
    difference = bad[None] - good[:, None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _monotonicity(curves: Sequence[np.ndarray]) -> float | None:
    found = [
        float(spearmanr(np.arange(len(curve)), curve).statistic)
        for curve in curves
        if len(curve) > 2 and np.ptp(curve) > 1e-9
    ]
    return float(np.median(found)) if found else None


def approve(
    path: Path, program: Program, reviews: Sequence[CostReview], trials: int, note: str = ''
) -> Approval:
    """Record that the person at the keyboard wants this text used, beside the file."""
    flags = tuple(f'{r.function.name}: {flag}' for r in reviews for flag in r.flags)
    at = datetime.now(UTC).isoformat(timespec='seconds')
    approval = Approval(program.sha256, getpass.getuser(), at, note, trials, flags)
    kept = [each for each in read_approvals(path) if each.sha256 != program.sha256]
    partial = _file(path).with_suffix('.tmp')
    partial.write_text(json.dumps([asdict(each) for each in [*kept, approval]], indent=1) + '\n')
    os.replace(partial, _file(path))
    return approval


def read_approvals(path: Path) -> list[Approval]:
    """Return the approvals of a program's file, [] where there are none.

    Raises:
        ApprovalError: the file of approvals is damaged.
    """
    file = _file(path)
    if not file.is_file():
        return []
    try:
        return [
            Approval(**{**e, 'flags': tuple(e['flags'])}) for e in json.loads(file.read_text())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ApprovalError(
            f"'{file}' is damaged ({error}); review the program again and approve it"
        ) from error


def require_approval(path: Path, program: Program) -> Approval:
    """Return the approval of this very text.

    Raises:
        ApprovalError: there is none; says how to give one.
    """
    for approval in read_approvals(path):
        if approval.sha256 == program.sha256:
            return approval
    others = len(read_approvals(path))
    changed = f' (it was changed since: {others} other texts were)' if others else ''
    raise ApprovalError(
        f"the cost program '{path}' ({program.sha256[:12]}) was not approved{changed}. Look at it "
        f'on recorded trials: grape costs review {path} BAGS --approve'
    )


def _file(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
