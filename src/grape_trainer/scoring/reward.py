"""The reward of a trial: R_GCPG = l1 R_self + l2 R_ext + l3 I_success (GRAPE Eqs. 8-11).

    R_ext     = prod_i exp(-C_i), computed as its logarithm -sum_i C_i  (Eq. 8)
    R_self    = sum over steps and tokens of the recorded log-probabilities  (Eq. 10)
    I_success = 1 for an episode whose outcome is success, else 0  (Eq. 11)

R_self is what was recorded when the trial was sampled (temperature 1, full vocabulary), never
recomputed here. A step in which the arm did not follow the policy (a person intervened, or the
guard held) says nothing of the policy: it is left out of R_self, and counted. Nothing is clipped
and no product is formed, so nothing underflows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grape_episode.episode import Episode, policy_steps
from grape_episode.outcome import Outcome
from grape_trainer.scoring.cost import StageCost, stage_costs
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.objective_sections import RewardSettings
from grape_trainer.scoring.score_setup import ScoreSetup, prepare
from grape_trainer.scoring.stage import segment_plan

# One term outweighs another when its weighted spread is this many times as large.
SWAMP_RATIO = 10.0


class RewardError(ValueError):
    """An episode that has no reward; the text says why."""


@dataclass(frozen=True)
class TrialScore:
    """Every term of one trial's reward, beside what made it.

    The r_self fields are None without recorded log-probabilities, and r_gcpg then too unless
    lambda_self is 0.
    """

    episode_id: str
    task: str
    init_state: int
    seed: int
    temperature: float
    adapter_id: str
    policy_sha256: str
    outcome: Outcome
    success: bool
    steps: int
    r_self: float | None
    r_self_per_token: float | None
    self_left_out: int  # steps that are not in r_self
    stages: tuple[StageCost, ...]
    log_r_ext: float
    r_ext: float
    r_gcpg: float | None
    collisions: int | None  # contacts that began; None where none are recorded
    path_length_m: float  # of the end effector
    grasps: int
    drops: int
    objective: str
    reward: RewardSettings
    keypoints: str  # privileged or perceived
    approval: str  # of the cost program: approved or unapproved; built-in without one
    cost_sha256: str
    config_sha256: str

    @property
    def left_out(self) -> tuple[str, ...]:
        """Constraints that look at contacts, of a trial that has none recorded."""
        return tuple(name for stage in self.stages for name in stage.left_out)


@dataclass(frozen=True)
class TermSpread:
    """How much one term of Eq. 9 varies over trials."""

    term: str  # self | ext | success
    std: float
    weight: float

    @property
    def weighted(self) -> float:
        """Its share in the spread of R_GCPG."""
        return self.std * self.weight


@dataclass(frozen=True)
class SpreadReport:
    """The spreads of the three terms over n trials, and what is to be said about them."""

    n: int
    terms: tuple[TermSpread, ...]
    warnings: tuple[str, ...]


def score_episode(
    episode: Episode, objective: Objective, outcome: Outcome | None = None
) -> TrialScore:
    """Score one trial; `score_trial` with what the objective says."""
    with CostSandbox() as sandbox:
        return score_trial(episode, prepare(objective), sandbox, outcome)


def score_trial(
    episode: Episode,
    setup: ScoreSetup,
    sandbox: CostSandbox,
    outcome: Outcome | None = None,
) -> TrialScore:
    """Score one trial.

    Args:
        episode: a recorded episode, with images where keypoints come from cameras. SceneState is
            then set aside with all that it knows, so that a simulated trial is scored as a real
            one is.
        setup: what to score it for.
        sandbox: for a cost program; without one it is never started.
        outcome: a person's later label, where it differs from the recorded outcome.

    Raises:
        RewardError: outcome error or interrupted, log-probabilities not finite.
        StageError, KeypointError, BagError, CostError: what the recording lacks.
        ProgramError: a function of the program failed on this trial.
        SandboxError: the sandbox does not work, whatever the trial.

    """
    info = episode.info
    outcome = Outcome(info.outcome if outcome is None else outcome)
    if outcome not in (Outcome.SUCCESS, Outcome.FAILURE):
        raise RewardError(
            f"episode '{info.episode_id}' ended with '{outcome}' ({info.detail or 'no detail'}); "
            'only success and failure say something about the policy.'
        )
    objective = setup.objective
    track = setup.source.track(episode)
    if setup.from_cameras:
        episode = replace(episode, scene=None)
    plan = setup.plan(info, track.names)
    segmentation = segment_plan(episode, track, plan, objective.segmentation, objective.motion)
    stages = stage_costs(episode, track, segmentation, objective, setup.generated, sandbox)
    log_r_ext = -math.fsum(stage.cost for stage in stages)
    own_steps = policy_steps(episode)
    r_self, r_self_per_token = _self_reward(episode, own_steps)
    success = outcome is Outcome.SUCCESS
    return TrialScore(
        episode_id=info.episode_id,
        task=info.task,
        init_state=info.init_state,
        seed=info.seed,
        temperature=info.temperature,
        adapter_id=info.adapter_id,
        policy_sha256=str(info.policy.get('policy_sha256', '')),
        outcome=outcome,
        success=success,
        steps=len(episode.gripper_command),
        r_self=r_self,
        r_self_per_token=r_self_per_token,
        self_left_out=int((~own_steps).sum()) if r_self is not None else 0,
        stages=stages,
        log_r_ext=log_r_ext,
        r_ext=math.exp(log_r_ext),
        r_gcpg=gcpg_reward(
            r_self, r_self_per_token, math.exp(log_r_ext), success, objective.reward
        ),
        collisions=None if episode.scene is None else collision_count(episode.scene.collisions),
        path_length_m=_path_length_m(episode.ee_position_m),
        grasps=segmentation.grasps,
        drops=segmentation.drops,
        objective=objective.name,
        reward=objective.reward,
        keypoints=track.origin,
        approval=setup.approval,
        cost_sha256=setup.costs.sha256,
        config_sha256=setup.config_sha256,
    )


def gcpg_reward(
    r_self: float | None,
    r_self_per_token: float | None,
    r_ext: float,
    success: bool,
    reward: RewardSettings,
) -> float | None:
    """Return Eq. 9; None where lambda_self asks for log-probabilities that are not there."""
    own = r_self if reward.self_reward == 'sum' else r_self_per_token
    if own is None and reward.lambda_self > 0:
        return None
    weighted_self = reward.lambda_self * own if own is not None else 0.0
    return weighted_self + reward.lambda_ext * r_ext + reward.lambda_success * success


def collision_count(collisions: Sequence[Sequence[str]]) -> int:
    """Return how many contacts began: pairs of a state that the state before did not have."""
    before: set[str] = set()
    count = 0
    for state in collisions:
        count += len(set(state) - before)
        before = set(state)
    return count


def spread_report(
    r_self: Sequence[float],
    r_ext: Sequence[float],
    success: Sequence[bool],
    reward: RewardSettings,
) -> SpreadReport:
    """Compare the weighted spreads of the three terms over the same trials.

    Args:
        r_self: as it enters Eq. 9 (sum or per token); empty where none was recorded.
        r_ext: one a trial.
        success: one a trial.
        reward: the weights.

    """
    terms = (
        TermSpread('self', _std(r_self), reward.lambda_self),
        TermSpread('ext', _std(r_ext), reward.lambda_ext),
        TermSpread('success', _std([float(flag) for flag in success]), reward.lambda_success),
    )
    return SpreadReport(len(r_ext), terms, tuple(_swamp_warnings(terms)) if len(r_ext) > 1 else ())


def _swamp_warnings(terms: Sequence[TermSpread]) -> list[str]:
    largest = max(terms, key=lambda term: term.weighted)
    warnings = []
    for term in terms:
        if term.weight == 0 or term is largest:
            continue
        if term.std == 0:
            warnings.append(f'{term.term} is the same in every trial: it does not rank them.')
        elif largest.weighted > SWAMP_RATIO * term.weighted:
            balanced = largest.weighted / term.std
            warnings.append(
                f'{largest.term} (lambda {largest.weight:g} x spread {largest.std:.3g}) outweighs '
                f'{term.term} (lambda {term.weight:g} x spread {term.std:.3g}) '
                f'{largest.weighted / term.weighted:.0f} times: the ranking hardly sees '
                f'{term.term}. lambda_{term.term} {balanced:.2g} would balance them.'
            )
    return warnings


def _self_reward(episode: Episode, own_steps: np.ndarray) -> tuple[float | None, float | None]:
    log_probs = np.asarray(episode.token_log_probs, dtype=np.float64)
    if log_probs.size == 0 or not own_steps.any():
        return None, None
    if not np.isfinite(log_probs).all():
        step = int(np.argwhere(~np.isfinite(log_probs))[0][0])
        raise RewardError(
            f"episode '{episode.info.episode_id}' has a token log-probability that is not finite "
            f'at step {step}; expected numbers up to 0. Collect the trial again.'
        )
    own = log_probs[own_steps]
    total = math.fsum(own.ravel())
    return total, total / own.size


def _path_length_m(positions_m: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(np.asarray(positions_m), axis=0), axis=1).sum())


def _std(values: Sequence[float]) -> float:
    """Return the population standard deviation; 0 for no or one value."""
    return statistics.pstdev(values) if len(values) > 1 else 0.0
