"""Train a LoRA adapter by TPO on pairs of recorded trials (`grape train tpo`).

pairs.json + bags + policy [+ start adapter]  ->  adapter folder
"""

from __future__ import annotations

from pathlib import Path

from grape_trainer.dataset import read_pairs
from grape_trainer.learner import ProgressCallback
from grape_trainer.preference_run import PreferenceResult, PreferenceRun
from grape_trainer.training_config import TpoConfig


def train_tpo(
    config: TpoConfig,
    policy_dir: Path | str,
    pairs_path: Path | str,
    out_dir: Path | str,
    start_adapter: Path | str | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> PreferenceResult:
    """Train an adapter; the same call on the same folder goes on where a run was broken off.

    Args:
        config: see `TpoConfig`.
        policy_dir: policy folder.
        pairs_path: pairs.json.
        out_dir: becomes the adapter folder; also holds the run's files.
        start_adapter: adapter that sampled the trials, trained further and the reference; None
            makes a new one, with the base as reference.
        progress: called after every trial of the reference and every optimiser step.
        resume: False starts anew in the same folder.

    Raises:
        DataError: pairs or bags that cannot be used.
        PolicyMismatchError: the trials were sampled by another policy.
        TrainingError: a loss or gradient that is not finite, naming the pair.
        CheckpointError: the folder holds another run.

    """
    pairs = read_pairs(Path(pairs_path))
    run = PreferenceRun('tpo', config, config.options, pairs, policy_dir, out_dir, start_adapter)
    return run.train(progress, resume)
