"""Train a LoRA adapter by PPO, GRPO or TGRPO on recorded trials (`grape train ppo|grpo|tgrpo`).

    bags + policy [+ start adapter that played them]  ->  adapter folder [with a value head]

1. Every trial once under the policy as it is, without gradient: its log-probabilities, checked
   against the recorded ones, and PPO's values (reference.py).
2. Advantages of all steps, from the rewards (rl_trials.py, objective/).
3. Optimiser steps over shuffled batches of control steps (rl_gradient.py). The denominators of
   the ratios are the recorded log-probabilities.
4. The adapter, the value head and training_states.json in the same folder as the curves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from grape_episode.bag import find_bags
from grape_policy_node.action_tokens import ACTION_DIMS
from grape_policy_node.adapters import BASE, adapter_id
from grape_trainer.dataset import DataError, TrialStore
from grape_trainer.distributed import join_ranks
from grape_trainer.learner import (
    FitResult,
    Learner,
    Progress,
    ProgressCallback,
    StepResult,
    TrainingError,
    batch_indices,
    steps_in,
)
from grape_trainer.reference import verify_recorded
from grape_trainer.rl_config import PpoConfig, RlConfig
from grape_trainer.rl_gradient import StepTable, accumulate_step_gradient
from grape_trainer.rl_loss import GroupLoss, PpoStepLoss
from grape_trainer.rl_policy import RlPolicy
from grape_trainer.rl_trials import Actor, RlTrial, choose_bags, read_trials, trials_hash
from grape_trainer.run_folder import RunFolder
from grape_trainer.scoring.objective import load_objective
from grape_trainer.trained_adapter import load_engine
from grape_trainer.trajectory_gradient import NotFiniteError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RlResult:
    """What a run gave.

    `adapter` and `adapter_id` are None after an interruption. `reward_mean` and `reward_std` are
    of the trials' summed rewards; `groups` and `zero_groups` (equal trials, no advantage) are 0
    for PPO; `explained_variance` is PPO's, of the returns by the values before the first update.
    `recorded_difference` is the largest gap between recorded and recomputed
    log-probabilities, nats a token (None: not compared); `metrics` are the last step's.
    """

    adapter: str | None
    adapter_id: str | None
    start_adapter: str
    trials: int
    successes: int
    control_steps: int
    reward_mean: float
    reward_std: float
    groups: int
    zero_groups: int
    explained_variance: float | None
    steps: int
    total_steps: int
    interrupted: bool
    stopped: str | None
    recorded_difference: float | None
    metrics: dict[str, float]


def train_rl(
    config: RlConfig,
    policy_dir: Path | str,
    bag_folders: Sequence[Path | str],
    out_dir: Path | str,
    start_adapter: Path | str | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> RlResult:
    """Train an adapter; the same call on the same folder goes on where a run was broken off.

    Args:
        config: a PpoConfig, GrpoConfig or TgrpoConfig.
        policy_dir: policy folder.
        bag_folders: folders with bags that the policy played.
        out_dir: becomes the adapter folder; also holds the run's files.
        start_adapter: adapter that played the trials, trained further; None makes a new one. PPO
            goes on with the value head in its folder, if it has one.
        progress: called after every trial of the first pass and every optimiser step.
        resume: False starts anew in the same folder.

    Raises:
        DataError: bags that cannot be used, others' trials, or nothing to learn from.
        PolicyMismatchError: the recorded log-probabilities are not this policy's.
        TrainingError: a loss or gradient that is not finite, naming the bags.
        CheckpointError: the folder holds another run.

    """
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    start_adapter = Path(start_adapter) if start_adapter else None
    folders = [Path(folder) for folder in bag_folders]
    ranks = join_ranks(config)
    engine = load_engine(policy_dir, find_bags(folders)[0], start_adapter, config.device)
    actor = Actor(engine.policy_sha256, adapter_id(start_adapter) if start_adapter else BASE)
    chosen = choose_bags(folders, actor, config.other_trials)
    objective = load_objective(config.objective)
    identity = {
        'data': trials_hash(chosen),
        'objective_sha256': objective.config_sha256,
        'policy_sha256': actor.policy_sha256,
        'start_adapter': actor.adapter_id,
    }
    with RunFolder(Path(out_dir), config.kind, config, identity, resume, ranks) as run:
        done = run.finished()
        if done is not None:
            log.info('%s is complete already', out_dir)
            return RlResult(**done)
        run.begin()
        show = progress or (lambda _: None)
        trials = read_trials(
            chosen, config.reward, objective,
            lambda done: show(Progress('read bags', done, len(chosen))),
        )  # fmt: skip
        policy = RlPolicy.make(config, engine, actor, start_adapter, ranks)
        result = _RlRun(config, policy, trials, run, show).fit()
        if not result.interrupted:
            run.finish(asdict(result))
    return result


class _RlRun:
    """One training: the policy, the trials' steps with their loss, and one optimiser step."""

    def __init__(
        self,
        config: RlConfig,
        policy: RlPolicy,
        trials: list[RlTrial],
        run: RunFolder,
        progress: ProgressCallback,
    ) -> None:
        self._config, self._policy, self._run = config, policy, run
        self._trials, self._table = trials, StepTable.of(trials)
        self._progress = progress
        self._store = TrialStore(policy.engine.processor.pixels, config.pixel_cache_gib)
        before = self._before('first pass')
        self._difference = self._verify(before)
        self._loss = self._make_loss(before)
        self._warmup_steps = config.value_warmup_steps if isinstance(config, PpoConfig) else 0

    def fit(self) -> RlResult:
        """Train to the end or to Ctrl-C, and save."""
        own, head = self._policy.parameters, self._policy.value_parameters
        factors = dict.fromkeys(head, self._config.value_lr_factor) if head else {}
        total = self._warmup_steps + steps_in(self._config, len(self._table))
        self._announce(total)
        learner = Learner(
            self._config, own | head, self._run, total, self._progress, lr_factors=factors
        )
        fit = learner.fit(lambda step: self._take_step(step, learner))
        saved = None if fit.interrupted else self._run.ranks.from_first(self._save)
        return self._result(fit, saved)

    def _save(self) -> str:
        return self._policy.save(self._run.path, self._trials)

    def _take_step(self, step: int, learner: Learner) -> StepResult:
        config, warm_up = self._config, step < self._warmup_steps
        rows = batch_indices(
            config, step if warm_up else step - self._warmup_steps, len(self._table)
        )
        try:
            metrics = accumulate_step_gradient(
                rows, self._table, self._store.get, self._policy.score,
                self._loss.warm_up if warm_up else self._loss.whole,
                config.chunk_steps, learner.pause_point, self._run.ranks,
            )  # fmt: skip
        except NotFiniteError as error:
            raise TrainingError(f'Step {step}, {error}') from error
        return StepResult(metrics, self._table.names(rows), _reason_to_stop(config, metrics))

    def _before(self, phase: str, base: bool = False) -> dict[Path, torch.Tensor]:
        return self._policy.before(
            self._trials,
            self._store.get,
            self._run.path / 'reference',
            self._config.chunk_steps,
            base,
            lambda count: self._progress(Progress(phase, count, len(self._trials))),
            self._run.ranks,
        )

    def _verify(self, before: Mapping[Path, torch.Tensor]) -> float | None:
        """Compare what was recorded with what the policy says now; None where nothing is."""
        own = {t.bag: before[t.bag][:, :ACTION_DIMS] for t in self._trials if t.on_policy}
        if not (self._config.verify_log_probs and own):
            return None
        name = self._policy.actor.adapter_id
        return verify_recorded(own, self._store.get, name, self._config.verify_tolerance)

    def _make_loss(self, before: Mapping[Path, torch.Tensor]) -> PpoStepLoss | GroupLoss:
        config, trials, policy = self._config, self._trials, self._policy
        device = policy.engine.model.device
        if isinstance(config, PpoConfig):
            values = [before[t.bag][:, ACTION_DIMS] for t in trials]
            return PpoStepLoss(config, trials, values, policy.head, device)
        if config.kl_weight > 0 and config.reference == 'base' and policy.start_adapter:
            before = self._before('reference', base=True)
        loss = GroupLoss(config, trials, [before[t.bag] for t in trials], device)
        if loss.zero_groups == loss.groups:
            raise DataError(
                f'In all {loss.groups} groups the trials have equal rewards: there is nothing to '
                'learn. Collect more trials of each initial state, or other initial states.'
            )
        return loss

    def _announce(self, total: int) -> None:
        config, loss = self._config, self._loss
        log.info(
            '%s: %d trials, %d successes, %d control steps, %d optimiser steps',
            config.kind.upper(), len(self._trials), sum(t.success for t in self._trials),
            len(self._table), total,
        )  # fmt: skip
        if loss.groups:
            log.info(
                '%d of %d groups have trials of equal reward and no advantage',
                loss.zero_groups, loss.groups,
            )  # fmt: skip
        gib = len(self._table) * 3 * self._policy.engine.model.spec.image_size**2 / 2**30
        if gib > config.pixel_cache_gib:
            log.warning(
                'the trials have %.1f GiB of pixels, pixel_cache_gib is %g: bags are read again '
                'for every batch', gib, config.pixel_cache_gib,
            )  # fmt: skip

    def _result(self, fit: FitResult, saved: str | None) -> RlResult:
        totals = torch.stack([t.rewards.sum() for t in self._trials])
        return RlResult(
            adapter=None if saved is None else str(self._run.path),
            adapter_id=saved,
            start_adapter=self._policy.actor.adapter_id,
            trials=len(self._trials),
            successes=sum(t.success for t in self._trials),
            control_steps=len(self._table),
            reward_mean=totals.mean().item(),
            reward_std=totals.std(correction=0).item(),
            groups=self._loss.groups,
            zero_groups=self._loss.zero_groups,
            explained_variance=self._loss.explained_variance,
            steps=fit.steps,
            total_steps=fit.total_steps,
            interrupted=fit.interrupted,
            stopped=fit.stopped,
            recorded_difference=self._difference,
            metrics=fit.metrics,
        )


def _reason_to_stop(config: RlConfig, metrics: Mapping[str, float]) -> str | None:
    """The policy is too far from the one that acted; warming the values up it does not move."""
    kl = metrics.get('policy/approxkl_avg', 0.0)
    if config.stop_kl is None or kl <= config.stop_kl:
        return None
    return f'the approximate KL is {kl:.3g} nats a step, above stop_kl {config.stop_kl:g}'
