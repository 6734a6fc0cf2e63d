"""Trajectory-wise preference optimisation, TPO (GRAPE, arXiv 2411.19309, Eqs. 5-6).

A pair is a chosen trial w and a rejected trial l of one task and initial state. With
log pi(zeta) = sum over steps and tokens of log pi(o_t | s_t),

    z    = beta * [(log pi(w) - log pi_ref(w)) - (log pi(l) - log pi_ref(l))]
    loss = -log sigma(z)

The loss is a function of two scalars a pair, so that its gradient splits over steps:

    d loss / d log pi(w) = -beta * sigma(-z)        d loss / d log pi(l) = +beta * sigma(-z)

`pair_weights` returns these factors: one pass without gradient gives z, a second pass
backpropagates every chunk of steps with that constant weight. The result is the gradient of the
whole trajectory in memory that does not grow with its length (train_tpo.py).

Options beyond the paper, each off by default:

- `per_step_mean` divides a trial's log-ratio by its steps. Every step has 7 tokens, so this is
  length normalisation (TRL's `sigmoid_norm`, a mean over tokens) at 7 times the beta; there is no
  second option for it. SimPO normalises too, but has no reference, which is another method.
- `label_smoothing` is cDPO's.
- `loss: ipo` is IPO's squared loss (arXiv 2310.12036, Eq. 17): (z / beta - 1 / (2 beta))^2. It
  stops pushing at a difference of 1 / (2 beta) nats: 5 nats a trial at beta 0.1, so it wants
  `per_step_mean` or a small beta.
- `nll_weight` adds the SFT loss of the chosen trial (mean over tokens) against likelihood
  displacement.

Metric names are TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from grape_trainer.objective.weighing import (
    Example,
    TrialLogProbs,
    Weighed,
    column,
    float_metrics,
    no_factors,
)

LOSSES = ('sigmoid', 'ipo')


@dataclass(frozen=True)
class TpoOptions:
    """What shapes the loss; the defaults are the paper's."""

    one_factor_a_trial: ClassVar[bool] = True
    beta: float = 0.1
    per_step_mean: bool = False
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    loss: str = 'sigmoid'

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.beta > 0:
            raise ValueError(f'beta is {self.beta}; expected a number above 0 (paper: 0.1).')
        check_pair_terms(self.label_smoothing, self.nll_weight)
        if self.loss not in LOSSES:
            raise ValueError(f"loss is '{self.loss}'; expected one of: {', '.join(LOSSES)}.")
        if self.loss == 'ipo' and self.label_smoothing:
            raise ValueError(
                f'label_smoothing is {self.label_smoothing} with loss ipo, which has none; set it '
                'to 0 or take loss sigmoid.'
            )

    def weigh(self, examples: Sequence[Example], trials: Mapping[Path, TrialLogProbs]) -> Weighed:
        """Return metrics and factors of the mean loss of a batch of pairs (weighing.Objective)."""
        chosen = [trials[pair.bags['chosen']] for pair in examples]
        rejected = [trials[pair.bags['rejected']] for pair in examples]
        batch = PairBatch(
            chosen=column([t.total for t in chosen]),
            rejected=column([t.total for t in rejected]),
            ref_chosen=column([t.reference_total for t in chosen]),
            ref_rejected=column([t.reference_total for t in rejected]),
            chosen_steps=column([t.steps for t in chosen]),
            rejected_steps=column([t.steps for t in rejected]),
            chosen_tokens=column([t.policy.numel() for t in chosen]),
        )
        factors = no_factors(trials)
        for pair, chosen_weight, rejected_weight in zip(
            examples, *pair_weights(batch, self), strict=True
        ):
            factors[pair.bags['chosen']] += chosen_weight / len(examples)
            factors[pair.bags['rejected']] += rejected_weight / len(examples)
        return Weighed(tpo_metrics(batch, self), factors)


@dataclass(frozen=True)
class PairBatch:
    """Whole-trajectory log-probabilities of B pairs; every field is a (B,) float tensor.

    `*_steps` counts control steps, `chosen_tokens` the chosen trial's action tokens.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_steps: torch.Tensor
    rejected_steps: torch.Tensor
    chosen_tokens: torch.Tensor

    def __post_init__(self) -> None:
        """Check that all fields have one and the same length."""
        shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
        if len(set(shapes.values())) != 1 or len(shapes['chosen']) != 1:
            raise ValueError(f'A pair batch has the shapes {shapes}; expected (B,) for all.')


def tpo_loss(batch: PairBatch, options: TpoOptions) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean TPO loss of a batch of pairs and its metrics.

    Args:
        batch: B pairs; gradients flow through `chosen` and `rejected` only.
        options: beta and the named options.

    Returns:
        The scalar loss and the metrics rewards/*, logps/* (TRL's names), chosen and rejected
        log-ratio per step, and, with an anchor, loss/nll.

    """
    losses = tpo_pair_losses(batch, options)
    return losses.mean(), tpo_metrics(batch, options)


def tpo_pair_losses(batch: PairBatch, options: TpoOptions) -> torch.Tensor:
    """Return the (B,) losses of the pairs, before the mean."""
    z = preference_logit(batch, options)
    if options.loss == 'ipo':
        losses = ((z - 0.5) / options.beta).square()
    else:
        losses = logistic_loss(z, options.label_smoothing)
    if options.nll_weight > 0:
        losses = losses - options.nll_weight * batch.chosen / batch.chosen_tokens
    return losses


def preference_logit(batch: PairBatch, options: TpoOptions) -> torch.Tensor:
    """Return z of Eq. 6, (B,): beta times the difference of the two trials' log-ratios."""
    chosen_ratio = batch.chosen - batch.ref_chosen.detach()
    rejected_ratio = batch.rejected - batch.ref_rejected.detach()
    if options.per_step_mean:
        chosen_ratio = chosen_ratio / batch.chosen_steps
        rejected_ratio = rejected_ratio / batch.rejected_steps
    return options.beta * (chosen_ratio - rejected_ratio)


def check_pair_terms(label_smoothing: float, nll_weight: float) -> None:
    """Check what TPO and step-wise DPO add to the paper's loss; ValueError where out of range."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f'label_smoothing is {label_smoothing}; expected 0 <= value < 0.5.')
    if nll_weight < 0:
        raise ValueError(f'nll_weight is {nll_weight}; expected 0 or more.')


def logistic_loss(z: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return -(1 - s) log sigma(z) - s log sigma(-z), elementwise."""
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def logistic_slope(z: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return d/dz of `logistic_loss`: -(1 - s) sigma(-z) + s sigma(z), elementwise."""
    return -(1 - smoothing) * torch.sigmoid(-z) + smoothing * torch.sigmoid(z)


@torch.no_grad()
def pair_weights(batch: PairBatch, options: TpoOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return d(pair loss) / d(log pi) in closed form, for the two-pass gradient.

    Args:
        batch: B pairs, without gradient.
        options: as for `tpo_loss`.

    Returns:
        (B,) factors of the chosen and of the rejected trial's summed log-probability. Divide by
        the batch's size for the gradient of the mean.

    """
    z = preference_logit(batch, options)
    if options.loss == 'ipo':
        slope = 2 * (z - 0.5) / options.beta**2
    else:
        slope = logistic_slope(z, options.label_smoothing)
    chosen = options.beta * slope
    rejected = -options.beta * slope
    if options.per_step_mean:
        chosen = chosen / batch.chosen_steps
        rejected = rejected / batch.rejected_steps
    if options.nll_weight > 0:
        chosen = chosen - options.nll_weight / batch.chosen_tokens
    return chosen, rejected


@torch.no_grad()
def tpo_metrics(batch: PairBatch, options: TpoOptions) -> dict[str, float]:
    """Return the batch means under TRL's metric names, and the log-ratios a control step."""
    scale_chosen = batch.chosen_steps if options.per_step_mean else 1.0
    scale_rejected = batch.rejected_steps if options.per_step_mean else 1.0
    ratio_chosen = batch.chosen - batch.ref_chosen
    ratio_rejected = batch.rejected - batch.ref_rejected
    reward_chosen = options.beta * ratio_chosen / scale_chosen
    reward_rejected = options.beta * ratio_rejected / scale_rejected
    metrics = {
        'loss': tpo_pair_losses(batch, options).mean(),
        'rewards/chosen': reward_chosen.mean(),
        'rewards/rejected': reward_rejected.mean(),
        'rewards/margins': (reward_chosen - reward_rejected).mean(),
        'rewards/accuracies': (reward_chosen > reward_rejected).float().mean(),
        'logps/chosen': batch.chosen.mean(),
        'logps/rejected': batch.rejected.mean(),
        'log_ratio_per_step/chosen': (ratio_chosen / batch.chosen_steps).mean(),
        'log_ratio_per_step/rejected': (ratio_rejected / batch.rejected_steps).mean(),
    }
    if options.nll_weight > 0:
        metrics['loss/nll'] = -(batch.chosen / batch.chosen_tokens).mean()
    return float_metrics(metrics)
