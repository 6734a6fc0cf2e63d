"""Trajectory-wise group-relative policy optimisation, TGRPO (arXiv 2506.08440): the advantages.

M trials of one task and initial state have the stage rewards x_it: how far trial i is at step t.

    S_it   = std_i(x_it)                  against the other trials at the same step
    T_i    = std_i(sum_t x_it)            against the other trials as a whole
    Adv_it = alpha_step S_it + alpha_trial T_i

The loss is GRPO's with a KL penalty to the reference (grpo.grpo_loss). In the paper all trials of
a group stop together, as soon as one succeeds, and have the same length. Recorded trials have
not: one that ended counts on with its last x_it up to the end of the group's longest trial, so
that an early success is worth most and every step is compared with the whole group.

The trainer's rewards are what was gained at each step (sparse_reward.stage_rewards), hence
x_it = r_i0 + ... + r_it. That the reward is the level reached, not the gain, is our reading: the
paper's rewards are written task by task by a language model. The same holds for the weights, which
were not at hand: both are 1. With both signals standardised, neither outweighs the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grape_trainer.objective.advantage import STD_FLOOR, standardised
from grape_trainer.objective.grpo import Form


def tgrpo_form(alpha_step: float = 1.0, alpha_trial: float = 1.0) -> Form:
    """Return the advantages of a group as a form for `grpo.grouped_advantages`.

    Args:
        alpha_step: weight of S_it, 0 or more.
        alpha_trial: weight of T_i, 0 or more.

    Raises:
        ValueError: a negative weight, or both 0.

    """
    if not (alpha_step >= 0 and alpha_trial >= 0 and alpha_step + alpha_trial > 0):
        raise ValueError(
            f'alpha_step is {alpha_step} and alpha_trial {alpha_trial}; expected 0 or more, and '
            'one of them above 0.'
        )

    def advantages(rewards: Sequence[torch.Tensor], gamma: float = 1.0) -> list[torch.Tensor]:
        levels = _levels(rewards)
        combined = alpha_step * _by_step(levels) + alpha_trial * _by_trial(levels)[:, None]
        return [row[: len(trial)].clone() for row, trial in zip(combined, rewards, strict=True)]

    return advantages


def _levels(rewards: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (M, longest T): the sums so far, each trial's last one up to the end."""
    longest = max(len(trial) for trial in rewards)
    sums = [trial.cumsum(0) for trial in rewards]
    return torch.stack([torch.cat([s, s[-1:].expand(longest - len(s))]) for s in sums])


def _by_step(levels: torch.Tensor) -> torch.Tensor:
    """S: (M, T) standardised over the trials at each step; 0 where all are equal."""
    std = levels.std(0, correction=0)
    scaled = (levels - levels.mean(0)) / std.clamp_min(STD_FLOOR)
    return torch.where(std > STD_FLOOR, scaled, torch.zeros_like(levels))


def _by_trial(levels: torch.Tensor) -> torch.Tensor:
    """T: (M,) standardised sums over the steps, which are as many for all."""
    return standardised(levels.mean(1))
