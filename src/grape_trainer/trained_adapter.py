"""The adapter that a run trains: where it starts, and what is kept beside it.

TPO, DPO, KTO, PPO, GRPO and TGRPO all train a fresh adapter, or go on with the one that sampled
their trials.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from grape_episode.bag import read_info
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.folder import STATISTICS
from grape_trainer.evaluation import training_states, write_training_states
from grape_trainer.rl_config import RlConfig
from grape_trainer.training_config import PreferenceConfig

TRAINED = 'trained'


def load_engine(
    policy_dir: Path | str, bag: Path, start_adapter: Path | str | None, device: str
) -> Engine:
    """Load the policy that sampled a bag."""
    # Nothing is un-normalised here, but a policy of several data sets has to be told which.
    key = read_info(bag).policy.get('unnorm_key')
    return Engine.load(policy_dir, key, start_adapter, device)


def make_trained_adapter(
    engine: Engine, config: PreferenceConfig | RlConfig, start: Path | str | None
) -> None:
    """Make or load the adapter to train; before the first step it equals the reference."""
    if start is None:
        engine.adapters.new(TRAINED, config.seed, config.lora_rank, config.lora_alpha)
    else:
        engine.adapters.load(start, TRAINED)
        engine.adapters.activate(TRAINED, trainable=True)


def save_trained_adapter(
    engine: Engine, folder: Path, states: set[tuple[str, int]], start: Path | None
) -> str:
    """Write the adapter and what goes with it; return its id.

    Args:
        engine: that holds it.
        folder: the adapter's.
        states: (task, initial state) that it has learned from.
        start: that it was trained from; its initial states and its action statistics go along.

    """
    write_training_states(folder, states | training_states(start))
    if start is not None and (start / STATISTICS).is_file():
        # Its actions stay in the units of the adapter that it came from.
        shutil.copyfile(start / STATISTICS, folder / STATISTICS)
    return engine.adapters.save(TRAINED, folder)
