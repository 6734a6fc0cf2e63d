"""What an objective is told of a batch of trials, and what it answers.

An objective of whole trials sees numbers only: the log-probabilities of every trial of a batch
under policy and reference. It answers with d loss / d log pi(o_t | s_t) of every step and with
metrics; trajectory_gradient.py does the rest. `TpoOptions`, `DpoOptions` and `KtoOptions` are such
objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch


class Example(Protocol):
    """One row of a batch: a pair of trials, or one labelled trial."""

    @property
    def name(self) -> str:
        """How errors call it."""

    @property
    def bags(self) -> Mapping[str, Path]:
        """Its trials by their role, 'chosen' and 'rejected' or 'trial'."""

    def fingerprint(self, hashes: Sequence[str]) -> str:
        """Return what is learned, for the run's data hash; the bags' hashes in order of roles."""


@dataclass(frozen=True)
class TrialLogProbs:
    """One trial of T steps; both sums over it are taken in float64.

    Token log-probabilities are float32, and z is a small difference of sums of about -1000.
    """

    policy: torch.Tensor  # (T, 7) float32, on the CPU, no gradient
    reference: torch.Tensor  # (T, 7) float32
    total: torch.Tensor  # scalar float64, log pi of the whole trial

    @property
    def steps(self) -> int:
        """T."""
        return len(self.policy)

    @property
    def reference_total(self) -> torch.Tensor:
        """Scalar float64, log pi_ref of the whole trial."""
        return self.reference.double().sum()

    def at_steps(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log pi and log pi_ref of the steps `index`, (n,) float64 each."""
        return (
            self.policy[index].double().sum(-1),
            self.reference[index].double().sum(-1),
        )


@dataclass(frozen=True)
class Weighed:
    """The batch's metrics and (T,) float64 d loss / d log pi(o_t | s_t) of each trial."""

    metrics: dict[str, float]
    factors: dict[Path, torch.Tensor]


class Objective(Protocol):
    """A loss of whole trials in closed form."""

    one_factor_a_trial: ClassVar[bool]  # all steps of a trial have the same

    def weigh(self, examples: Sequence[Example], trials: Mapping[Path, TrialLogProbs]) -> Weighed:
        """Return metrics and factors of the mean loss of a batch."""


def column(values: Sequence[torch.Tensor | float]) -> torch.Tensor:
    """Stack scalars to (B,) float64."""
    return torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])


def no_factors(trials: Mapping[Path, TrialLogProbs]) -> dict[Path, torch.Tensor]:
    """Return zeros to add each example's factors to."""
    return {bag: torch.zeros(t.steps, dtype=torch.float64) for bag, t in trials.items()}


def float_metrics(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
