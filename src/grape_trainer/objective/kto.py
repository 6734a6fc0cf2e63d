"""An unpaired objective for trials that never share an initial state, after KTO.

KTO (arXiv 2402.01306, Eqs. 7-8) asks of each answer alone whether it is desirable. Here the answer
is a whole trial, with the log-ratio r = log pi(zeta) - log pi_ref(zeta):

    desirable     loss = lambda_D * (1 - sigma(beta * (r - z0)))
    undesirable   loss = lambda_U * (1 - sigma(beta * (z0 - r)))

A batch's loss is the mean. z0 is detached; `reference_point` names it:

- `kl`: max(0, the mean of the batch's r). KTO estimates KL(pi || pi_ref) from answers that are put
  under other prompts; TRL clamps it at 0 too. Mismatched trials would need a second reference pass
  a batch, so the batch's own are taken. They were sampled by pi_ref, for which E[r] is
  -KL(pi_ref || pi) <= 0: the clamp at 0 is what is mostly seen.
- `batch_mean`: the same without the clamp, a baseline in the sense of policy gradients. When the
  likelihood of all trials sinks, this one sinks with them.
- `zero`: 0, as in APO-zero (arXiv 2408.06266).

r is a sum over about 1000 tokens; where |beta r| is large the sigmoid is flat and the trial is not
learned from. `per_step_mean` divides r by the trial's steps.

The weights balance the classes: lambda_D n_D = lambda_U n_U (the paper: a ratio of 1 to 4/3),
`balanced_weights`. Metric names are TRL's: `kl` is z0, rewards are beta r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from grape_trainer.objective.weighing import (
    Example,
    TrialLogProbs,
    Weighed,
    column,
    float_metrics,
    no_factors,
)

REFERENCE_POINTS = ('kl', 'batch_mean', 'zero')


class LabelledExample(Example, Protocol):
    """One trial, its only role 'trial', and whether it is desirable."""

    @property
    def desirable(self) -> bool:
        """Whether to make it more likely."""


@dataclass(frozen=True)
class KtoOptions:
    """What shapes the loss."""

    one_factor_a_trial: ClassVar[bool] = True
    beta: float = 0.1
    per_step_mean: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference_point: str = 'kl'

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ('beta', 'desirable_weight', 'undesirable_weight'):
            if not vars(self)[name] > 0:
                raise ValueError(f'{name} is {vars(self)[name]}; expected a number above 0.')
        if self.reference_point not in REFERENCE_POINTS:
            raise ValueError(
                f"reference_point is '{self.reference_point}'; expected one of: "
                f'{", ".join(REFERENCE_POINTS)}.'
            )

    def weigh(
        self, examples: Sequence[LabelledExample], trials: Mapping[Path, TrialLogProbs]
    ) -> Weighed:
        """Return metrics and factors of the mean loss of labelled trials (weighing.Objective)."""
        found = [trials[example.bags['trial']] for example in examples]
        batch = LabelledBatch(
            log_probs=column([t.total for t in found]),
            reference=column([t.reference_total for t in found]),
            steps=column([t.steps for t in found]),
            desirable=torch.tensor([example.desirable for example in examples]),
        )
        factors = no_factors(trials)
        for example, weight in zip(examples, trial_weights(batch, self), strict=True):
            factors[example.bags['trial']] += weight / len(examples)
        return Weighed(kto_metrics(batch, self), factors)


@dataclass(frozen=True)
class LabelledBatch:
    """B whole trials; every field is (B,)."""

    log_probs: torch.Tensor  # float
    reference: torch.Tensor  # float
    steps: torch.Tensor  # float
    desirable: torch.Tensor  # bool

    def __post_init__(self) -> None:
        """Check that all fields have one and the same length."""
        shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
        if len(set(shapes.values())) != 1 or len(shapes['steps']) != 1:
            raise ValueError(f'A labelled batch has the shapes {shapes}; expected (B,) for all.')


def balanced_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """Return (lambda_D, lambda_U) with equal products of weight and count, 1 on average.

    Raises:
        ValueError: a class without trials.

    """
    if not (desirable > 0 and undesirable > 0):
        raise ValueError(
            f'There are {desirable} desirable and {undesirable} undesirable trials; expected at '
            'least one of each.'
        )
    total = desirable + undesirable
    return total / (2 * desirable), total / (2 * undesirable)


def log_ratios(batch: LabelledBatch, options: KtoOptions) -> torch.Tensor:
    """Return r, (B,)."""
    ratios = batch.log_probs - batch.reference.detach()
    return ratios / batch.steps if options.per_step_mean else ratios


def reference_point(batch: LabelledBatch, options: KtoOptions) -> torch.Tensor:
    """Return z0, a detached scalar."""
    mean = log_ratios(batch, options).detach().mean()
    if options.reference_point == 'kl':
        return mean.clamp(min=0)
    return mean if options.reference_point == 'batch_mean' else torch.zeros_like(mean)


def kto_losses(batch: LabelledBatch, options: KtoOptions) -> torch.Tensor:
    """Return the (B,) losses of the trials, before the mean."""
    signs, weights = _signs_and_weights(batch, options)
    return weights * torch.sigmoid(-_logits(batch, options, signs))


@torch.no_grad()
def trial_weights(batch: LabelledBatch, options: KtoOptions) -> torch.Tensor:
    """Return d(trial's loss) / d(log pi) in closed form, (B,); z0 is a constant."""
    signs, weights = _signs_and_weights(batch, options)
    z = _logits(batch, options, signs)
    slope = -weights * options.beta * signs * torch.sigmoid(z) * torch.sigmoid(-z)
    return slope / batch.steps if options.per_step_mean else slope


@torch.no_grad()
def kto_metrics(batch: LabelledBatch, options: KtoOptions) -> dict[str, float]:
    """Return the batch's metrics; those of a class that the batch has no trial of are left out."""
    rewards = options.beta * log_ratios(batch, options)
    per_step = (batch.log_probs - batch.reference) / batch.steps
    metrics = {
        'loss': kto_losses(batch, options).mean(),
        'kl': reference_point(batch, options),
    }
    classes = {'chosen': batch.desirable, 'rejected': ~batch.desirable}
    for name, members in classes.items():
        metrics[f'count/{name}'] = members.sum()
        if members.any():
            metrics[f'rewards/{name}'] = rewards[members].mean()
            metrics[f'logps/{name}'] = batch.log_probs[members].mean()
            metrics[f'log_ratio_per_step/{name}'] = per_step[members].mean()
    if all(members.any() for members in classes.values()):
        metrics['rewards/margins'] = metrics['rewards/chosen'] - metrics['rewards/rejected']
    return float_metrics(metrics)


def _logits(batch: LabelledBatch, options: KtoOptions, signs: torch.Tensor) -> torch.Tensor:
    """Return beta (r - z0), its sign turned for undesirable trials, (B,)."""
    return options.beta * signs * (log_ratios(batch, options) - reference_point(batch, options))


def _signs_and_weights(
    batch: LabelledBatch, options: KtoOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    ones = torch.ones_like(batch.reference)
    signs = torch.where(batch.desirable, ones, -ones)
    weights = torch.where(
        batch.desirable, options.desirable_weight * ones, options.undesirable_weight * ones
    )
    return signs, weights
