"""Configuration of the training commands: one dataclass each, read from YAML.

Defaults are the paper's (GRAPE, arXiv 2411.19309) where it states them; config/train/*.yaml
holds what differs for the tiny policy, with reasons. An unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import yaml

from grape_trainer.objective.dpo import DpoOptions
from grape_trainer.objective.kto import KtoOptions
from grape_trainer.objective.tpo import TpoOptions

SCHEDULES = ('constant', 'cosine')
PARALLEL = ('ddp', 'fsdp')
TRAINABLE = ('all', 'lora')
NOOP_FILTERS = ('none', 'libero', 'rl4vla')
DESIRABLE = ('success', 'median', 'threshold')


class ConfigError(ValueError):
    """A configuration file or value that a person has to mend."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What every training run has: optimiser, schedule, seed, checkpoints."""

    seed: int = 0
    epochs: int = 1
    max_steps: int | None = None  # optimiser steps; overrides epochs
    batch_size: int = 16
    lr: float = 2e-5
    weight_decay: float = 0.01  # torch's AdamW default, as in the published fine-tuning script
    schedule: str = 'constant'
    warmup_steps: int = 0
    max_grad_norm: float = 1.0  # 0 switches clipping off
    checkpoint_every: int = 20  # optimiser steps
    torch_threads: int = 0  # 0 leaves torch's own choice
    device: str = 'cpu'
    parallel: str = 'ddp'  # of several processes: whole copies, or fsdp: shards of frozen weights
    gradient_checkpointing: bool = False  # less memory, a second forward pass of each block
    wandb: str = ''  # project of Weights & Biases; empty: TensorBoard alone

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._at_least('epochs', 1)
        self._at_least('batch_size', 1)
        self._at_least('checkpoint_every', 1)
        for name in ('seed', 'weight_decay', 'warmup_steps', 'max_grad_norm', 'torch_threads'):
            self._at_least(name, 0)
        if self.max_steps is not None:
            self._at_least('max_steps', 1)
        if not 0 < self.lr < 1:
            raise ConfigError(f'lr is {self.lr}; expected a number between 0 and 1.')
        self._one_of('schedule', SCHEDULES)
        self._one_of('parallel', PARALLEL)

    def _at_least(self, name: str, low: float) -> None:
        value = vars(self)[name]
        if not value >= low:
            raise ConfigError(f'{name} is {value}; expected {low} or more.')

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        value = vars(self)[name]
        if value not in choices:
            raise ConfigError(f"{name} is '{value}'; expected one of: {', '.join(choices)}.")

    @classmethod
    def load(cls, path: Path | str, overrides: Mapping[str, object] | None = None) -> Self:
        """Read a YAML file; `overrides` (from the command line) win over it.

        Raises:
            ConfigError: no such file, not a mapping, an unknown key, a wrong type or range.

        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"There is no configuration file '{path}'.")
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"'{path}' is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"'{path}' holds a {type(content).__name__}; expected key: value.")
        return cls.from_dict({**content, **(overrides or {})}, where=str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, object], where: str = 'the configuration') -> Self:
        """Build from plain values; `where` names them in errors."""
        known = {field.name: str(field.type) for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f'{where} has the unknown keys {", ".join(unknown)}; '
                f'{cls.__name__} knows: {", ".join(known)}.'
            )
        return cls(**{n: _typed(n, v, known[n], where) for n, v in values.items()})

    def to_dict(self) -> dict[str, object]:
        """Return the resolved values, ready for YAML."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(LearnerConfig):
    """What TPO, DPO and KTO share. LoRA: lr 2e-5, batch 16, rank 32, beta 0.1: GRAPE's values."""

    beta: float = 0.1
    lora_rank: int = 32
    lora_alpha: int = 16  # OpenVLA's recipe: min(rank, 16)
    chunk_steps: int = 16  # control steps in one backward pass; memory grows with it
    stop_chosen_log_ratio: float | None = None  # nats a step; stop when the mean falls below
    verify_log_probs: bool = True
    verify_tolerance: float = 1e-3  # nats a token, recorded against recomputed
    pixel_cache_gib: float = 4.0
    reference_cache: str = ''  # folder that runs share; empty: reference/ in the run's folder

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._at_least('lora_rank', 1)
        self._at_least('chunk_steps', 1)
        if not self.verify_tolerance > 0:
            raise ConfigError(f'verify_tolerance is {self.verify_tolerance}; expected above 0.')
        try:
            _ = self.options
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class TpoConfig(PreferenceConfig):
    """TPO; objective/tpo.py says what the options do."""

    per_step_mean: bool = False
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    loss: str = 'sigmoid'

    @property
    def options(self) -> TpoOptions:
        """The part that shapes the loss."""
        return TpoOptions(
            self.beta, self.per_step_mean, self.label_smoothing, self.nll_weight, self.loss
        )


@dataclass(frozen=True, kw_only=True)
class DpoConfig(PreferenceConfig):
    """Step-wise DPO; objective/dpo.py says what the options do."""

    alignment: str = 'index'
    label_smoothing: float = 0.0
    nll_weight: float = 0.0

    @property
    def options(self) -> DpoOptions:
        """The part that shapes the loss."""
        return DpoOptions(
            self.beta, self.alignment, self.label_smoothing, self.nll_weight, self.seed
        )


@dataclass(frozen=True, kw_only=True)
class KtoConfig(PreferenceConfig):
    """KTO; objective/kto.py says what the options do, scoring/desirability.py what `desirable`."""

    per_step_mean: bool = False
    reference_point: str = 'kl'
    desirable: str = 'success'
    threshold: float | None = None  # of R_GCPG, with desirable: threshold
    desirable_weight: float | None = None  # lambda_D; None balances the classes
    undesirable_weight: float | None = None  # lambda_U

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._one_of('desirable', DESIRABLE)
        if (self.desirable == 'threshold') != (self.threshold is not None):
            raise ConfigError(
                f"desirable is '{self.desirable}' and threshold {self.threshold}; expected a "
                'threshold with desirable: threshold, and none otherwise.'
            )
        if (self.desirable_weight is None) != (self.undesirable_weight is None):
            raise ConfigError(
                f'desirable_weight is {self.desirable_weight} and undesirable_weight '
                f'{self.undesirable_weight}; expected both, or none to balance the classes.'
            )

    @property
    def options(self) -> KtoOptions:
        """The part that shapes the loss; weights that are not given are 1."""
        return KtoOptions(
            self.beta,
            self.per_step_mean,
            1.0 if self.desirable_weight is None else self.desirable_weight,
            1.0 if self.undesirable_weight is None else self.undesirable_weight,
            self.reference_point,
        )


@dataclass(frozen=True, kw_only=True)
class SftConfig(LearnerConfig):
    """SFT of action tokens: lr 4e-5, batch 16: the paper's values."""

    lr: float = 4e-5
    micro_batch_size: int = 16  # rows of one backward pass; the gradient is the batch's
    trainable: str = 'all'
    lora_rank: int = 32
    lora_alpha: int = 16
    noop_filter: str = 'libero'
    corrections: bool = False  # only what a person executed in trials on a robot
    unnorm_key: str = 'grape'
    held_out_episodes: int = 0
    validate_every: int = 100  # optimiser steps
    snapshot_every: int = 0  # optimiser steps; writes step-NNNNNN/ policies, 0 for none
    shift_px: int = 0  # largest random shift at the model's image size
    brightness: float = 0.0  # factor 1 +- this
    contrast: float = 0.0
    label_sigma_bins: float = 0.0  # spreads each target over its neighbours; 0: cross-entropy

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ('micro_batch_size', 'lora_rank', 'validate_every'):
            self._at_least(name, 1)
        for name in (
            'held_out_episodes',
            'snapshot_every',
            'shift_px',
            'brightness',
            'contrast',
            'label_sigma_bins',
        ):
            self._at_least(name, 0)
        self._one_of('trainable', TRAINABLE)
        if self.parallel == 'fsdp' and self.trainable == 'all':
            raise ConfigError(
                'parallel is fsdp, which shards frozen weights, and trainable is all, which has '
                'none. Set trainable: lora, or parallel: ddp.'
            )
        self._one_of('noop_filter', NOOP_FILTERS)
        if not self.unnorm_key:
            raise ConfigError('unnorm_key is empty; expected a name for the statistics.')


def _typed(name: str, value: object, kind: str, where: str) -> object:
    """Check a YAML value against the field's type; integers and '2e-5' become floats."""
    if value is None and 'None' in kind:
        return None
    base = kind.split(' ')[0]
    right = {'int': int, 'float': (int, float), 'bool': bool, 'str': str}[base]
    if base == 'float' and isinstance(value, str):
        # YAML 1.1 reads 2e-5 (no dot) as text.
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, right) or (isinstance(value, bool) and base != 'bool'):
        raise ConfigError(f'{where}: {name} is {value!r}; expected {base}.')
    return float(value) if base == 'float' else value
