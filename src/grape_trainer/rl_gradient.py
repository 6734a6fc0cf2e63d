"""The gradient of a loss that is a mean over recorded steps, in memory flat in their number.

With the advantages known, the losses of PPO, GRPO and TGRPO split over steps: each chunk of steps
is run and backpropagated with its share of the batch, and its graph is gone before the next one.
Steps are drawn from all trials; a chunk has steps of one instruction, so that none is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from grape_policy_node.engine import Engine, ScoredSteps
from grape_policy_node.openvla.processor import PixelTransform
from grape_trainer.dataset import TokenTrial, pixel_values
from grape_trainer.distributed import ALONE, Ranks
from grape_trainer.rl_trials import RlTrial
from grape_trainer.trajectory_gradient import NotFiniteError

# (images (n, S, S, 3) uint8, instruction, token ids (n, 7)) -> their scores, differentiable.
Score = Callable[[np.ndarray, str, torch.Tensor], ScoredSteps]
# (scores of n steps, their rows) -> the mean loss, with the metrics' means.
Loss = Callable[[ScoredSteps, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True)
class StepTable:
    """The N control steps of all trials, one a row."""

    trials: tuple[RlTrial, ...]
    trial: np.ndarray  # (N,) int64, index into `trials`
    step: np.ndarray  # (N,) int64, within the trial

    @classmethod
    def of(cls, trials: Sequence[RlTrial]) -> StepTable:
        """Return the table of trials, in order."""
        lengths = [len(trial.rewards) for trial in trials]
        return cls(
            tuple(trials),
            np.repeat(np.arange(len(trials)), lengths),
            np.concatenate([np.arange(length) for length in lengths]),
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self.trial)

    def names(self, rows: Sequence[int]) -> tuple[str, ...]:
        """Return the bags of rows, each once."""
        return tuple(dict.fromkeys(self.trials[self.trial[row]].bag.name for row in rows))

    def chunks(self, rows: Sequence[int], size: int) -> list[tuple[str, list[int]]]:
        """Cut rows into (instruction, at most `size` rows), steps of a trial side by side."""
        by_instruction: dict[str, list[int]] = defaultdict(list)
        for row in sorted(rows):
            by_instruction[self.trials[self.trial[row]].instruction].append(row)
        return [
            (instruction, found[start : start + size])
            for instruction, found in sorted(by_instruction.items())
            for start in range(0, len(found), size)
        ]


def policy_score(engine: Engine) -> Score:
    """Return the engine's scores of steps, as `Score`."""
    pixels: PixelTransform = engine.processor.pixels

    def score(images: np.ndarray, instruction: str, token_ids: torch.Tensor) -> ScoredSteps:
        values = pixel_values(torch.from_numpy(images).to(engine.model.device), pixels)
        return engine.score_steps(values, instruction, token_ids)

    return score


def accumulate_step_gradient(
    rows: Sequence[int],
    table: StepTable,
    trial_of: Callable[[Path], TokenTrial],
    score: Score,
    loss: Loss,
    chunk_steps: int,
    pause_point: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Add the gradient of the mean loss of a batch of steps to `.grad`; return the metrics' means.

    Args:
        rows: the batch.
        table: what the rows are.
        trial_of: gives the trial of a bag.
        score: the policy.
        loss: of one chunk.
        chunk_steps: control steps held in one graph.
        pause_point: called between chunks; may raise to drop this batch.
        ranks: the processes that share the chunks; all get the same metrics.

    Raises:
        NotFiniteError: names the bag and the step.

    """
    metrics: dict[str, float] = defaultdict(float)
    error = None
    for (instruction, chunk), weight in ranks.share(table.chunks(rows, chunk_steps)):
        pause_point()
        places = [(trial_of(table.trials[table.trial[r]].bag), table.step[r]) for r in chunk]
        images = np.stack([trial.images[step] for trial, step in places])
        tokens = torch.stack([trial.token_ids[step] for trial, step in places])
        scored = score(images, instruction, tokens)
        error = error or _not_finite(scored.log_probs, chunk, table)
        value, measured = loss(scored, torch.tensor(chunk))
        share = weight * len(chunk) / len(rows)
        (value * share).backward()
        for name, number in measured.items():
            metrics[name] += number * share
    ranks.raise_together(error)
    return ranks.sum_metrics(metrics)


def _not_finite(
    log_probs: torch.Tensor, rows: Sequence[int], table: StepTable
) -> NotFiniteError | None:
    bad = (~torch.isfinite(log_probs)).any(1).nonzero()
    if not len(bad):
        return None
    row = rows[int(bad[0])]
    return NotFiniteError(
        f"bag '{table.trials[table.trial[row]].bag}', control step {table.step[row]}: the "
        'log-probabilities are not finite. Take the bag out of the data, or lower lr and resume.'
    )
