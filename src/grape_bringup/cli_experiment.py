"""`grape experiment run` and `table`: many runs of `grape iterate`, and what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from grape_bringup.cli_console import console

File = Annotated[Path, typer.Argument(help='YAML as in experiments/.')]
Out = Annotated[Path | None, typer.Option(help="Folder, instead of the file's.")]


def run(
    file: File,
    only: Annotated[
        list[str] | None, typer.Option('--run', help='This run only; repeatable.')
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help='This seed only; repeatable.')] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help='Runs at a time; 0: as many as the machine carries.')
    ] = 0,
    out: Out = None,
) -> None:
    """Do what is left of an experiment, then write its table."""
    from grape_bringup.experiment import run_all
    from grape_trainer.experiment import Experiment

    experiment = Experiment.load(file, out)
    codes = run_all(experiment, only or [], seed or [], jobs)
    _write(experiment)
    if failed := [name for name, code in codes.items() if code]:
        console.print(f'failed: {", ".join(failed)}', soft_wrap=True)
        raise typer.Exit(1)


def table(file: File, out: Out = None) -> None:
    """Write the table and the pictures of what is there."""
    from grape_trainer.experiment import Experiment

    _write(Experiment.load(file, out))


def _write(experiment: object) -> None:
    from grape_bringup.experiment_results import read_results
    from grape_trainer.experiment import cells
    from grape_trainer.experiment_table import write_results

    found = cells(read_results(experiment))
    if not found:
        console.print('no run has an evaluation yet')
        return
    files = write_results(found, experiment.titles, experiment.out)
    console.print(Markdown(files[1].read_text()))
    console.print(', '.join(map(str, files)), soft_wrap=True)
