"""`grape train dpo` and `grape train kto`: what TPO is compared with, and what needs no pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grape_bringup.cli_console import Adapter, Policy, ProgressBar, Resume, UsageError
from grape_bringup.cli_train import (
    Config,
    Out,
    TrainSeed,
    adapter_settings,
    say_trained,
    stop_if,
)
from grape_bringup.processes import Processes


def dpo(
    policy: Policy,
    pairs: Annotated[Path, typer.Option(help='A file of grape pair.')],
    out: Out,
    adapter: Adapter = None,
    config: Config = None,
    seed: TrainSeed = None,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a LoRA adapter by step-wise DPO on pairs of trials, GRAPE's baseline.

    --adapter: as for tpo. Configuration: config/train/dpo_tiny.yaml for a policy below 0.5 GB.
    """
    from grape_trainer.train_dpo import train_dpo
    from grape_trainer.training_config import DpoConfig

    settings = adapter_settings(DpoConfig, 'dpo', policy, adapter, config, seed)
    with ProgressBar('dpo') as bar:
        result = train_dpo(settings, policy, pairs, out, adapter, bar.training, resume)
    stop_if(result.interrupted)
    say_trained(out, result, 'pairs')


def kto(
    policy: Policy,
    out: Out,
    scores: Annotated[
        Path | None, typer.Option(help='A table of grape score; or give --bags.')
    ] = None,
    bags: Annotated[
        list[Path] | None,
        typer.Option(help='Folder of bags, by outcome or label; repeatable.'),
    ] = None,
    adapter: Adapter = None,
    config: Config = None,
    seed: TrainSeed = None,
    resume: Resume = True,
    processes: Processes = 1,
) -> None:
    """Train a LoRA adapter by KTO on single trials, which need not share initial states.

    --adapter: as for tpo. Configuration: config/train/kto_tiny.yaml for a policy below 0.5 GB.
    """
    if (scores is None) == (not bags):
        raise UsageError('Give either --scores or --bags.')
    from grape_trainer.train_kto import labelled_trials, train_kto
    from grape_trainer.training_config import KtoConfig

    settings = adapter_settings(KtoConfig, 'kto', policy, adapter, config, seed)
    trials = labelled_trials(settings, scores, bags or ())
    with ProgressBar('kto') as bar:
        result = train_kto(settings, policy, trials, out, adapter, bar.training, resume)
    stop_if(result.interrupted)
    good = sum(trial.desirable for trial in trials)
    say_trained(out, result, f'trials ({good} desirable)')
