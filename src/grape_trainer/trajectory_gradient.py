"""The gradient of a loss over whole trials, in memory that does not grow with their length.

The losses of TPO, DPO and KTO are functions of lp_t = log pi(o_t | s_t) alone. Hence

    grad loss = sum over trials and steps of (d loss / d lp_t) * grad lp_t

Pass 1, without gradient, gives log pi of every trial of the batch and with it the factors in
closed form (objective/weighing.Objective). Pass 2 runs chunk by chunk and backpropagates each
chunk's sum weighed with its steps' factors; the graph of one chunk is all that is held. A trial
that occurs in several examples of the batch (m x m pairing) is run once, with the sum of its
factors; a chunk whose factors are all 0 is not run again. Several processes share the chunks of
each pass, so that even one pair keeps all of them busy.

Where all steps of a trial have the same factor (TPO, KTO) it can also be applied afterwards: one
pass gives log pi(zeta) and the gradient of it, which is kept a trial until the factors are known.
That is done where these gradients are small (ONE_PASS_BYTES).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from grape_trainer.dataset import TokenTrial
from grape_trainer.distributed import ALONE, Ranks
from grape_trainer.objective.weighing import Example, Objective, TrialLogProbs

ONE_PASS_BYTES = 2**30  # of gradients, one a trial of the batch

# (trial, first step, one past the last step) -> (n, 7) float32 log-probabilities of its tokens,
# differentiable where gradients are enabled.
LogProbs = Callable[[TokenTrial, int, int], torch.Tensor]


@dataclass(frozen=True)
class Span:
    """Steps start..stop of the trial in a bag."""

    bag: Path
    start: int
    stop: int


class NotFiniteError(ArithmeticError):
    """A log-probability that is NaN or infinite; the text names the pair or trial."""


@dataclass(frozen=True)
class Accumulated:
    """What `accumulate_gradient` left beside the gradients."""

    metrics: dict[str, float]
    factors: dict[Path, torch.Tensor]  # (T,) float64, d loss / d log pi of each step


def accumulate_gradient(
    examples: Sequence[Example],
    trial_of: Callable[[Path], TokenTrial],
    log_probs: LogProbs,
    reference: Mapping[Path, torch.Tensor],
    objective: Objective,
    chunk_steps: int,
    pause_point: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
    parameters: Sequence[torch.nn.Parameter] = (),
) -> Accumulated:
    """Add the gradient of the mean loss of a batch to `.grad`; of several processes, a share.

    Args:
        examples: the batch, pairs or labelled trials.
        trial_of: gives the trial of a bag.
        log_probs: the policy.
        reference: (T, 7) log-probabilities of each bag under the reference policy.
        objective: the loss.
        chunk_steps: control steps held in one graph.
        pause_point: called between chunks; may raise to drop this batch.
        ranks: the processes that share the chunks; all get the same metrics and factors.
        parameters: the trained ones, where one pass will do; without them there are two.

    Returns:
        The batch's metrics, measured before any update.

    Raises:
        NotFiniteError: names the example.

    """
    bags = list(dict.fromkeys(bag for example in examples for bag in example.bags.values()))
    spans = [span for bag in bags for span in spans_of(bag, len(reference[bag]), chunk_steps)]
    size = sum(p.numel() * p.element_size() for p in parameters)
    one_pass = objective.one_factor_a_trial and 0 < size * len(bags) <= ONE_PASS_BYTES
    calls = spans, trial_of, log_probs, ranks, pause_point
    if one_pass:
        parts, gradients = _with_gradients(*calls, parameters)
    else:
        parts = log_probs_of(*calls)
    trials = _whole_trials(spans, parts, reference)
    _require_finite(examples, trials)
    weighed = objective.weigh(examples, trials)
    if one_pass:
        _add_weighed(gradients, weighed.factors, parameters)
    else:
        _backward(*calls, weighed.factors)
    return Accumulated(weighed.metrics, weighed.factors)


@torch.no_grad()
def log_probs_of(
    spans: Sequence[Span],
    trial_of: Callable[[Path], TokenTrial],
    log_probs: LogProbs,
    ranks: Ranks = ALONE,
    pause_point: Callable[[], None] = lambda: None,
) -> list[torch.Tensor]:
    """Return the (n, 7) log-probabilities of spans, on the CPU; one process runs each."""
    mine = []
    for span, weight in ranks.share(spans):
        pause_point()
        part = log_probs(trial_of(span.bag), span.start, span.stop).cpu()
        if weight:
            mine.append(part)
    return ranks.join(mine)


def spans_of(bag: Path, steps: int, size: int) -> list[Span]:
    """Cut a trial into spans of at most `size` steps."""
    return [Span(bag, *chunk) for chunk in chunks(steps, size)]


def chunks(steps: int, size: int) -> list[tuple[int, int]]:
    """Cut 0..steps into ranges of at most `size`."""
    return [(start, min(start + size, steps)) for start in range(0, steps, size)]


def _whole_trials(
    spans: Sequence[Span], parts: Sequence[torch.Tensor], reference: Mapping[Path, torch.Tensor]
) -> dict[Path, TrialLogProbs]:
    found: dict[Path, list[torch.Tensor]] = defaultdict(list)
    for span, part in zip(spans, parts, strict=True):
        found[span.bag].append(part)
    whole = {bag: torch.cat(own) for bag, own in found.items()}
    return {b: TrialLogProbs(p, reference[b], p.double().sum()) for b, p in whole.items()}


def _backward(
    spans: Sequence[Span],
    trial_of: Callable[[Path], TokenTrial],
    log_probs: LogProbs,
    ranks: Ranks,
    pause_point: Callable[[], None],
    factors: Mapping[Path, torch.Tensor],
) -> None:
    """Pass 2."""
    moving = [span for span in spans if factors[span.bag][span.start : span.stop].any()]
    for span, weight in ranks.share(moving):
        pause_point()
        steps = log_probs(trial_of(span.bag), span.start, span.stop).sum(-1)
        own = weight * factors[span.bag][span.start : span.stop].to(steps)
        (steps * own).sum().backward()


def _with_gradients(
    spans: Sequence[Span],
    trial_of: Callable[[Path], TokenTrial],
    log_probs: LogProbs,
    ranks: Ranks,
    pause_point: Callable[[], None],
    parameters: Sequence[torch.nn.Parameter],
) -> tuple[list[torch.Tensor], dict[Path, list[torch.Tensor | None]]]:
    """Return what `log_probs_of` does, and of each trial the gradient of its sum.

    `.grad` is left as it was.
    """
    before, mine = _taken(parameters), []
    gradients: dict[Path, list[torch.Tensor | None]] = {}
    for (bag, weight), calls in groupby(ranks.share(spans), lambda call: (call[0].bag, call[1])):
        for span, _ in calls:
            pause_point()
            part = log_probs(trial_of(bag), span.start, span.stop)
            part.sum().backward()
            if weight:
                mine.append(part.detach().cpu())
        found = _taken(parameters)
        if weight:
            gradients[bag] = found
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return ranks.join(mine), gradients


@torch.no_grad()
def _add_weighed(
    gradients: Mapping[Path, Sequence[torch.Tensor | None]],
    factors: Mapping[Path, torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
) -> None:
    for bag, own in gradients.items():
        factor = factors[bag][0].item()
        for parameter, gradient in zip(parameters, own, strict=True):
            if gradient is not None and parameter.grad is None:
                parameter.grad = gradient.mul_(factor)
            elif gradient is not None:
                parameter.grad.add_(gradient, alpha=factor)


def _taken(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor | None]:
    """Return the gradients and leave None."""
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def _require_finite(examples: Sequence[Example], trials: Mapping[Path, TrialLogProbs]) -> None:
    for example in examples:
        sums: dict[str, float] = {}
        for role, bag in example.bags.items():
            sums[role] = trials[bag].total.item()
            sums[f'ref_{role}'] = trials[bag].reference_total.item()
        bad = [f'{name} {v}' for name, v in sums.items() if not math.isfinite(v)]
        if bad:
            raise NotFiniteError(
                f'{example.name}: log-probabilities are not finite ({", ".join(bad)}). '
                'Take it out of the data, or lower lr and resume.'
            )
