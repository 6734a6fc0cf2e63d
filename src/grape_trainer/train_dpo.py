"""Train a LoRA adapter by step-wise DPO on pairs of recorded trials (`grape train dpo`).

pairs.json + bags + policy [+ start adapter]  ->  adapter folder
"""

from __future__ import annotations

from pathlib import Path

from grape_trainer.dataset import read_pairs
from grape_trainer.learner import ProgressCallback
from grape_trainer.preference_run import PreferenceResult, PreferenceRun
from grape_trainer.training_config import DpoConfig


def train_dpo(
    config: DpoConfig,
    policy_dir: Path | str,
    pairs_path: Path | str,
    out_dir: Path | str,
    start_adapter: Path | str | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> PreferenceResult:
    """Train an adapter; arguments and errors are those of `train_tpo`."""
    pairs = read_pairs(Path(pairs_path))
    run = PreferenceRun('dpo', config, config.options, pairs, policy_dir, out_dir, start_adapter)
    return run.train(progress, resume)
