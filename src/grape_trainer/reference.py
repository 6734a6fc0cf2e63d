"""Log-probabilities of the reference policy, computed once before training and kept on disk.

The reference is the policy as it is before the first step: the base for a new adapter, the start
adapter from the second iteration on (which is then trained in place; its frozen copy is these
numbers, so that no second set of weights is held). A file is keyed by bag, policy, adapter and
chunk size, which shapes the last bits, so that a run gives the same with and without it; runs may
share a folder. Files are written whole and end in the sha256 of what is before: a killed run goes
on with those it has, and one that is damaged is computed again, with a warning.

The policy that sampled a trial must be its reference: recorded and recomputed log-probabilities
are compared token by token.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from grape_trainer.dataset import DataError, TokenTrial
from grape_trainer.distributed import ALONE, Ranks
from grape_trainer.trajectory_gradient import LogProbs, log_probs_of, spans_of

DIGEST_BYTES = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


class PolicyMismatchError(DataError):
    """The recorded log-probabilities are not those of the given policy and adapter."""


@dataclass(frozen=True)
class ReferenceKey:
    """Whose log-probabilities: the policy folder's sha256 and the adapter's id."""

    policy_sha256: str
    adapter_id: str

    def file_name(self, bag_sha256: str, chunk_steps: int) -> str:
        """Return the cache file's name for a bag."""
        text = f'{bag_sha256}/{self.policy_sha256}/{self.adapter_id}/{chunk_steps}'
        return hashlib.sha256(text.encode()).hexdigest()[:24] + '.npy'


def reference_log_probs(
    bags: Sequence[Path],
    hashes: Sequence[str],
    trial_of: Callable[[Path], TokenTrial],
    log_probs: LogProbs,
    key: ReferenceKey,
    cache: Path,
    chunk_steps: int,
    on_trial: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> dict[Path, torch.Tensor]:
    """Return the (T, 7) float32 reference log-probabilities of every bag.

    Args:
        bags: trials.
        hashes: sha256 of each bag.
        trial_of: gives a bag's trial.
        log_probs: the reference policy.
        key: names it.
        cache: folder of the kept files; several runs may share it.
        chunk_steps: control steps of one forward pass.
        on_trial: called with the number of trials done.
        ranks: the processes that share the work; the first alone reads and writes the files.

    """
    cache.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, (bag, sha) in enumerate(zip(bags, hashes, strict=True)):
        file = cache / key.file_name(sha, chunk_steps)
        values = ranks.from_first(partial(_read, file))
        if values is None:
            spans = spans_of(bag, trial_of(bag).steps, chunk_steps)
            values = torch.cat(log_probs_of(spans, trial_of, log_probs, ranks)).float().numpy()
            if ranks.first:
                _write(file, values)
        found[bag] = torch.from_numpy(values)
        on_trial(number + 1)
    return found


def verify_recorded(
    reference: dict[Path, torch.Tensor],
    trial_of: Callable[[Path], TokenTrial],
    adapter_id: str,
    tolerance: float,
) -> float:
    """Compare recorded log-probabilities with the reference's.

    Returns:
        The largest difference of a token, nats.

    Raises:
        PolicyMismatchError: above `tolerance`; names the trial and both adapters.

    """
    worst, where = -1.0, None
    for bag, expected in reference.items():
        trial = trial_of(bag)
        if trial.log_probs.shape != expected.shape:
            raise PolicyMismatchError(
                f'{trial.episode_id} recorded log-probabilities {tuple(trial.log_probs.shape)}; '
                f'expected {tuple(expected.shape)}.'
            )
        difference = (trial.log_probs - expected).abs().max().item()
        if difference > worst or difference != difference:
            worst, where = difference, trial
        if not difference <= tolerance:
            break
    if not worst <= tolerance:
        raise PolicyMismatchError(
            f'{where.episode_id}: recorded log-probabilities differ from those of the reference '
            f'by up to {worst:.3g} nats a token; expected at most {tolerance:g}. The trial was '
            f"sampled by adapter '{where.adapter_id}', the reference is '{adapter_id}'. Pass the "
            'policy and the start adapter that collected the trials, or set verify_log_probs: '
            "false to learn from another policy's trials on purpose."
        )
    log.info('recorded log-probabilities agree within %.2g nats a token', worst)
    return worst


def _read(file: Path) -> np.ndarray | None:
    """Return a kept file's (T, 7) float32, or None where it is absent or damaged."""
    if not file.exists():
        return None
    content = file.read_bytes()
    stored, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(stored).digest() != digest:
        log.warning('%s is damaged and is computed again', file)
        return None
    return np.load(io.BytesIO(stored), allow_pickle=False)


def _write(file: Path, values: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    stored = stream.getvalue()
    # A name of its own: two runs may compute the same file at once.
    partial = file.with_suffix(f'.{os.getpid()}.partial')
    partial.write_bytes(stored + hashlib.sha256(stored).digest())
    os.replace(partial, file)
