"""`grape train sft` and `grape train tpo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from grape_bringup.cli_console import Adapter, Policy, ProgressBar, Resume, console, policy_folder
from grape_bringup.interruption import Interrupted
from grape_bringup.processes import Processes

# Weights below this size are a tiny policy's, for which the paper's learning rates are too small.
TINY_BYTES = 500_000_000

Out = Annotated[Path, typer.Option('--out', help='Folder for the result and the curves.')]
Config = Annotated[
    Path | None, typer.Option('--config', help='YAML in config/train/; see --help of the command.')
]
TrainSeed = Annotated[
    int | None, typer.Option('--seed', min=0, help="Instead of the configuration's.")
]


def sft(
    bags: Annotated[list[Path], typer.Option(help='Folder of bags; repeatable.')],
    out: Out,
    policy: Annotated[
        Path | None,
        typer.Option(
            help='Policy to go on from; without it, a fresh one.', callback=policy_folder
        ),
    ] = None,
    architecture: Annotated[
        Path | None, typer.Option(help='YAML of a fresh policy; default: grape_tiny.yaml.')
    ] = None,
    config: Config = None,
    seed: TrainSeed = None,
    corrections: Annotated[
        bool, typer.Option(help='Only the steps in which a person took over on the robot.')
    ] = False,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a policy on the successful bags (supervised, action tokens).

    Configuration: config/train/sft_tiny.yaml for a fresh policy, else the paper's values.
    """
    from grape_bringup.rollouts import check_policy
    from grape_bringup.ros_environment import config_file
    from grape_trainer.train_sft import train_sft
    from grape_trainer.training_config import SftConfig

    if policy is not None:
        check_policy(policy)
    elif architecture is None:
        architecture = config_file('policy/grape_tiny.yaml')
    if config is None and policy is None:
        config = config_file('train/sft_tiny.yaml')
    settings = load_settings(SftConfig, config, seed)
    if corrections:
        settings = replace(settings, corrections=True)
    with ProgressBar('sft') as bar:
        result = train_sft(settings, bags, out, architecture, policy, bar.training, resume)
    stop_if(result.interrupted)
    console.print(
        f'{out}: {result.steps} steps on {result.episodes} episodes '
        f'({result.control_steps} control steps)'
    )


def tpo(
    policy: Policy,
    pairs: Annotated[Path, typer.Option(help='A file of grape pair.')],
    out: Out,
    adapter: Adapter = None,
    config: Config = None,
    seed: TrainSeed = None,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a LoRA adapter on pairs of trials (trajectory-wise preference optimisation).

    --adapter: the adapter that sampled the trials; it is trained further and is the reference.
    Configuration: config/train/tpo_tiny.yaml for a policy below 0.5 GB, else the paper's values.
    """
    from grape_trainer.train_tpo import train_tpo
    from grape_trainer.training_config import TpoConfig

    settings = adapter_settings(TpoConfig, 'tpo', policy, adapter, config, seed)
    with ProgressBar('tpo') as bar:
        result = train_tpo(settings, policy, pairs, out, adapter, bar.training, resume)
    stop_if(result.interrupted)
    say_trained(out, result, 'pairs')


def adapter_settings(
    kind: type,
    method: str,
    policy: Path,
    adapter: Path | None,
    config: Path | None,
    seed: int | None,
) -> object:
    """Check the folders of a policy and an adapter, and return a method's configuration."""
    from grape_bringup.rollouts import check_policy

    check_policy(policy, adapter)
    return load_settings(kind, config or tiny_config(policy, method), seed)


def tiny_config(policy: Path, kind: str) -> Path | None:
    """Return config/train/KIND_tiny.yaml for a tiny policy, else None: the paper's values."""
    from grape_bringup.ros_environment import config_file

    size = sum(file.stat().st_size for file in policy.glob('*.safetensors'))
    return config_file(f'train/{kind}_tiny.yaml') if size < TINY_BYTES else None


def stop_if(interrupted: bool) -> None:
    """Raise Interrupted where a training was."""
    if interrupted:
        raise Interrupted


def say_trained(out: Path, result: object, examples: str) -> None:
    """Print what a run on whole trials gave; `examples` names what it counts."""
    console.print(
        f'{out}: adapter {result.adapter_id}, {result.steps} steps on {result.examples} {examples}'
    )
    say_stopped(result)


def say_stopped(result: object) -> None:
    """Print why a training ended early, if it did."""
    if result.stopped:
        console.print(f'stopped early: {result.stopped}', soft_wrap=True)


def load_settings(kind: type, config: Path | None, seed: int | None) -> object:
    """Return a configuration from a file, or the defaults; a seed given here wins."""
    overrides = {} if seed is None else {'seed': seed}
    return kind.from_dict(overrides) if config is None else kind.load(config, overrides)
