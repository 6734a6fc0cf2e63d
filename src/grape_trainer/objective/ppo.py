"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347) of action steps.

One action is a step of seven tokens. With the recorded log-probabilities as log pi_old,

    rho_t    = exp(sum over the 7 tokens of log pi(o_t | s_t) - log pi_old(o_t | s_t))
    L_policy = -mean_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)                (Eq. 7)
    L_value  = mean_t 1/2 max((V_t - R_t)^2, (V_old + clip(V_t - V_old, -c, c) - R_t)^2)
    L        = L_policy + v L_value - h mean_t H_t

and the defaults of RL4VLA (arXiv 2505.19789; repository gen-robot/RL4VLA): eps = c = 0.2, v = 1,
h = 0. Its Huber loss, with delta 10, is this square where returns are below 10. The ratio of the
step is its, too; `ratio: token` clips each token's own ratio, summed over the seven, so that both
have the same gradient while the policy is the one that acted. `value_clip: 0` is the plain loss.

Metric names are those of TRL's PPOTrainer. The approximate KL is its, too: half the mean square
of the log-ratio, of a step here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

RATIOS = ('step', 'token')


@dataclass(frozen=True)
class PpoOptions:
    """What shapes the loss; the defaults are RL4VLA's."""

    clip_range: float = 0.2
    ratio: str = 'step'
    value_clip: float = 0.2
    value_weight: float = 1.0
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.clip_range < 1:
            raise ValueError(f'clip_range is {self.clip_range}; expected between 0 and 1.')
        if self.ratio not in RATIOS:
            raise ValueError(f"ratio is '{self.ratio}'; expected one of: {', '.join(RATIOS)}.")
        for name in ('value_clip', 'value_weight', 'entropy_weight'):
            if not vars(self)[name] >= 0:
                raise ValueError(f'{name} is {vars(self)[name]}; expected 0 or more.')


@dataclass(frozen=True)
class StepBatch:
    """B recorded steps of seven tokens: what was known before the update."""

    old_log_probs: torch.Tensor  # (B, 7) float32, as recorded
    advantages: torch.Tensor  # (B,) float32


@dataclass(frozen=True)
class ValueBatch:
    """The values of the same B steps."""

    values: torch.Tensor  # (B,) of the head as it is, differentiable
    old_values: torch.Tensor  # (B,) of the head that gave the advantages
    returns: torch.Tensor  # (B,)


def ppo_loss(
    log_probs: torch.Tensor,
    entropy: torch.Tensor,
    steps: StepBatch,
    value: ValueBatch,
    options: PpoOptions,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's loss of B steps, a scalar, and its metrics.

    Args:
        log_probs: (B, 7) of the recorded tokens under the policy as it is, differentiable.
        entropy: (B, 7) of each token's distribution, nats.
        steps: log-probabilities and advantages of the acting policy.
        value: values and returns.
        options: clipping and weights.

    Raises:
        ValueError: shapes that do not belong together.

    """
    policy, metrics = policy_loss(log_probs, steps, options)
    own, clipped = value_losses(value, options.value_clip)
    metrics = {
        'loss/policy_avg': policy.item(),
        'loss/value_avg': own.mean().item(),
        'policy/approxkl_avg': metrics['kl'],
        'policy/clipfrac_avg': metrics['clip'],
        'policy/entropy_avg': entropy.mean().item(),
        'val/clipfrac_avg': clipped.float().mean().item(),
        'val/ratio': metrics['ratio'],
    }
    loss = policy + options.value_weight * own.mean() - options.entropy_weight * entropy.mean()
    return loss, {'loss': loss.item(), **metrics}


def policy_loss(
    log_probs: torch.Tensor, steps: StepBatch, options: PpoOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Clipped surrogate of B steps, and `kl`, `clip` (share of clipped steps or tokens), `ratio`.

    Raises:
        ValueError: shapes that do not belong together.

    """
    if log_probs.ndim != 2 or steps.old_log_probs.shape != log_probs.shape:
        raise ValueError(
            f'log_probs are {tuple(log_probs.shape)}, the recorded ones '
            f'{tuple(steps.old_log_probs.shape)}; expected the same (B, 7).'
        )
    if steps.advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            f'advantages are {tuple(steps.advantages.shape)}; expected ({len(log_probs)},).'
        )
    difference = log_probs - steps.old_log_probs
    log_ratio = difference.sum(1, keepdim=True) if options.ratio == 'step' else difference
    ratio = log_ratio.exp()
    advantage = steps.advantages[:, None]
    bounded = ratio.clamp(1 - options.clip_range, 1 + options.clip_range)
    plain, limited = ratio * advantage, bounded * advantage
    metrics = {
        'kl': 0.5 * difference.detach().sum(1).square().mean().item(),
        'clip': (limited < plain).float().mean().item(),
        'ratio': ratio.detach().mean().item(),
    }
    return -torch.minimum(plain, limited).sum(1).mean(), metrics


def value_losses(value: ValueBatch, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B,) value losses and (B,) whether the clipped error is the one that counts.

    Raises:
        ValueError: the three are not (B,).

    """
    shapes = {name: tuple(tensor.shape) for name, tensor in vars(value).items()}
    if len(set(shapes.values())) != 1 or value.values.ndim != 1:
        raise ValueError(f'The values have the shapes {shapes}; expected (B,) for all.')
    plain = (value.values - value.returns).square()
    if clip == 0:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    near = value.old_values + (value.values - value.old_values).clamp(-clip, clip)
    limited = (near - value.returns).square()
    return 0.5 * torch.maximum(plain, limited), limited > plain


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns); 0 where all returns are equal.

    1: the values are the returns up to a constant; 0: no better than a constant.
    """
    variance = returns.var(correction=0)
    if not variance > 0:
        return 0.0
    return (1 - (returns - values).var(correction=0) / variance).item()
