"""One training run of an adapter on whole recorded trials; what TPO, DPO and KTO share.

    examples + bags + policy [+ start adapter]  ->  adapter folder

1. The reference's log-probabilities of every trial, once, without gradient; checked against the
   recorded ones (reference.py).
2. Optimiser steps over shuffled batches of examples; each batch's gradient is that of whole
   trials, in memory flat in their length (trajectory_gradient.py).
3. The adapter in peft's layout in the same folder as the curves and the checkpoint, beside which
   initial states it has seen and, where it was trained further, the action statistics it acts in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from grape_episode.bag import read_info
from grape_policy_node.adapters import BASE, adapter_id
from grape_policy_node.engine import Engine
from grape_trainer.dataset import TokenTrial, TrialStore, bag_sha256, data_hash, pixel_values
from grape_trainer.distributed import Ranks, join_ranks
from grape_trainer.large_model import fit_into_memory
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
from grape_trainer.objective.weighing import Example, Objective
from grape_trainer.reference import ReferenceKey, reference_log_probs, verify_recorded
from grape_trainer.run_folder import RunFolder
from grape_trainer.trained_adapter import (
    load_engine,
    make_trained_adapter,
    save_trained_adapter,
)
from grape_trainer.training_config import PreferenceConfig
from grape_trainer.trajectory_gradient import LogProbs, NotFiniteError, accumulate_gradient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceResult:
    """What a run gave.

    `adapter` and `adapter_id` are None after an interruption. `examples` counts pairs, or KTO's
    labelled trials; `recorded_difference` is the largest gap between recorded and recomputed
    log-probabilities, nats a token (None: not compared); `metrics` are the last step's.
    """

    adapter: str | None
    adapter_id: str | None
    reference: str
    examples: int
    trials: int
    steps: int
    total_steps: int
    interrupted: bool
    stopped: str | None
    recorded_difference: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class PreferenceRun:
    """What is trained, on what, from where."""

    kind: str  # 'tpo', 'dpo' or 'kto'
    config: PreferenceConfig
    objective: Objective
    examples: Sequence[Example]
    policy_dir: Path | str
    out_dir: Path | str
    start_adapter: Path | str | None = None

    def train(
        self, progress: ProgressCallback | None = None, resume: bool = True
    ) -> PreferenceResult:
        """Train; the same run on the same folder goes on where it was broken off.

        Args:
            progress: called after every trial of the reference and every optimiser step.
            resume: False starts anew in the same folder.

        Raises:
            DataError: bags that cannot be used.
            PolicyMismatchError: the trials were sampled by another policy.
            TrainingError: a loss or gradient that is not finite, naming the examples.
            CheckpointError: the folder holds another run.

        """
        config = self.config
        if config.torch_threads:
            torch.set_num_threads(config.torch_threads)
        ranks = join_ranks(config)
        bags = list(dict.fromkeys(bag for e in self.examples for bag in e.bags.values()))
        hashes = dict(zip(bags, map(bag_sha256, bags), strict=True))
        reference_id = adapter_id(self.start_adapter) if self.start_adapter else BASE
        engine = load_engine(self.policy_dir, bags[0], self.start_adapter, config.device)
        identity = {
            'data': _examples_hash(self.examples, hashes),
            'policy_sha256': engine.policy_sha256,
            'start_adapter': reference_id,
        }
        with RunFolder(self.out_dir, self.kind, config, identity, resume, ranks) as run:
            done = run.finished()
            if done is not None:
                log.info('%s is complete already', self.out_dir)
                return PreferenceResult(**done)
            run.begin()
            result = self._train(engine, hashes, reference_id, run, progress)
            if not result.interrupted:
                run.finish(asdict(result))
        return result

    def _train(
        self,
        engine: Engine,
        hashes: Mapping[Path, str],
        reference_id: str,
        run: RunFolder,
        progress: ProgressCallback | None,
    ) -> PreferenceResult:
        config = self.config
        make_trained_adapter(engine, config, self.start_adapter)
        fit_into_memory(engine.model, config, run.ranks)
        store = TrialStore(engine.processor.pixels, config.pixel_cache_gib)
        reference = self._reference(engine, store, hashes, reference_id, progress, run.ranks)
        difference = None
        if config.verify_log_probs:
            difference = verify_recorded(
                reference, store.get, reference_id, config.verify_tolerance
            )
        fit = self._fit(engine, store, reference, run, progress)
        saved = None
        if not fit.interrupted:
            saved = run.ranks.from_first(lambda: self._save(engine, list(hashes)))
        return PreferenceResult(
            adapter=None if saved is None else str(self.out_dir),
            adapter_id=saved,
            reference=reference_id,
            examples=len(self.examples),
            trials=len(hashes),
            steps=fit.steps,
            total_steps=fit.total_steps,
            interrupted=fit.interrupted,
            stopped=fit.stopped,
            recorded_difference=difference,
            metrics=fit.metrics,
        )

    def _reference(
        self,
        engine: Engine,
        store: TrialStore,
        hashes: Mapping[Path, str],
        reference_id: str,
        progress: ProgressCallback | None,
        ranks: Ranks,
    ) -> dict[Path, torch.Tensor]:
        """Return the (T, 7) log-probabilities of each bag before the first step."""
        cache = self.config.reference_cache
        show = progress or (lambda _: None)
        return reference_log_probs(
            list(hashes),
            list(hashes.values()),
            store.get,
            policy_log_probs(engine),
            ReferenceKey(engine.policy_sha256, reference_id),
            Path(cache) if cache else Path(self.out_dir) / 'reference',
            self.config.chunk_steps,
            lambda count: show(Progress('reference', count, len(hashes))),
            ranks,
        )

    def _save(self, engine: Engine, bags: Sequence[Path]) -> str:
        start = Path(self.start_adapter) if self.start_adapter else None
        states = {(info.task, info.init_state) for info in map(read_info, bags)}
        return save_trained_adapter(engine, Path(self.out_dir), states, start)

    def _fit(
        self,
        engine: Engine,
        store: TrialStore,
        reference: Mapping[Path, torch.Tensor],
        run: RunFolder,
        progress: ProgressCallback | None,
    ) -> FitResult:
        config, examples = self.config, self.examples
        trained = {n: p for n, p in engine.model.named_parameters() if p.requires_grad}
        total = steps_in(config, len(examples))
        learner = Learner(config, trained, run, total, progress)
        log_probs = policy_log_probs(engine)
        log.info(
            '%s: %d examples of %d trials, %d steps, %d parameters', self.kind.upper(),
            len(examples), len(reference), total, sum(p.numel() for p in trained.values()),
        )  # fmt: skip

        def take_step(step: int) -> StepResult:
            batch = [examples[i] for i in batch_indices(config, step, len(examples))]
            try:
                done = accumulate_gradient(
                    batch, store.get, log_probs, reference, self.objective, config.chunk_steps,
                    learner.pause_point, run.ranks, list(trained.values()),
                )  # fmt: skip
            except NotFiniteError as error:
                raise TrainingError(f'Step {step}, {error}') from error
            names = tuple(example.name for example in batch)
            return StepResult(done.metrics, names, _reason_to_stop(config, done.metrics))

        return learner.fit(take_step)


def policy_log_probs(engine: Engine) -> LogProbs:
    """Return the engine's log-probabilities of a trial's steps start..stop, (n, 7) float32."""
    pixels = engine.processor.pixels

    def log_probs(trial: TokenTrial, start: int, stop: int) -> torch.Tensor:
        images = torch.from_numpy(trial.images[start:stop]).to(engine.model.device)
        values = pixel_values(images, pixels)
        tokens = trial.token_ids[start:stop]
        return engine.trajectory_log_probs(values, trial.instruction, tokens, chunk=len(tokens))

    return log_probs


def _reason_to_stop(config: PreferenceConfig, metrics: Mapping[str, float]) -> str | None:
    """Likelihood displacement: the chosen trials themselves become unlikely."""
    limit, ratio = config.stop_chosen_log_ratio, metrics.get('log_ratio_per_step/chosen')
    # A batch of KTO may hold no desirable trial.
    if limit is None or ratio is None or ratio >= limit:
        return None
    return (
        f"the chosen trials' log-ratio is {ratio:.3f} nats a step, below stop_chosen_log_ratio "
        f'{limit} (likelihood displacement)'
    )


def _examples_hash(examples: Sequence[Example], sha: Mapping[Path, str]) -> str:
    """Return one sha256 over the recordings and labels of the examples, in order."""
    return data_hash([e.fingerprint([sha[bag] for bag in e.bags.values()]) for e in examples])
