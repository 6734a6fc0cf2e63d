"""Step-wise direct preference optimisation, the baseline that TPO is compared with.

DPO (arXiv 2305.18290, Eq. 7) compares two answers to one prompt. Step-wise, the prompt is an
observation and the answer its action. GRAPE (arXiv 2411.19309) reports such a baseline without
saying how its step pairs are made, and has published no code of it; here a pair of trials w, l of
one task and initial state is cut into n = min(T_w, T_l) step pairs, and

    z_t  = beta * [(log pi - log pi_ref)(a_t | s_t)_w - (log pi - log pi_ref)(a_t' | s_t')_l]
    loss = mean over pairs of trials of  (1/n) sum_t -log sigma(z_t)

`alignment` says which steps meet:

- `index`: t with t. What the longer trial did after the shorter one's end is not used.
- `stretch`: n steps spread evenly over each trial, so that ends meet.
- `random`: each step of one trial with a random step of the other, each at most once; drawn once
  a pair from (seed, the pair's name).

Only at t = 0 do both trials see the same state: from there on the states differ, and DPO's premise
of one prompt does not hold. That is the baseline's weakness, not this code's. Each step has a
weight of its own, beta sigma(-z_t) / n, where TPO has one for the whole trial.

`label_smoothing` and `nll_weight` (over the aligned steps) are as in tpo.py. Metric names are
TRL's; rewards and logps are means over the aligned steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from grape_trainer.objective.tpo import check_pair_terms, logistic_loss, logistic_slope
from grape_trainer.objective.weighing import (
    Example,
    TrialLogProbs,
    Weighed,
    float_metrics,
    no_factors,
)

ALIGNMENTS = ('index', 'stretch', 'random')


@dataclass(frozen=True)
class DpoOptions:
    """What shapes the loss; `seed` is of the random alignment."""

    one_factor_a_trial: ClassVar[bool] = False
    beta: float = 0.1
    alignment: str = 'index'
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.beta > 0:
            raise ValueError(f'beta is {self.beta}; expected a number above 0.')
        if self.alignment not in ALIGNMENTS:
            raise ValueError(
                f"alignment is '{self.alignment}'; expected one of: {', '.join(ALIGNMENTS)}."
            )
        check_pair_terms(self.label_smoothing, self.nll_weight)

    def weigh(self, examples: Sequence[Example], trials: Mapping[Path, TrialLogProbs]) -> Weighed:
        """Return metrics and factors of the mean loss of a batch of pairs (weighing.Objective)."""
        factors, parts = no_factors(trials), []
        for pair in examples:
            bags = pair.bags['chosen'], pair.bags['rejected']
            steps = align(trials[bags[0]].steps, trials[bags[1]].steps, self, pair.name)
            batch = StepPairs.of(trials[bags[0]], trials[bags[1]], steps)
            for bag, index, weight in zip(bags, steps, step_weights(batch, self), strict=True):
                # Each step occurs at most once, so that += adds all.
                factors[bag][index] += weight / len(examples)
            parts.append(dpo_metrics(batch, self))
        means = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        return Weighed(means, factors)


@dataclass(frozen=True)
class StepPairs:
    """Log-probabilities of the actions of n aligned step pairs; every field is (n,) float."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    tokens: int  # of one step

    def __post_init__(self) -> None:
        """Check that all fields have one and the same length."""
        shapes = {n: tuple(v.shape) for n, v in vars(self).items() if n != 'tokens'}
        if len(set(shapes.values())) != 1 or len(shapes['chosen']) != 1:
            raise ValueError(f'Step pairs have the shapes {shapes}; expected (n,) for all.')

    @classmethod
    def of(
        cls,
        chosen: TrialLogProbs,
        rejected: TrialLogProbs,
        steps: tuple[torch.Tensor, torch.Tensor],
    ) -> StepPairs:
        """Take the aligned steps of two trials."""
        (policy_w, ref_w), (policy_l, ref_l) = (
            chosen.at_steps(steps[0]),
            rejected.at_steps(steps[1]),
        )
        return cls(policy_w, policy_l, ref_w, ref_l, chosen.policy.shape[1])


def align(
    chosen_steps: int, rejected_steps: int, options: DpoOptions, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which steps of the chosen and the rejected trial meet, (n,) int64 each, n the less.

    Args:
        chosen_steps: T_w.
        rejected_steps: T_l.
        options: alignment and seed.
        name: of the pair; only the random alignment depends on it.

    """
    lengths, count = (chosen_steps, rejected_steps), min(chosen_steps, rejected_steps)
    if options.alignment == 'stretch':
        return tuple(torch.linspace(0, steps - 1, count).round().long() for steps in lengths)
    if options.alignment == 'random':
        digest = hashlib.sha256(f'{options.seed}/{name}'.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], 'big'))
        return tuple(torch.randperm(steps, generator=generator)[:count] for steps in lengths)
    return torch.arange(count), torch.arange(count)


def step_logits(batch: StepPairs, options: DpoOptions) -> torch.Tensor:
    """Return z_t, (n,)."""
    chosen = batch.chosen - batch.ref_chosen.detach()
    rejected = batch.rejected - batch.ref_rejected.detach()
    return options.beta * (chosen - rejected)


def dpo_loss(batch: StepPairs, options: DpoOptions) -> torch.Tensor:
    """Return the loss of one pair of trials, a scalar: the mean over its step pairs."""
    losses = logistic_loss(step_logits(batch, options), options.label_smoothing)
    if options.nll_weight > 0:
        losses = losses - options.nll_weight * batch.chosen / batch.tokens
    return losses.mean()


@torch.no_grad()
def step_weights(batch: StepPairs, options: DpoOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return d(pair's loss) / d(log pi of a step) in closed form, (n,) chosen and rejected."""
    slope = logistic_slope(step_logits(batch, options), options.label_smoothing)
    count = len(slope)
    chosen = options.beta * slope / count
    rejected = -options.beta * slope / count
    if options.nll_weight > 0:
        chosen = chosen - options.nll_weight / (batch.tokens * count)
    return chosen, rejected


@torch.no_grad()
def dpo_metrics(batch: StepPairs, options: DpoOptions) -> dict[str, float]:
    """Return means over one pair's steps under TRL's metric names, and the log-ratios a step."""
    ratio_chosen = batch.chosen - batch.ref_chosen
    ratio_rejected = batch.rejected - batch.ref_rejected
    metrics = {
        'loss': dpo_loss(batch, options),
        'rewards/chosen': options.beta * ratio_chosen.mean(),
        'rewards/rejected': options.beta * ratio_rejected.mean(),
        'rewards/margins': options.beta * (ratio_chosen - ratio_rejected).mean(),
        'rewards/accuracies': (ratio_chosen > ratio_rejected).float().mean(),
        'logps/chosen': batch.chosen.mean(),
        'logps/rejected': batch.rejected.mean(),
        'log_ratio_per_step/chosen': ratio_chosen.mean(),
        'log_ratio_per_step/rejected': ratio_rejected.mean(),
    }
    if options.nll_weight > 0:
        metrics['loss/nll'] = -(batch.chosen / batch.tokens).mean()
    return float_metrics(metrics)
