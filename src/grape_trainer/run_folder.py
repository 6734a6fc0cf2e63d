"""The folder of one training run: what it was made from, and its curves.

config.yaml      resolved configuration
run.json         kind, identity (config, data hash, policy, adapter), code version, versions
metrics.jsonl    one line an optimiser step, {"step": ..., "<metric>": ...}
tensorboard/     the same numbers; `wandb: PROJECT` sends them to Weights & Biases too
checkpoint.pt    training state (checkpointing.py)
result.json      written last: the run is complete
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
import yaml

from grape_trainer.checkpointing import CHECKPOINT_NAME, require_same_identity
from grape_trainer.curves import Curves, require_wandb
from grape_trainer.distributed import ALONE, Ranks
from grape_trainer.training_config import LearnerConfig

METRICS_NAME = 'metrics.jsonl'
RESULT_NAME = 'result.json'


class RunFolder:
    """Writes the files of one run; a context manager, so that the curves are flushed.

    Of several processes the first alone reads and writes; all make the same calls.
    """

    def __init__(
        self,
        path: Path | str,
        kind: str,
        config: LearnerConfig,
        identity: Mapping[str, object],
        resume: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        """Create or re-open the folder.

        Args:
            path: folder; made if absent.
            kind: 'sft', 'tpo', ...
            config: resolved configuration.
            identity: what the result is a function of, beside the configuration.
            resume: False forgets an earlier run's checkpoint, metrics and result.
            ranks: the processes of the run.

        Raises:
            ConfigError: wandb is asked for and not installed.

        """
        require_wandb(config.wandb)
        self.path = Path(path)
        self.identity = {**_identity_of(config), **identity, 'kind': kind}
        self.path.mkdir(parents=True, exist_ok=True)
        self.ranks = ranks
        if not resume and ranks.first:
            for name in (CHECKPOINT_NAME, METRICS_NAME, RESULT_NAME):
                (self.path / name).unlink(missing_ok=True)
        self._metrics = self.path / METRICS_NAME
        self._curves: Curves | None = None
        self._kind = kind
        self._config = config

    def __enter__(self) -> RunFolder:
        """Return the folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Flush the curves."""
        self.close()

    def finished(self) -> dict[str, object] | None:
        """Return the result of a complete run with the same identity, else None."""
        return self.ranks.from_first(self._finished)

    def begin(self) -> None:
        """Write config.yaml and run.json."""
        if not self.ranks.first:
            return
        text = yaml.safe_dump(self._config.to_dict(), sort_keys=False)
        (self.path / 'config.yaml').write_text(text)
        about = {
            'kind': self._kind,
            'identity': self.identity,
            'seed': self._config.seed,
            'code_version': code_version(),
            'started_at': datetime.now(UTC).isoformat(timespec='seconds'),
            'torch': torch.__version__,
            'torch_threads': torch.get_num_threads(),
            'processes': self.ranks.count,
            'machine': platform.machine(),
        }
        write_json(self.path / 'run.json', about)

    def open_metrics(self, step: int, metrics_bytes: int) -> None:
        """Cut metrics.jsonl and the curves back to a checkpoint's position."""
        if not self.ranks.first:
            return
        self._metrics.touch()
        os.truncate(self._metrics, min(metrics_bytes, self._metrics.stat().st_size))
        self._curves = Curves(self.path, step, self._config.wandb, self.identity)

    def last_metrics(self) -> dict[str, float]:
        """Return the last line of metrics.jsonl without its step; empty before the first."""
        return self.ranks.from_first(self._last_metrics)

    @property
    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl now."""
        return self._metrics.stat().st_size if self._metrics.exists() else 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line, and the same to the curves."""
        if not self.ranks.first:
            return
        with self._metrics.open('a') as stream:
            stream.write(json.dumps({'step': step, **metrics}) + '\n')
        if self._curves is not None:
            self._curves.add(step, metrics)

    def finish(self, result: Mapping[str, object]) -> None:
        """Mark the run complete."""
        if self.ranks.first:
            content = {'identity': self.identity, 'result': dict(result)}
            write_json(self.path / RESULT_NAME, content)

    def close(self) -> None:
        """Flush and close the curves."""
        if self._curves is not None:
            self._curves.close()
            self._curves = None

    def _finished(self) -> dict[str, object] | None:
        path = self.path / RESULT_NAME
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        require_same_identity(path, content['identity'], self.identity)
        return content['result']

    def _last_metrics(self) -> dict[str, float]:
        lines = read_metrics(self.path)[-1:] if self._metrics.exists() else []
        return {name: value for line in lines for name, value in line.items() if name != 'step'}


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON by renaming over the old file, so that it is never half-written."""
    partial = path.with_suffix(path.suffix + '.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(partial, path)


def code_version() -> str:
    """Return git's description of this source tree, or the installed package's version."""
    here = Path(__file__).resolve().parent
    command = ['git', '-C', str(here), 'describe', '--always', '--dirty']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return _installed_version()
    return done.stdout.strip() if done.returncode == 0 else _installed_version()


def _installed_version() -> str:
    try:
        return f'grape-ros2 {metadata.version("grape-ros2")}'
    except metadata.PackageNotFoundError:
        return 'unknown'


def _identity_of(config: LearnerConfig) -> dict[str, object]:
    # How often to save, what to cache, where to draw, how many threads and processes, and what to
    # keep for the backward pass do not shape the result by intent.
    aside = {
        'checkpoint_every', 'torch_threads', 'pixel_cache_gib', 'device', 'reference_cache',
        'wandb', 'parallel', 'gradient_checkpointing',
    }  # fmt: skip
    return {f'config.{k}': v for k, v in config.to_dict().items() if k not in aside}
