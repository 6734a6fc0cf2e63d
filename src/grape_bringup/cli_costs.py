"""`grape costs check`: whether a cost program is accepted, and why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from grape_bringup.cli_console import console

if TYPE_CHECKING:
    from grape_trainer.scoring.cost_check import CheckReport

File = Annotated[
    Path, typer.Argument(help='Cost program: .py, .yaml, .json, or an answer in Markdown.')
]
AsJson = Annotated[bool, typer.Option('--json', help='Print the report as JSON.')]
DEADLINE_S = 0.6  # of each request to the sandbox; the whole command has 2 s


def check(file: File, as_json: AsJson = False) -> None:
    """Say whether a cost program is accepted or refused, and why; the exit code is 0 or 1.

    The program is parsed and tried on a made-up trajectory in the sandbox, and nowhere else.
    """
    from grape_trainer.scoring.cost_check import check_file
    from grape_trainer.scoring.cost_sandbox import CostSandbox, Limits

    with CostSandbox(Limits(deadline_s=DEADLINE_S)) as sandbox:
        report = check_file(file, sandbox)
    if as_json:
        sys.stdout.write(json.dumps({'file': str(file), **report.as_json()}, indent=2) + '\n')
    else:
        _show(file, report)
    if not report.accepted:
        raise typer.Exit(1)


def _show(file: Path, report: CheckReport) -> None:
    verdict = 'accepted' if report.accepted else 'refused'
    about = f' ({report.notation}, sha256 {report.sha256[:12]})' if report.notation else ''
    console.print(Text(f'{file}: {verdict}{about}'), soft_wrap=True)
    for each in report.functions:
        tried = 'not run'
        if each.lowest is not None:
            tried = f'cost {each.lowest:.4g} to {each.highest:.4g} on a made-up trajectory'
        about = (
            f'stage {each.function.stage}, {each.function.cost_class}, line {each.function.line}'
        )
        verdict = 'accepted' if each.accepted else 'refused'
        console.print(
            Text(f'  {each.function.name} ({about}): {verdict}, {tried}'), soft_wrap=True
        )
    for problem in report.problems:
        console.print(Text(f'  {problem}'), soft_wrap=True)
    if not report.walls.get('seccomp', True):
        console.print(
            'This machine filters no system calls (seccomp): the sandbox has one wall less.'
        )
