"""How each method of `grape iterate` trains: its configuration and its call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grape_bringup.cli_console import ProgressBar
from grape_bringup.cli_train import load_settings, stop_if, tiny_config
from grape_trainer.iteration import RoundFolder
from grape_trainer.training_config import ConfigError, LearnerConfig


def method_config(method: str, path: str, policy: Path, seed: int) -> LearnerConfig:
    """Return a method's configuration.

    Args:
        method: in grape_trainer.iteration_config.METHODS.
        path: YAML; empty: the tiny policy's for a tiny policy, else the papers' values. SFT, whose
            tiny one trains a policy and no adapter, wants one.
        policy: checkpoint folder.
        seed: instead of the file's.

    Raises:
        ConfigError: no such file, or what is wrong in it.

    """
    file = path or (None if method == 'sft' else tiny_config(policy, method))
    settings = load_settings(_config_class(method), file, seed)
    if method == 'sft' and settings.trainable != 'lora':
        raise ConfigError(
            f"{path or 'sft'}: trainable is '{settings.trainable}'; expected lora: a round of "
            'grape iterate gives an adapter.'
        )
    return settings


def train_round(
    settings: LearnerConfig, policy: Path, rounds: Sequence[RoundFolder], adapter: Path | None
) -> str:
    """Train the adapter of the last of the rounds so far; return what there is to say.

    Args:
        settings: of `method_config`.
        policy: checkpoint folder.
        rounds: up to the one that trains; SFT imitates the successes of all of them.
        adapter: that collected the last round's trials; None: the base policy.

    Raises:
        Interrupted: Ctrl-C; the checkpoint is kept.

    """
    method = rounds[-1].method
    with ProgressBar(method) as bar:
        result = _train(settings, policy, rounds, adapter, bar)
    stop_if(result.interrupted)
    stopped = getattr(result, 'stopped', None)
    text = f'{method}: {result.steps} steps'
    return f'{text}; stopped early: {stopped}' if stopped else text


def _train(
    settings: LearnerConfig,
    policy: Path,
    rounds: Sequence[RoundFolder],
    adapter: Path | None,
    bar: ProgressBar,
) -> Any:
    last = rounds[-1]
    method, out = last.method, last.adapter
    if method == 'sft':
        from grape_trainer.train_sft import train_sft

        # From the base policy each time, on all successes so far.
        bags = [each.bags for each in rounds]
        return train_sft(settings, bags, out, None, policy, bar.training)
    if method == 'tpo':
        from grape_trainer.train_tpo import train_tpo

        return train_tpo(settings, policy, last.pairs, out, adapter, bar.training)
    if method == 'dpo':
        from grape_trainer.train_dpo import train_dpo

        return train_dpo(settings, policy, last.pairs, out, adapter, bar.training)
    if method == 'kto':
        from grape_trainer.train_kto import labelled_trials, train_kto

        trials = labelled_trials(settings, last.scores)
        return train_kto(settings, policy, trials, out, adapter, bar.training)
    from grape_trainer.train_rl import train_rl

    return train_rl(settings, policy, [last.bags], out, adapter, bar.training)


def _config_class(method: str) -> type[LearnerConfig]:
    from grape_trainer import rl_config, training_config

    return {
        'sft': training_config.SftConfig,
        'tpo': training_config.TpoConfig,
        'dpo': training_config.DpoConfig,
        'kto': training_config.KtoConfig,
        'ppo': rl_config.PpoConfig,
        'grpo': rl_config.GrpoConfig,
        'tgrpo': rl_config.TgrpoConfig,
    }[method]
