"""`grape checkpoint info` and `grape checkpoint verify`: what a policy is, and its parity."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from grape_bringup.cli_console import console

Folder = Annotated[
    str, typer.Argument(help='Checkpoint folder, or a Hugging Face hub id: ORG/NAME[@REVISION].')
]


def info(
    folder: Folder,
    sha256: Annotated[
        bool | None,
        typer.Option(
            '--sha256/--no-sha256',
            help='Hash the weights, which reads them all; default: below 0.5 GB.',
        ),
    ] = None,
) -> None:
    """Say what a checkpoint or an adapter folder is. Reads headers, no weights."""
    from grape_policy_node.openvla.info import describe_folder

    rows = describe_folder(folder, sha256)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f'{name:{width}}  {value}', soft_wrap=True, markup=False)


def verify(folder: Folder) -> None:
    """Compare a checkpoint with the golden files of the reference implementation beside it.

    Pixels, logits, tokens and actions, in float32 on the CPU; with an adapter where there is one.
    Exit code 1 where a difference is too large.
    """
    from grape_policy_node.openvla.verify import verify_folder

    reports = verify_folder(folder)
    for report in reports:
        table = Table(
            title=f'{report.file} (rotary frequencies: {report.frequencies})',
            title_justify='left',
        )
        for heading in ('quantity', 'cases', 'largest difference', 'tolerance', ''):
            table.add_column(heading, justify='left' if heading == 'quantity' else 'right')
        for row in report.comparisons:
            tokens = row.quantity == 'greedy_tokens'
            table.add_row(
                row.quantity,
                str(row.cases),
                f'{row.largest:.0f} tokens' if tokens else f'{row.largest:.2e}',
                'equal' if tokens else f'{row.tolerance:.0e}',
                'ok' if row.ok else '[red]FAIL[/red]',
            )
        console.print(table)
        for note in report.notes:
            console.print(f'note: {note}', soft_wrap=True, markup=False)
    equal = all(report.ok for report in reports)
    verdict = 'equals' if equal else 'DIFFERS from'
    console.print(f'{folder}: {verdict} the reference', soft_wrap=True, markup=False)
    raise typer.Exit(0 if equal else 1)
