"""`grape demo`: one iteration of GRAPE on LIBERO with the policy that ships, and its report."""

from __future__ import annotations

from pathlib import Path

from grape_bringup.cli_console import console
from grape_bringup.iterate import run_experiment
from grape_bringup.ros_environment import config_file
from grape_trainer.iteration_config import IterateConfig


def run_demo(fast: bool = False, workers: int | None = None, out: Path | None = None) -> Path:
    """Run config/experiment/demo.yaml (or demo_fast.yaml) and write its report.

    Args:
        fast: fewer trials and evaluation episodes.
        workers: instead of the file's.
        out: run folder, instead of the file's.

    Returns:
        The path of the report.

    """
    from grape_trainer.report import build_report

    given = {'workers': workers, 'out': None if out is None else str(out)}
    overrides = {name: value for name, value in given.items() if value is not None}
    name = 'demo_fast' if fast else 'demo'
    config = IterateConfig.load(config_file(f'experiment/{name}.yaml'), **overrides)
    run_experiment(config, Path(config.out))
    page = build_report(config.out)
    console.print(f'report: {page.resolve()}', soft_wrap=True)
    return page
