"""How much better an action was than expected: GAE, and normalisation over a batch.

Generalised advantage estimation (Schulman et al., arXiv 1506.02438, Eqs. 11-16), over the steps
t = 0 .. T-1 of one trial:

    delta_t = r_t + gamma V(s_t+1) - V(s_t)
    A_t     = delta_t + gamma lambda A_t+1          R_t = A_t + V(s_t)

With gamma = lambda = 1 this is A_t = r_t + ... + r_T-1 + V(s_T) - V(s_t).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Values closer together than this are equal: what is left is rounding, not a difference.
STD_FLOOR = 1e-6


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    gamma: float,
    lam: float,
    last_value: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of one trial.

    Args:
        rewards: (T,) float, r_t is paid for the action of step t.
        values: (T,) float, V(s_t).
        gamma: discount, 0 to 1.
        lam: lambda, 0 to 1.
        last_value: V(s_T); 0 where the trial is over, by success or by its limit of steps.

    Returns:
        (T,) advantages and (T,) returns, what the value head learns.

    Raises:
        ValueError: not (T,) both with T >= 1, or gamma or lambda out of range.

    """
    _check_steps('rewards', rewards)
    if values.shape != rewards.shape:
        raise ValueError(
            f'rewards are {tuple(rewards.shape)} and values {tuple(values.shape)}; '
            'expected the same (T,).'
        )
    for name, value in (('gamma', gamma), ('lambda', lam)):
        if not 0 <= value <= 1:
            raise ValueError(f'{name} is {value}; expected 0 to 1.')
    advantages = torch.empty_like(rewards)
    following, advantage = last_value, 0.0
    for step in range(len(rewards) - 1, -1, -1):
        delta = rewards[step] + gamma * following - values[step]
        advantage = delta + gamma * lam * advantage
        advantages[step] = advantage
        following = values[step]
    return advantages, advantages + values


def returns_to_go(rewards: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """Return (T,) discounted sums of the rewards from each step on."""
    return gae(rewards, torch.zeros_like(rewards), gamma, 1.0)[0]


def standardised(values: torch.Tensor) -> torch.Tensor:
    """Return values less their mean, over their population standard deviation.

    Any shape, taken as one set; all zeros where the values are equal (std up to STD_FLOOR), so
    that a set that says nothing teaches nothing.
    """
    centred = values - values.mean()
    std = values.std(correction=0)
    return centred / std if std > STD_FLOOR else torch.zeros_like(values)


def normalise(trials: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Standardise the advantages (T_i,) of several trials as one set.

    Raises:
        ValueError: no trial, or one that is not (T,) with T >= 1.

    """
    if not trials:
        raise ValueError('There are no advantages to normalise; expected one (T,) a trial.')
    for trial in trials:
        _check_steps('advantages', trial)
    return list(standardised(torch.cat(list(trials))).split([len(trial) for trial in trials]))


def _check_steps(name: str, values: torch.Tensor) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f'{name} are {tuple(values.shape)}; expected (T,) with T >= 1.')
