"""The training loop that every objective shares.

An objective's command gives the trained parameters and a function `take_step(step)` that leaves
the gradient of ONE optimiser step in `.grad`, or this process's share of it; accumulation over
micro-batches happens there, with weights that make it equal to the large batch. The learner
zeroes, adds up over processes, clips, checks, steps, logs and saves. All randomness is a function
of (seed, purpose, step or epoch): see `generator_for`; that is why a run resumed after a kill
equals an unbroken one bit for bit on the CPU.
"""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from grape_trainer.checkpointing import (
    TrainingState,
    load_state,
    restore_parameters,
    save_state,
)
from grape_trainer.run_folder import RunFolder
from grape_trainer.training_config import LearnerConfig

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the text names the data and what to do."""


class TrainingInterrupted(Exception):
    """Ctrl-C came; raised by `Learner.pause_point` and caught by `Learner.fit`."""


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows: `done` of `total` in a `phase`, and the newest metrics."""

    phase: str
    done: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step saw.

    `batch` names the data for errors; `stop` is a reason to end the training before this step is
    applied, or None.
    """

    metrics: dict[str, float]
    batch: tuple[str, ...]
    stop: str | None = None


@dataclass(frozen=True)
class FitResult:
    """How the loop ended: `steps` applied, and why it ended before `total_steps`, if it did."""

    steps: int
    total_steps: int
    interrupted: bool
    stopped: str | None
    metrics: dict[str, float]


class Learner:
    """AdamW on a set of named parameters, with checkpoints in a run folder."""

    def __init__(
        self,
        config: LearnerConfig,
        parameters: Mapping[str, torch.nn.Parameter],
        run: RunFolder,
        total_steps: int,
        progress: ProgressCallback | None = None,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        """Take up the run folder's checkpoint if it has one.

        Args:
            config: optimiser and schedule.
            parameters: what is trained, by name.
            run: where the checkpoints and curves go.
            total_steps: of the whole run.
            progress: called after every step.
            lr_factors: of the parameters whose learning rate is not the configuration's.

        Raises:
            TrainingError: no trained parameter.
            CheckpointError: the checkpoint is of another run.

        """
        if not parameters:
            raise TrainingError('No parameter is trained; expected the adapter or the model.')
        self.config = config
        self.total_steps = total_steps
        self.step = 0
        self._parameters = dict(parameters)
        self._run = run
        self._progress = progress or (lambda _: None)
        self._interrupted = False
        groups = _by_lr_factor(self._parameters, lr_factors or {})
        self._lr_factors = list(groups)
        self._optimizer = torch.optim.AdamW(
            [{'params': group} for group in groups.values()],
            lr=config.lr,
            weight_decay=config.weight_decay,
        )
        self._ranks = run.ranks
        state = self._ranks.from_first(lambda: load_state(run.path, run.identity))
        if state is not None:
            restore_parameters(self._parameters, state.parameters)
            self._optimizer.load_state_dict(state.optimizer)
            torch.set_rng_state(state.rng)
            self.step = state.step
            log.info('resuming %s at step %d of %d', run.path, self.step, total_steps)
        run.open_metrics(self.step, state.metrics_bytes if state else 0)

    def fit(
        self,
        take_step: Callable[[int], StepResult],
        after_step: Callable[[int], Mapping[str, float]] | None = None,
    ) -> FitResult:
        """Run the remaining optimiser steps.

        Args:
            take_step: computes the gradient of step number i (0-based) into `.grad`; with several
                processes its share of that, and the same metrics in all.
            after_step: called with the number of applied steps; its metrics (validation) are
                logged in that step's line.

        Returns:
            How the loop ended. After Ctrl-C (SIGINT) the checkpoint holds all applied steps.

        Raises:
            TrainingError: a loss or gradient that is not finite, naming the batch.

        """
        metrics = self._run.last_metrics()
        stopped = None
        with self._watch_sigint():
            try:
                while self.step < self.total_steps and stopped is None:
                    self._leave_if_interrupted()
                    result, metrics = self._one_step(take_step)
                    stopped = result.stop
                    if stopped is None:
                        metrics.update(after_step(self.step) if after_step else {})
                    self._run.log(self.step + (stopped is not None), metrics)
                    self._progress(Progress('train', self.step, self.total_steps, metrics))
                    if self.step % self.config.checkpoint_every == 0 and stopped is None:
                        self.save()
            except TrainingInterrupted:
                log.info('interrupted at step %d; the checkpoint holds it', self.step)
            self.save()
        if stopped:
            log.warning('stopped at step %d: %s', self.step, stopped)
        done = stopped is not None or self.step >= self.total_steps
        return FitResult(self.step, self.total_steps, not done, stopped, metrics)

    def pause_point(self) -> None:
        """Leave the loop here if Ctrl-C came; a partly accumulated gradient is dropped.

        Several processes leave together, before their next step.
        """
        if self._interrupted and self._ranks.count == 1:
            raise TrainingInterrupted

    def save(self) -> None:
        """Write the checkpoint of the applied steps."""
        if not self._ranks.first:
            return
        state = TrainingState(
            step=self.step,
            identity=self._run.identity,
            parameters={n: p.detach().cpu().clone() for n, p in self._parameters.items()},
            optimizer=self._optimizer.state_dict(),
            rng=torch.get_rng_state(),
            metrics_bytes=self._run.metrics_bytes,
        )
        save_state(self._run.path, state)

    def _one_step(
        self, take_step: Callable[[int], StepResult]
    ) -> tuple[StepResult, dict[str, float]]:
        started = time.monotonic()
        self._optimizer.zero_grad(set_to_none=True)
        result = take_step(self.step)
        self._ranks.sum_gradients(self._parameters.values())
        metrics = dict(result.metrics)
        loss = metrics.get('loss', 0.0)
        if not math.isfinite(loss):
            raise TrainingError(_not_finite('loss', loss, self.step, result.batch))
        norm = gradient_norm(self._parameters.values())
        if not math.isfinite(norm):
            raise TrainingError(_not_finite('gradient norm', norm, self.step, result.batch))
        lr = self.config.lr * lr_factor(self.config, self.step, self.total_steps)
        if result.stop is None:
            limit = self.config.max_grad_norm
            if limit > 0 and norm > limit:
                _scale_gradients(self._parameters.values(), limit / (norm + 1e-6))
            for group, factor in zip(self._optimizer.param_groups, self._lr_factors, strict=True):
                group['lr'] = lr * factor
            self._optimizer.step()
            self.step += 1
        metrics |= {'grad_norm': norm, 'lr': lr, 'step_s': time.monotonic() - started}
        return result, metrics

    def _leave_if_interrupted(self) -> None:
        if self._ranks.any(self._interrupted):
            raise TrainingInterrupted

    @contextmanager
    def _watch_sigint(self) -> Iterator[None]:
        """Turn the first Ctrl-C into a pause; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)

        def pause(*_: object) -> None:
            self._interrupted = True
            if self._ranks.count > 1:  # a launcher and the terminal may each pass on one Ctrl-C
                log.warning('interrupted: all processes end before their next step')
                return
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning('interrupted: writing the checkpoint (again to stop at once)')

        signal.signal(signal.SIGINT, pause)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def lr_factor(config: LearnerConfig, step: int, total_steps: int) -> float:
    """Return the share of lr at a 0-based step: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == 'constant':
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))


def steps_in(config: LearnerConfig, examples: int) -> int:
    """Return the optimiser steps of the whole run; an epoch's last batch may be smaller."""
    return config.max_steps or config.epochs * math.ceil(examples / config.batch_size)


def batch_indices(config: LearnerConfig, step: int, examples: int) -> list[int]:
    """Return the examples of a 0-based step: each epoch is one shuffle, each example once."""
    per_epoch = math.ceil(examples / config.batch_size)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(examples, generator=generator_for(config.seed, 'order', epoch))
    start = position * config.batch_size
    return order[start : start + config.batch_size].tolist()


def generator_for(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return the generator of one purpose ('order', 'augment', ...) at one epoch or step."""
    digest = hashlib.sha256(f'{seed}/{purpose}/{index}'.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], 'big'))


def _by_lr_factor(
    parameters: Mapping[str, torch.nn.Parameter], lr_factors: Mapping[str, float]
) -> dict[float, list[torch.nn.Parameter]]:
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(lr_factors.get(name, 1.0), []).append(parameter)
    return groups


@torch.no_grad()
def gradient_norm(parameters: Iterator[torch.nn.Parameter]) -> float:
    """Return the Euclidean norm of all gradients together."""
    norms = [p.grad.float().norm() for p in parameters if p.grad is not None]
    return torch.stack(norms).norm().item() if norms else 0.0


@torch.no_grad()
def _scale_gradients(parameters: Iterator[torch.nn.Parameter], factor: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _not_finite(what: str, value: float, step: int, batch: tuple[str, ...]) -> str:
    shown = ', '.join(batch[:8]) + (f' and {len(batch) - 8} more' if len(batch) > 8 else '')
    return (
        f'The {what} is {value} at step {step}, in: {shown}. Nothing was applied. '
        'Look at these bags, lower lr, or take them out of the data; the last checkpoint is whole.'
    )
