"""Group-relative policy optimisation: the group's trials are the baseline, without a value head.

A group has M trials of one task and initial state (or of the whole batch), with rewards r_it.
Three forms of advantage, standardised by mean and population std:

outcome        A_it = std_i(sum_k r_ik)                  the same for all steps of a trial.
               DeepSeekMath (arXiv 2402.03300, Sec. 4.1.2), outcome supervision.
steps          A_it = std_it(sum_k>=t gamma^(k-t) r_ik)  over all steps of the group.
rewards_to_go  A_it = sum_k>=t std_ik(r_ik)              over the group's rewards that are not 0.
               DeepSeekMath (Sec. 4.1.3), process supervision, as in RL4VLA's published code.

RL4VLA (arXiv 2505.19789, Eqs. 3-6) compares GRPO with GRPO (s). The text of its equations was not
at hand; its code (gen-robot/RL4VLA, replay_buffer.py) uses `rewards_to_go` for both, with the
whole batch as the group in GRPO, and with trials of one initial state in GRPO (s). So these are
`advantage: rewards_to_go` with `group: batch` and `group: state`; `outcome` and `steps` are the
readings of the same two signals that do not punish a grasp for paying less than a success. (With
success alone, `rewards_to_go` says nothing: all rewards that are not 0 are equal.)

A group of std 0, such as five failures, has zero advantages and is counted.

The loss is PPO's clipped surrogate, a mean over steps (not first over each trial's), plus b times
the KL divergence to a reference by the estimator k3 (DeepSeekMath, Eq. 4), a mean over tokens:

    k3 = exp(log pi_ref - log pi) - (log pi_ref - log pi) - 1

Metric names are those of TRL's GRPOTrainer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from grape_trainer.objective.advantage import returns_to_go, standardised
from grape_trainer.objective.ppo import PpoOptions, StepBatch, policy_loss

# The rewards (T_i,) of a group's trials and gamma -> the advantages (T_i,) of each.
Form = Callable[[Sequence[torch.Tensor], float], list[torch.Tensor]]


@dataclass(frozen=True)
class GroupedAdvantages:
    """The advantages (T_i,) of all trials; `zero_groups` of `groups` had equal trials."""

    advantages: tuple[torch.Tensor, ...]
    groups: int
    zero_groups: int


def outcome_advantages(rewards: Sequence[torch.Tensor], gamma: float = 1.0) -> list[torch.Tensor]:
    """Return each trial's standardised sum of rewards, for all its steps; gamma is not used."""
    totals = standardised(torch.stack([trial.sum() for trial in rewards]))
    return [total.expand(len(trial)).clone() for total, trial in zip(totals, rewards, strict=True)]


def step_advantages(rewards: Sequence[torch.Tensor], gamma: float = 1.0) -> list[torch.Tensor]:
    """Return each step's return, standardised over all steps of the group."""
    returns = torch.cat([returns_to_go(trial, gamma) for trial in rewards])
    return list(standardised(returns).split([len(trial) for trial in rewards]))


def reward_to_go_advantages(
    rewards: Sequence[torch.Tensor], gamma: float = 1.0
) -> list[torch.Tensor]:
    """Return sums to go of the group's standardised rewards that are not 0."""
    pooled = torch.cat(list(rewards))
    paid = pooled != 0
    scaled = torch.zeros_like(pooled)
    if paid.any():
        scaled[paid] = standardised(pooled[paid])
    trials = scaled.split([len(trial) for trial in rewards])
    return [returns_to_go(trial, gamma) for trial in trials]


FORMS: Mapping[str, Form] = {
    'outcome': outcome_advantages,
    'steps': step_advantages,
    'rewards_to_go': reward_to_go_advantages,
}


def grouped_advantages(
    rewards: Sequence[torch.Tensor], groups: Sequence[Hashable], form: Form, gamma: float = 1.0
) -> GroupedAdvantages:
    """Apply a form of advantage to each group of trials.

    Args:
        rewards: (T_i,) float of each trial.
        groups: the group of each trial.
        form: of `FORMS`, or of tgrpo.py.
        gamma: discount, 0 to 1.

    Raises:
        ValueError: no trials, not one group each, or rewards that are not (T,) with T >= 1.

    """
    if not rewards or len(rewards) != len(groups):
        raise ValueError(
            f'{len(rewards)} trials and {len(groups)} groups; expected one group for each trial '
            'and at least one trial.'
        )
    shapes = [tuple(trial.shape) for trial in rewards if trial.ndim != 1 or len(trial) == 0]
    if shapes:
        raise ValueError(f'rewards are {shapes[0]}; expected (T,) with T >= 1.')
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    advantages: dict[int, torch.Tensor] = {}
    zero = 0
    for indices in members.values():
        found = form([rewards[index] for index in indices], gamma)
        zero += not any(trial.any() for trial in found)
        advantages.update(zip(indices, found, strict=True))
    ordered = tuple(advantages[index] for index in range(len(rewards)))
    return GroupedAdvantages(ordered, len(members), zero)


def grpo_loss(
    log_probs: torch.Tensor,
    steps: StepBatch,
    options: PpoOptions,
    reference: torch.Tensor | None = None,
    kl_weight: float = 0.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Clipped surrogate plus the KL penalty, a scalar, and its metrics.

    Args:
        log_probs: (B, 7) of the recorded tokens under the policy as it is, differentiable.
        steps: log-probabilities and advantages of the acting policy.
        options: `clip_range` and `ratio` count.
        reference: (B, 7) under the reference; needed where kl_weight is not 0.
        kl_weight: b, 0 or more.

    Raises:
        ValueError: shapes that do not belong together, or a negative weight.

    """
    if not kl_weight >= 0 or (kl_weight > 0 and reference is None):
        raise ValueError(
            f'kl_weight is {kl_weight} with{"" if reference is not None else "out"} a reference; '
            "expected 0 or more, and above 0 the reference's log-probabilities."
        )
    policy, found = policy_loss(log_probs, steps, options)
    metrics = {
        'loss/policy_avg': policy.item(),
        'policy/approxkl_avg': found['kl'],
        'clip_ratio/region_mean': found['clip'],
        'val/ratio': found['ratio'],
    }
    loss = policy
    if kl_weight > 0:
        kl = k3(log_probs, reference).mean()
        metrics['kl'] = kl.item()
        loss = loss + kl_weight * kl
    return loss, {'loss': loss.item(), **metrics}


def k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return each token's estimate of KL(pi || pi_ref), 0 or more, in the given shape.

    Raises:
        ValueError: shapes differ.

    """
    if log_probs.shape != reference.shape:
        raise ValueError(
            f'log_probs are {tuple(log_probs.shape)} and those of the reference '
            f'{tuple(reference.shape)}; expected the same.'
        )
    gap = reference - log_probs
    return torch.expm1(gap) - gap
