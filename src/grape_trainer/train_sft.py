"""Train a policy by SFT on recorded demonstrations (`grape train sft`).

    successful bags + architecture YAML or policy folder  ->  policy folder (or adapter folder)

Pixels are resized once and kept as uint8; a batch is grouped by prompt length, so that no padding
is needed, and each group is a micro-batch whose gradient is weighted to give the batch's mean.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from grape_episode.bag import read_info
from grape_episode.contract import Contract
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import (
    Checkpoint,
    folder_sha256,
    load_checkpoint,
    save_checkpoint,
)
from grape_policy_node.openvla.tiny import build_tiny, load_tiny_config
from grape_trainer.augmentation import augment
from grape_trainer.dataset import bag_sha256, data_hash, pixel_values
from grape_trainer.demonstrations import (
    Demonstrations,
    action_statistics,
    common_contract,
    corrected_bags,
    hold_out,
    load_demonstrations,
    successful_bags,
)
from grape_trainer.distributed import join_ranks
from grape_trainer.evaluation import training_states, write_training_states
from grape_trainer.large_model import fit_into_memory
from grape_trainer.learner import (
    FitResult,
    Learner,
    Progress,
    ProgressCallback,
    StepResult,
    batch_indices,
    generator_for,
    steps_in,
)
from grape_trainer.objective.sft import sft_loss, smoothed_target_loss
from grape_trainer.run_folder import RunFolder
from grape_trainer.token_data import TokenData, token_data
from grape_trainer.training_config import ConfigError, SftConfig

TRAINED = 'trained'
VALIDATION_BATCH = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SftResult:
    """What an SFT run gave.

    `policy` is the policy folder (with `trainable: lora` the adapter folder), None after an
    interruption; `metrics` are the last step's.
    """

    policy: str | None
    unnorm_key: str
    episodes: int
    held_out_episodes: int
    control_steps: int
    steps: int
    total_steps: int
    interrupted: bool
    metrics: dict[str, float]


def train_sft(
    config: SftConfig,
    bags: Sequence[Path | str],
    out_dir: Path | str,
    architecture: Path | str | None = None,
    init_policy: Path | str | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> SftResult:
    """Train a policy; the same call on the same folder goes on where a run was broken off.

    Args:
        config: see `SftConfig`.
        bags: folders with bags; only successes are used, or with `corrections` what people did.
        out_dir: becomes the policy folder (trainable: lora: the adapter folder).
        architecture: YAML of a fresh model (config/policy/grape_tiny.yaml).
        init_policy: policy folder to start from; exactly one of the two is needed.
        progress: called after every bag read and every optimiser step.
        resume: False starts anew in the same folder.

    Raises:
        DataError: no successful bag, or too few to hold some out.
        ConfigError: neither or both of architecture and init_policy; LoRA on a fresh model.
        TrainingError: a loss or gradient that is not finite, naming the episodes.
        CheckpointError: the folder holds another run.

    """
    if (architecture is None) == (init_policy is None):
        raise ConfigError('Give either an architecture YAML or an init policy, not both or none.')
    if config.trainable == 'lora' and init_policy is None:
        raise ConfigError('trainable is lora, but the model is fresh: give an init policy.')
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    ranks = join_ranks(config)
    out_dir = Path(out_dir)
    choose = corrected_bags if config.corrections else successful_bags
    good = choose([Path(bag) for bag in bags])
    contract = common_contract(good)
    infos = [read_info(bag) for bag in good]
    states = {(info.task, info.init_state) for info in infos}
    if init_policy is not None:
        states |= training_states(Path(init_policy))
    identity = {
        'data': data_hash([bag_sha256(bag) for bag in good]),
        'model': folder_sha256(init_policy) if init_policy else _file_sha256(architecture),
    }
    with RunFolder(out_dir, 'sft', config, identity, resume, ranks) as run:
        done = run.finished()
        if done is not None:
            log.info('%s is complete already', out_dir)
            return SftResult(**done)
        run.begin()
        show = progress or (lambda _: None)
        training, held_out = hold_out(good, config.held_out_episodes, config.seed)
        # Weights that are trained stay float32; a frozen base on a GPU is bfloat16, as in acting.
        half = config.trainable == 'lora' and torch.device(config.device).type != 'cpu'
        dtype = torch.bfloat16 if half else torch.float32
        start = load_checkpoint(init_policy, dtype, config.device) if init_policy else None
        size = (
            load_tiny_config(architecture).image_size
            if start is None
            else start.model.spec.image_size
        )

        def read(chosen: Sequence[Path], phase: str) -> Demonstrations | None:
            if not chosen:
                return None
            return load_demonstrations(
                chosen, size, config.noop_filter,
                lambda count: show(Progress(phase, count, len(chosen))),
                config.corrections,
            )  # fmt: skip

        demos, held = read(training, 'read bags'), read(held_out, 'read held-out bags')
        checkpoint = _checkpoint(config, demos, start, architecture)
        trainer = _SftRun(config, checkpoint, demos, held, run, contract, states)
        fit = trainer.fit(progress)
        result = SftResult(
            policy=None if fit.interrupted else ranks.from_first(lambda: trainer.save(out_dir)),
            unnorm_key=config.unnorm_key,
            episodes=len(training),
            held_out_episodes=len(held_out),
            control_steps=len(demos),
            steps=fit.steps,
            total_steps=fit.total_steps,
            interrupted=fit.interrupted,
            metrics=fit.metrics,
        )
        if not fit.interrupted:
            run.finish(asdict(result))
    return result


class _SftRun:
    """One training: model, token data, and what one optimiser step does."""

    def __init__(
        self,
        config: SftConfig,
        checkpoint: Checkpoint,
        demos: Demonstrations,
        held: Demonstrations | None,
        run: RunFolder,
        contract: Contract,
        states: set[tuple[str, int]],
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._engine = Engine(checkpoint, config.unnorm_key)
        self._data = token_data(demos, checkpoint, config.unnorm_key)
        self._held = token_data(held, checkpoint, config.unnorm_key) if held else None
        self._run = run
        self._contract = contract
        self._states = states
        if config.trainable == 'lora':
            self._engine.adapters.new(TRAINED, config.seed, config.lora_rank, config.lora_alpha)
        self._model = checkpoint.model
        fit_into_memory(self._model, config, run.ranks)

    def fit(self, progress: ProgressCallback | None) -> FitResult:
        """Train to the end or to Ctrl-C."""
        trained = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        total = steps_in(self._config, len(self._data))
        log.info('SFT: %d control steps, %d optimiser steps', len(self._data), total)
        learner = Learner(self._config, trained, self._run, total, progress)
        return learner.fit(
            lambda step: self._take_step(step, learner),
            lambda done: self._after_step(done, total),
        )

    def save(self, folder: Path) -> str:
        """Write the policy (or adapter), its contract and the states it has seen into a folder."""
        if self._config.trainable == 'lora':
            self._engine.adapters.save(TRAINED, folder)
        else:
            save_policy_into(self._checkpoint, folder)
        self._contract.save(folder)
        write_training_states(folder, self._states)
        return str(folder)

    def _take_step(self, step: int, learner: Learner) -> StepResult:
        config, data = self._config, self._data
        rows = batch_indices(config, step, len(data))
        generator = generator_for(config.seed, 'augment', step)
        images = augment(
            data.images[rows].to(self._model.device),
            config.shift_px,
            config.brightness,
            config.contrast,
            generator,
        )
        place = {row: index for index, row in enumerate(rows)}
        metrics: dict[str, float] = defaultdict(float)
        for group, weight in self._micro_batches(data, rows, config.micro_batch_size):
            learner.pause_point()
            loss, measured = self._loss(data, group, images[[place[row] for row in group]])
            (loss * weight).backward()
            for name, value in measured.items():
                metrics[name] += value * weight
        names = tuple(dict.fromkeys(data.names[row] for row in rows))
        return StepResult(self._run.ranks.sum_metrics(metrics), names)

    def _micro_batches(
        self, data: TokenData, rows: Sequence[int], limit: int
    ) -> list[tuple[list[int], float]]:
        """Return this process's micro-batches, each with its share of all rows."""
        ranks = self._run.ranks
        limit = min(limit, math.ceil(len(rows) / ranks.count))
        return [
            (group, weight * len(group) / len(rows))
            for group, weight in ranks.share(data.groups(rows, limit))
        ]

    def _after_step(self, done: int, total: int) -> Mapping[str, float]:
        config = self._config
        if config.snapshot_every and done % config.snapshot_every == 0:
            folder = self._run.path / f'step-{done:06d}'
            self._run.ranks.from_first(lambda: self.save(folder))
        if self._held is None or not (done % config.validate_every == 0 or done == total):
            return {}
        return {f'validation/{name}': value for name, value in self._validate().items()}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = defaultdict(float)
        rows = range(len(self._held))
        for group, weight in self._micro_batches(self._held, rows, VALIDATION_BATCH):
            _, measured = self._loss(self._held, group, self._held.images[group])
            for name, value in measured.items():
                metrics[name] += value * weight
        return self._run.ranks.sum_metrics(metrics)

    def _loss(
        self, data: TokenData, rows: Sequence[int], images: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        device = self._model.device
        pixels = pixel_values(images.to(device), self._checkpoint.processor.pixels)
        ids = data.token_ids[rows].to(device)
        with self._engine.mixed_precision():
            logits = self._model.action_logits(pixels, data.input_ids(rows).to(device), ids)
        log_probs = logits.float().log_softmax(-1)
        # Decoding is among the action ids, and so is the accuracy.
        first, stop = (
            self._engine.action_tokenizer.first_id,
            self._engine.action_tokenizer.vocab_size,
        )
        actions = log_probs[..., first:stop]
        chosen = log_probs.gather(-1, ids[..., None])[..., 0]
        loss, metrics = sft_loss(chosen, actions.argmax(-1) + first, ids)
        if self._config.label_sigma_bins:
            loss = smoothed_target_loss(actions, ids - first, self._config.label_sigma_bins)
            metrics['loss/smoothed'] = loss.item()
        return loss, metrics


def save_policy_into(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a policy's files into a folder that also holds a run's; each appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / '.policy'
    save_checkpoint(checkpoint, staging)
    # The weights last: a folder with model.safetensors has all that goes with it.
    for file in sorted(staging.iterdir(), key=lambda p: p.suffix == '.safetensors'):
        os.replace(file, folder / file.name)
    shutil.rmtree(staging)


def _checkpoint(
    config: SftConfig,
    demos: Demonstrations,
    start: Checkpoint | None,
    architecture: Path | str | None,
) -> Checkpoint:
    """Return the model to train, with statistics under the configured key."""
    statistics = {config.unnorm_key: action_statistics(demos.actions, len(demos.episodes))}
    if start is None:
        fresh = build_tiny(architecture, demos.instructions, statistics, config.seed)
        fresh.model.to(config.device)
        return fresh
    if config.trainable == 'lora' or config.unnorm_key in start.statistics:
        start.norm_stats(config.unnorm_key)
        return start
    return replace(start, statistics={**start.statistics, **statistics})


def _file_sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
