"""Train a LoRA adapter by TPO on pairs of recorded trials (`grape train tpo`).

    pairs.json + bags + policy [+ start adapter]  ->  adapter folder

1. The reference's log-probabilities of every trial, once, without gradient; checked against the
   recorded ones (reference.py).
2. Optimiser steps over shuffled batches of pairs; each batch's gradient is that of whole trials,
   in memory flat in their length (trajectory_gradient.py).
3. The adapter in peft's layout in the same folder as the curves and the checkpoint.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from grape_episode.bag import read_info
from grape_policy_node.adapters import BASE, adapter_id
from grape_policy_node.engine import Engine
from grape_trainer.dataset import (
    BagPair,
    TokenTrial,
    TrialStore,
    bag_sha256,
    data_hash,
    pixel_values,
    read_pairs,
)
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
from grape_trainer.reference import ReferenceKey, reference_log_probs, verify_recorded
from grape_trainer.run_folder import RunFolder
from grape_trainer.training_config import TpoConfig
from grape_trainer.trajectory_gradient import LogProbs, NotFiniteError, accumulate_gradient

TRAINED = 'trained'

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TpoResult:
    """What a TPO run gave.

    `adapter` and `adapter_id` are None after an interruption. `recorded_difference` is the
    largest gap between recorded and recomputed log-probabilities, nats a token (None: not
    compared); `metrics` are the last step's.
    """

    adapter: str | None
    adapter_id: str | None
    reference: str
    pairs: int
    trials: int
    steps: int
    total_steps: int
    interrupted: bool
    stopped: str | None
    recorded_difference: float | None
    metrics: dict[str, float]


def train_tpo(
    config: TpoConfig,
    policy_dir: Path | str,
    pairs_path: Path | str,
    out_dir: Path | str,
    start_adapter: Path | str | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> TpoResult:
    """Train an adapter; the same call on the same folder goes on where a run was broken off.

    Args:
        config: see `TpoConfig`.
        policy_dir: policy folder.
        pairs_path: pairs.json.
        out_dir: becomes the adapter folder; also holds the run's files.
        start_adapter: adapter that sampled the trials, trained further and the reference; None
            makes a new one, with the base as reference.
        progress: called after every trial of the reference and every optimiser step.
        resume: False starts anew in the same folder.

    Raises:
        DataError: pairs or bags that cannot be used.
        PolicyMismatchError: the trials were sampled by another policy.
        TrainingError: a loss or gradient that is not finite, naming the pair.
        CheckpointError: the folder holds another run.

    """
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    out_dir = Path(out_dir)
    pairs = read_pairs(Path(pairs_path))
    bags = list(dict.fromkeys(bag for pair in pairs for bag in (pair.chosen, pair.rejected)))
    hashes = [bag_sha256(bag) for bag in bags]
    reference_id = adapter_id(start_adapter) if start_adapter else BASE
    # Nothing is un-normalised here, but a policy of several data sets has to be told which.
    key = read_info(bags[0]).policy.get('unnorm_key')
    engine = Engine.load(policy_dir, key, start_adapter, config.device)
    identity = {
        'data': _pairs_hash(pairs, dict(zip(bags, hashes, strict=True))),
        'policy_sha256': engine.policy_sha256,
        'start_adapter': reference_id,
    }
    with RunFolder(out_dir, 'tpo', config, identity, resume) as run:
        done = run.finished()
        if done is not None:
            log.info('%s is complete already', out_dir)
            return TpoResult(**done)
        run.begin()
        name = _trained_adapter(engine, config, start_adapter)
        store = TrialStore(engine.processor.pixels, config.pixel_cache_gib)
        log_probs = policy_log_probs(engine)
        show = progress or (lambda _: None)
        reference = reference_log_probs(
            bags,
            hashes,
            store.get,
            log_probs,
            ReferenceKey(engine.policy_sha256, reference_id),
            out_dir / 'reference',
            config.chunk_steps,
            lambda count: show(Progress('reference', count, len(bags))),
        )
        difference = None
        if config.verify_log_probs:
            difference = verify_recorded(
                reference, store.get, reference_id, config.verify_tolerance
            )
        fit = _fit(config, engine, name, pairs, store, log_probs, reference, run, progress)
        result = _result(engine, name, out_dir, fit, pairs, bags, reference_id, difference)
        if not fit.interrupted:
            run.finish(asdict(result))
    return result


def policy_log_probs(engine: Engine) -> LogProbs:
    """Return the engine's log-probabilities of a trial's steps start..stop, (n, 7) float32."""
    pixels = engine.processor.pixels

    def log_probs(trial: TokenTrial, start: int, stop: int) -> torch.Tensor:
        images = torch.from_numpy(trial.images[start:stop]).to(engine.model.device)
        values = pixel_values(images, pixels)
        tokens = trial.token_ids[start:stop]
        return engine.trajectory_log_probs(values, trial.instruction, tokens, chunk=len(tokens))

    return log_probs


def _trained_adapter(engine: Engine, config: TpoConfig, start: Path | str | None) -> str:
    """Make or load the adapter to train; before the first step it equals the reference."""
    if start is None:
        engine.adapters.new(TRAINED, config.seed, config.lora_rank, config.lora_alpha)
    else:
        engine.adapters.load(start, TRAINED)
        engine.adapters.activate(TRAINED, trainable=True)
    return TRAINED


def _fit(
    config: TpoConfig,
    engine: Engine,
    name: str,
    pairs: list[BagPair],
    store: TrialStore,
    log_probs: LogProbs,
    reference: dict[Path, torch.Tensor],
    run: RunFolder,
    progress: ProgressCallback | None,
) -> FitResult:
    trained = {n: p for n, p in engine.model.named_parameters() if p.requires_grad}
    total = steps_in(config, len(pairs))
    learner = Learner(config, trained, run, total, progress)
    log.info(
        'TPO on adapter %s: %d pairs of %d trials, %d steps, %d parameters',
        name, len(pairs), len(reference), total, sum(p.numel() for p in trained.values()),
    )  # fmt: skip

    def take_step(step: int) -> StepResult:
        batch = [pairs[i] for i in batch_indices(config, step, len(pairs))]
        try:
            done = accumulate_gradient(
                batch, store.get, log_probs, reference, config.options, config.chunk_steps,
                learner.pause_point,
            )  # fmt: skip
        except NotFiniteError as error:
            raise TrainingError(f'Step {step}, {error}') from error
        names = tuple(pair.name for pair in batch)
        return StepResult(done.metrics, names, _reason_to_stop(config, done.metrics))

    return learner.fit(take_step)


def _reason_to_stop(config: TpoConfig, metrics: dict[str, float]) -> str | None:
    """Likelihood displacement: the chosen trials themselves become unlikely."""
    limit, ratio = config.stop_chosen_log_ratio, metrics['log_ratio_per_step/chosen']
    if limit is None or ratio >= limit:
        return None
    return (
        f"the chosen trials' log-ratio is {ratio:.3f} nats a step, below stop_chosen_log_ratio "
        f'{limit} (likelihood displacement)'
    )


def _result(
    engine: Engine,
    name: str,
    out_dir: Path,
    fit: FitResult,
    pairs: list[BagPair],
    bags: list[Path],
    reference_id: str,
    difference: float | None,
) -> TpoResult:
    saved = None if fit.interrupted else engine.adapters.save(name, out_dir)
    return TpoResult(
        adapter=None if saved is None else str(out_dir),
        adapter_id=saved,
        reference=reference_id,
        pairs=len(pairs),
        trials=len(bags),
        steps=fit.steps,
        total_steps=fit.total_steps,
        interrupted=fit.interrupted,
        stopped=fit.stopped,
        recorded_difference=difference,
        metrics=fit.metrics,
    )


def _pairs_hash(pairs: list[BagPair], sha: dict[Path, str]) -> str:
    return data_hash([f'{sha[pair.chosen]} {sha[pair.rejected]}' for pair in pairs])
