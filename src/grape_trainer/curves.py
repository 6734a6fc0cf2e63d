"""Where a run's metrics are drawn: TensorBoard always, Weights & Biases where it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from grape_trainer.training_config import ConfigError


class Curves:
    """Writes scalars of one run; TensorBoard's files lie in the run folder's tensorboard/."""

    def __init__(
        self, folder: Path, first_step: int, project: str, identity: Mapping[str, object]
    ) -> None:
        """Begin, or go on at a step.

        Args:
            folder: of the run.
            first_step: what TensorBoard has of this step and later ones is dropped.
            project: of Weights & Biases; empty: none.
            identity: what the run is a function of; the same one goes on with its curves there.

        """
        self._board = SummaryWriter(folder / 'tensorboard', purge_step=first_step)
        self._remote = None
        if project:
            require_wandb(project)
            text = json.dumps([folder.name, *sorted(identity.items())], default=str)
            self._remote = import_module('wandb').init(
                project=project,
                name=folder.name,
                id=hashlib.sha256(text.encode()).hexdigest()[:16],
                resume='allow',
                dir=str(folder),
                config=dict(identity),
            )

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one step's scalars."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._remote is not None:
            self._remote.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
        if self._remote is not None:
            self._remote.finish()


def require_wandb(project: str) -> None:
    """Raise ConfigError if a project is named and wandb cannot be imported."""
    if project and find_spec('wandb') is None:
        raise ConfigError(
            f"wandb is '{project}', but the package is not installed. Run: pip install wandb; or "
            'leave the key out: TensorBoard is always written.'
        )
