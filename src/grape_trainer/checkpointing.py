"""Training state in one file that is always whole.

A checkpoint is written beside its final name, flushed to the disk and renamed over it, so that a
kill at any moment leaves the previous one. It holds tensors and plain values only and is loaded
without pickle's code execution. Training is a function of the step number (learner.py), hence a
run that goes on from a checkpoint gives bit for bit what an unbroken run gives on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

CHECKPOINT_NAME = 'checkpoint.pt'
VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is unreadable or belongs to another run."""


@dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on.

    `identity` names what the run is a function of (config, data hash, policy, adapter);
    `parameters` are the trained ones only; `metrics_bytes` is the length of metrics.jsonl then.
    """

    step: int
    identity: dict[str, object]
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, object]
    rng: torch.Tensor
    metrics_bytes: int


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write `folder`/checkpoint.pt atomically and return its path."""
    target = folder / CHECKPOINT_NAME
    partial = target.with_suffix('.partial')
    with partial.open('wb') as stream:
        torch.save({'version': VERSION, **vars(state)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, target)
    return target


def load_state(folder: Path, identity: Mapping[str, object]) -> TrainingState | None:
    """Read the checkpoint of a folder, or None where there is none.

    Raises:
        CheckpointError: unreadable, of another version, or of a run with another identity.

    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint '{path}' cannot be read ({error}). Delete it to train from the start."
        ) from error
    version = content.pop('version', None) if isinstance(content, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"The checkpoint '{path}' has version {version}; expected {VERSION}. "
            'Train into another folder.'
        )
    state = TrainingState(**content)
    require_same_identity(path, state.identity, identity)
    return state


def require_same_identity(
    path: Path, found: Mapping[str, object], expected: Mapping[str, object]
) -> None:
    """Raise CheckpointError naming the entries in which a stored run differs from this one."""
    names = sorted(set(found) | set(expected))
    different = [n for n in names if found.get(n) != expected.get(n)]
    if different:
        changes = '; '.join(f'{n}: {found.get(n)} there, {expected.get(n)} now' for n in different)
        raise CheckpointError(
            f"'{path}' is of another run ({changes}). Train into another folder, or start anew "
            'without resuming.'
        )


@torch.no_grad()
def restore_parameters(
    parameters: Mapping[str, torch.nn.Parameter], stored: Mapping[str, torch.Tensor]
) -> None:
    """Copy stored values into the trained parameters; both must have the same names."""
    missing = sorted(set(parameters) ^ set(stored))
    if missing:
        raise CheckpointError(
            f'The checkpoint and the model differ in {len(missing)} trained parameters, first '
            f'{missing[0]}. Was it written by another configuration?'
        )
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])
