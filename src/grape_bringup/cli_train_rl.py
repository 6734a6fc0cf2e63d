"""`grape train ppo`, `grpo` and `tgrpo`: reinforcement learning from recorded trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grape_bringup.cli_console import Adapter, Policy, ProgressBar, Resume, console
from grape_bringup.cli_train import (
    Config,
    Out,
    TrainSeed,
    adapter_settings,
    say_stopped,
    stop_if,
)
from grape_bringup.processes import Processes

if TYPE_CHECKING:
    from grape_trainer.rl_config import RlConfig

Bags = Annotated[
    list[Path], typer.Option(help='Folder of bags that the policy played; repeatable.')
]


def ppo(
    policy: Policy,
    bags: Bags,
    out: Out,
    adapter: Adapter = None,
    config: Config = None,
    seed: TrainSeed = None,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a LoRA adapter by PPO with a value head.

    --adapter: the adapter that played the trials; it is trained further, with its value head.
    Configuration: config/train/ppo_tiny.yaml for a policy below 0.5 GB, else RL4VLA's values.
    """
    from grape_trainer.rl_config import PpoConfig

    _train(PpoConfig, policy, bags, out, adapter, config, seed, resume)


def grpo(
    policy: Policy,
    bags: Bags,
    out: Out,
    adapter: Adapter = None,
    config: Config = None,
    seed: TrainSeed = None,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a LoRA adapter by GRPO on trials of the same task and initial state.

    --adapter: the adapter that played the trials; it is trained further.
    Configuration: config/train/grpo_tiny.yaml for a policy below 0.5 GB, else RL4VLA's values.
    """
    from grape_trainer.rl_config import GrpoConfig

    _train(GrpoConfig, policy, bags, out, adapter, config, seed, resume)


def tgrpo(
    policy: Policy,
    bags: Bags,
    out: Out,
    adapter: Adapter = None,
    config: Config = None,
    seed: TrainSeed = None,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a LoRA adapter by TGRPO: GRPO by step and by trial, on stage rewards.

    --adapter: the adapter that played the trials; it is trained further.
    Configuration: config/train/tgrpo_tiny.yaml for a policy below 0.5 GB, else TgrpoConfig's.
    """
    from grape_trainer.rl_config import TgrpoConfig

    _train(TgrpoConfig, policy, bags, out, adapter, config, seed, resume)


def _train(
    kind: type[RlConfig],
    policy: Path,
    bags: list[Path],
    out: Path,
    adapter: Path | None,
    config: Path | None,
    seed: int | None,
    resume: bool,
) -> None:
    from grape_trainer.train_rl import train_rl

    settings = adapter_settings(kind, kind.kind, policy, adapter, config, seed)
    with ProgressBar(kind.kind) as bar:
        result = train_rl(settings, policy, bags, out, adapter, bar.training, resume)
    stop_if(result.interrupted)
    console.print(
        f'{out}: adapter {result.adapter_id}, {result.steps} steps on {result.trials} trials '
        f'({result.control_steps} control steps, {result.successes} successes)',
        soft_wrap=True,
    )
    say_stopped(result)
