"""The gradient of a loss over whole trials, in memory that does not grow with their length.

TPO's loss depends on a trial only through log pi(zeta) = sum_t log pi(o_t | s_t). Hence

    grad loss = sum over trials of (d loss / d log pi(zeta)) * sum_t grad log pi(o_t | s_t)

Pass 1, without gradient, gives log pi of every trial of the batch and with it the factors in
closed form (objective/tpo.pair_weights). Pass 2 runs chunk by chunk and backpropagates each
chunk's sum times its trial's factor; the graph of one chunk is all that is held. A trial that
occurs in several pairs of the batch (m x m pairing) is run once, with the sum of its factors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from grape_trainer.dataset import BagPair, TokenTrial
from grape_trainer.objective.tpo import PairBatch, TpoOptions, pair_weights, tpo_metrics

# (trial, first step, one past the last step) -> (n, 7) float32 log-probabilities of its tokens,
# differentiable where gradients are enabled.
LogProbs = Callable[[TokenTrial, int, int], torch.Tensor]


class NotFiniteError(ArithmeticError):
    """A log-probability or loss that is NaN or infinite; the text names the pair."""


@dataclass(frozen=True)
class Accumulated:
    """What `accumulate_gradient` left beside the gradients."""

    metrics: dict[str, float]
    factors: dict[Path, float]  # d loss / d log pi of each trial


def accumulate_gradient(
    pairs: Sequence[BagPair],
    trial_of: Callable[[Path], TokenTrial],
    log_probs: LogProbs,
    reference: Mapping[Path, torch.Tensor],
    options: TpoOptions,
    chunk_steps: int,
    pause_point: Callable[[], None] = lambda: None,
) -> Accumulated:
    """Add the gradient of the mean TPO loss of a batch of pairs to `.grad`.

    Args:
        pairs: the batch.
        trial_of: gives the trial of a bag.
        log_probs: the policy.
        reference: (T, 7) log-probabilities of each bag under the reference policy.
        options: of the loss.
        chunk_steps: control steps held in one graph.
        pause_point: called between chunks; may raise to drop this batch.

    Returns:
        The batch's metrics, measured before any update.

    Raises:
        NotFiniteError: names the pair.

    """
    bags = list(dict.fromkeys(bag for pair in pairs for bag in (pair.chosen, pair.rejected)))
    total, steps = {}, {}
    for bag in bags:
        trial = trial_of(bag)
        steps[bag] = trial.steps
        total[bag] = trajectory_log_prob(trial, log_probs, chunk_steps, pause_point)
    batch = _pair_batch(pairs, total, steps, reference)
    _require_finite(pairs, batch)
    weight_chosen, weight_rejected = pair_weights(batch, options)

    factors: dict[Path, float] = defaultdict(float)
    for pair, chosen, rejected in zip(
        pairs, weight_chosen.tolist(), weight_rejected.tolist(), strict=True
    ):
        factors[pair.chosen] += chosen / len(pairs)
        factors[pair.rejected] += rejected / len(pairs)
    for bag in bags:
        _backward(trial_of(bag), log_probs, factors[bag], chunk_steps, pause_point)
    return Accumulated(tpo_metrics(batch, options), dict(factors))


@torch.no_grad()
def trajectory_log_prob(
    trial: TokenTrial, log_probs: LogProbs, chunk_steps: int, pause_point: Callable[[], None]
) -> torch.Tensor:
    """Return log pi(zeta), a float64 scalar on the CPU.

    Token log-probabilities are float32; their sum over a trial (about -1000) is taken in float64,
    because z is a small difference of such sums.
    """
    sums = []
    for start, stop in chunks(trial.steps, chunk_steps):
        pause_point()
        sums.append(log_probs(trial, start, stop).double().sum().cpu())
    return torch.stack(sums).sum()


def chunks(steps: int, size: int) -> list[tuple[int, int]]:
    """Cut 0..steps into ranges of at most `size`."""
    return [(start, min(start + size, steps)) for start in range(0, steps, size)]


def _backward(
    trial: TokenTrial,
    log_probs: LogProbs,
    factor: float,
    chunk_steps: int,
    pause_point: Callable[[], None],
) -> None:
    if factor == 0.0:
        return
    for start, stop in chunks(trial.steps, chunk_steps):
        pause_point()
        (log_probs(trial, start, stop).sum() * factor).backward()


def _pair_batch(
    pairs: Sequence[BagPair],
    total: Mapping[Path, torch.Tensor],
    steps: Mapping[Path, int],
    reference: Mapping[Path, torch.Tensor],
) -> PairBatch:
    ref = {bag: reference[bag].double().sum() for bag in total}

    def column(values: Sequence[torch.Tensor | float]) -> torch.Tensor:
        return torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])

    return PairBatch(
        chosen=column([total[p.chosen] for p in pairs]),
        rejected=column([total[p.rejected] for p in pairs]),
        ref_chosen=column([ref[p.chosen] for p in pairs]),
        ref_rejected=column([ref[p.rejected] for p in pairs]),
        chosen_steps=column([steps[p.chosen] for p in pairs]),
        rejected_steps=column([steps[p.rejected] for p in pairs]),
        chosen_tokens=column([reference[p.chosen].numel() for p in pairs]),
    )


def _require_finite(pairs: Sequence[BagPair], batch: PairBatch) -> None:
    for index, pair in enumerate(pairs):
        values = {name: float(value[index]) for name, value in vars(batch).items()}
        bad = [f'{n} {v}' for n, v in values.items() if not torch.isfinite(torch.tensor(v))]
        if bad:
            raise NotFiniteError(
                f'{pair.name}: log-probabilities are not finite ({", ".join(bad)}). '
                'Take the pair out of the pairs file, or lower lr and resume.'
            )
