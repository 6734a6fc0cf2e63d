"""Look at a cost program on recorded trials before it ranks anything.

For each cost: does it order successes before failures (AUC against the labels, among the trials
that reached its stage), does it fall while its stage goes on, and is it one of the three that are
always wrong: constant, inverted, never active. A person approves what is good (cost_approval.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from grape_episode.episode import Episode
from grape_trainer.scoring.cost import states_of
from grape_trainer.scoring.cost_program import CostFunction, Program
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.keypoint import KeypointTrack
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.stage import StageSpan, segment_plan
from grape_trainer.scoring.stage_proposal import StageProposal, choose_plan

CONSTANT, INVERTED, INACTIVE = 'constant', 'inverted', 'never active'
INVERTED_AUC = 0.4
FEW = 3  # successes or failures: below, an AUC says nothing


@dataclass(frozen=True)
class Trial:
    """One trial's costs.

    Attributes:
        name: of the bag.
        success: as labelled.
        costs: function name -> (N,) costs over the states of its stage; stages that the trial
            never reached have none.
        bag: its folder.
        spans: its stages, reached or not.
    """

    name: str
    success: bool
    costs: Mapping[str, np.ndarray]
    bag: Path
    spans: tuple[StageSpan, ...]


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


def trial_costs(
    episode: Episode,
    success: bool,
    track: KeypointTrack,
    objective: Objective,
    program: Program,
    sandbox: CostSandbox,
    proposal: StageProposal | None = None,
) -> Trial:
    """Run a program on one trial, in the stages of the objective's template or a proposal.

    Raises:
        StageError, KeypointError: what the recording lacks.
        ProgramError: a function failed on this trial; names function and state.
    """
    plan = choose_plan(proposal, episode.info, track.names, objective.template)
    cut = segment_plan(episode, track, plan, objective.segmentation, objective.motion)
    reached = {
        span.stage.number: states
        for span, states in states_of(episode, track, cut)
        if states is not None
    }
    costs = sandbox.evaluate(program, reached)
    return Trial(episode.info.episode_id, success, costs, episode.path, cut.spans)


def review(program: Program, trials: Sequence[Trial]) -> tuple[CostReview, ...]:
    """Return one review a function, in the program's order."""
    return tuple(_review(function, trials) for function in program.functions)


def judged_cost(function: CostFunction, curve: np.ndarray) -> float:
    """Return what a trial is compared by, of its costs (N,) over the stage.

    What must not happen counts by its worst state, everything else by how the stage ended.
    """
    return float(curve.max() if function.cost_class == 'collision' else curve[-1])


def _review(function: CostFunction, trials: Sequence[Trial]) -> CostReview:
    reached = [trial for trial in trials if function.name in trial.costs]
    curves = [trial.costs[function.name] for trial in reached]
    if not curves:
        return CostReview(function, 0, 0, None, None, np.nan, np.nan, (INACTIVE,))
    values = np.array([judged_cost(function, curve) for curve in curves])
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
