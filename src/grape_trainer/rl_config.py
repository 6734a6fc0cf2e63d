"""Configuration of `grape train ppo`, `grpo` and `tgrpo`: one dataclass each, read from YAML.

Defaults are those of RL4VLA (arXiv 2505.19789; repository gen-robot/RL4VLA, train_ms3_ppo.py and
openvla_train.py) where it has the value; config/train/*_tiny.yaml holds what differs for the tiny
policy, with reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grape_trainer.objective.grpo import FORMS
from grape_trainer.objective.ppo import RATIOS, PpoOptions
from grape_trainer.training_config import ConfigError, LearnerConfig

REWARDS = ('grasp_hold', 'grasp_hold_difference', 'stage', 'success')
OTHER_TRIALS = ('refuse', 'leave_out', 'keep')
GROUPS = ('state', 'batch')
REFERENCES = ('start', 'base')


@dataclass(frozen=True, kw_only=True)
class RlConfig(LearnerConfig):
    """What the three methods share. An example of `batch_size` is one control step.

    RL4VLA: lr 1e-4, 160 steps an update (8 x 20), one epoch, gradient norm 10, clip range 0.2.
    """

    kind: ClassVar[str]

    batch_size: int = 160
    lr: float = 1e-4
    max_grad_norm: float = 10.0
    clip_range: float = 0.2
    ratio: str = 'step'  # or token: objective/ppo.py
    reward: str = 'grasp_hold'  # objective/sparse_reward.py
    objective: str = 'completion'  # whose segmentation finds grasps and stages
    gamma: float = 1.0
    other_trials: str = 'refuse'  # by another policy or adapter; keep: learn off-policy
    stop_kl: float | None = None  # nats a step; stop when the approximate KL is above
    lora_rank: int = 32
    lora_alpha: int = 16  # OpenVLA's recipe: min(rank, 16)
    chunk_steps: int = 16  # control steps in one backward pass; memory grows with it
    verify_log_probs: bool = True
    verify_tolerance: float = 1e-3  # nats a token, recorded against recomputed
    pixel_cache_gib: float = 4.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._at_least('lora_rank', 1)
        self._at_least('chunk_steps', 1)
        self._one_of('ratio', RATIOS)
        self._one_of('reward', REWARDS)
        self._one_of('other_trials', OTHER_TRIALS)
        self._share('gamma')
        if not self.verify_tolerance > 0:
            raise ConfigError(f'verify_tolerance is {self.verify_tolerance}; expected above 0.')
        if self.stop_kl is not None and not self.stop_kl > 0:
            raise ConfigError(f'stop_kl is {self.stop_kl}; expected above 0, or null.')
        try:
            _ = self.options
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def options(self) -> PpoOptions:
        """The part that shapes the loss."""
        return PpoOptions(self.clip_range, self.ratio)

    def _share(self, name: str) -> None:
        value = vars(self)[name]
        if not 0 <= value <= 1:
            raise ConfigError(f'{name} is {value}; expected 0 to 1.')


@dataclass(frozen=True, kw_only=True)
class PpoConfig(RlConfig):
    """PPO with a value head on the policy's backbone.

    RL4VLA: gamma 0.99, lambda 0.95, the value head's lr 3e-3 (30 times the policy's).
    """

    kind: ClassVar[str] = 'ppo'

    gamma: float = 0.99
    gae_lambda: float = 0.95
    normalise_advantages: bool = True  # over all steps of the run
    value_weight: float = 1.0
    value_clip: float = 0.2  # 0: the plain loss
    value_lr_factor: float = 30.0
    value_warmup_steps: int = 0  # optimiser steps of the head alone, before the others
    shared_backbone: bool = True  # false: the value loss does not reach the adapter
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._share('gae_lambda')
        self._at_least('value_warmup_steps', 0)
        if not self.value_lr_factor > 0:
            raise ConfigError(f'value_lr_factor is {self.value_lr_factor}; expected above 0.')

    @property
    def options(self) -> PpoOptions:
        """The part that shapes the loss."""
        return PpoOptions(
            self.clip_range, self.ratio, self.value_clip, self.value_weight, self.entropy_weight
        )


@dataclass(frozen=True, kw_only=True)
class GroupConfig(RlConfig):
    """What GRPO and TGRPO share: groups of trials, and a KL penalty to a reference."""

    group: str = 'state'  # trials of one task and initial state; batch: all
    kl_weight: float = 0.0
    reference: str = 'start'  # the policy before this run; base: the adapter switched off

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._one_of('group', GROUPS)
        self._one_of('reference', REFERENCES)
        self._at_least('kl_weight', 0)


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(GroupConfig):
    """GRPO; which of RL4VLA's two it is, objective/grpo.py says."""

    kind: ClassVar[str] = 'grpo'

    advantage: str = 'outcome'

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._one_of('advantage', tuple(FORMS))


@dataclass(frozen=True, kw_only=True)
class TgrpoConfig(GroupConfig):
    """TGRPO; kl_weight is DeepSeekMath's (arXiv 2402.03300), its own was not at hand."""

    kind: ClassVar[str] = 'tgrpo'

    reward: str = 'stage'
    kl_weight: float = 0.04
    alpha_step: float = 1.0
    alpha_trial: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._at_least('alpha_step', 0)
        self._at_least('alpha_trial', 0)
        if self.alpha_step + self.alpha_trial == 0:
            raise ConfigError('alpha_step and alpha_trial are 0; expected one of them above 0.')
