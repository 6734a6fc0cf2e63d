"""`grape iterate`, `grape demo`, `grape report` and `grape doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grape_bringup.cli_console import console


def iterate(
    config: Annotated[Path, typer.Option(help='YAML as in config/experiment/.')],
    workers: Annotated[int | None, typer.Option(min=0, help="Instead of the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder, instead of the file's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the file's.")] = None,
    report: Annotated[bool, typer.Option(help='Write the report at the end.')] = True,
) -> None:
    """Run Algorithm 1: K rounds of collect, score, pair, train, evaluate; then its report."""
    from grape_bringup.iterate import run_experiment
    from grape_trainer.iteration_config import IterateConfig
    from grape_trainer.report import build_report

    given = {'workers': workers, 'out': None if out is None else str(out), 'seed': seed}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = IterateConfig.load(config, **overrides)
    run_experiment(settings, Path(settings.out))
    if report:
        console.print(f'report: {build_report(Path(settings.out)).resolve()}', soft_wrap=True)


def demo(
    fast: Annotated[
        bool, typer.Option('--fast', help='Fewer trials and evaluation episodes.')
    ] = False,
    workers: Annotated[int | None, typer.Option(min=0, help='Graphs at once.')] = None,
    out: Annotated[Path | None, typer.Option(help='Run folder; default: runs/demo.')] = None,
) -> None:
    """Run one GRAPE iteration on LIBERO with the policy that ships, and write its report."""
    from grape_bringup.demo import run_demo

    run_demo(fast, workers, out)


def report(run: Annotated[Path, typer.Argument(help='Run folder of grape iterate.')]) -> None:
    """Write RUN/report.html: success before and after, every trial, the curves."""
    from grape_trainer.report import build_report

    console.print(f'report: {build_report(run)}', soft_wrap=True)


def doctor() -> None:
    """Check rendering, ROS discovery and versions; name what is missing and how to install it."""
    from grape_bringup.doctor import run_doctor

    raise typer.Exit(run_doctor())
