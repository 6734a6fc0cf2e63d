"""What every command shares: options, progress bars, readable errors."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from grape_bringup.interruption import Interrupted

if TYPE_CHECKING:
    from grape_bringup.manifest import EpisodeRecord
    from grape_trainer.learner import Progress as TrainingProgress

OUR_PACKAGES = (
    'grape_bringup',
    'grape_episode',
    'grape_policy_node',
    'grape_trainer',
    'sim_bridge',
)
QUIET_LINE_S = 10.0  # between two lines of progress where there is no terminal
INTERRUPTED_CODE = 130

# Of the processes of one training the first alone speaks.
console = Console(highlight=False, quiet=os.environ.get('RANK', '0') != '0')


def policy_folder(name: Path | None) -> Path | None:
    """Return a policy's folder; a Hugging Face hub id is looked up in the cache, or fetched."""
    from grape_policy_node.openvla.hub import resolve_folder

    return None if name is None else resolve_folder(name)


Policy = Annotated[
    Path,
    typer.Option(
        '--policy',
        help='Policy folder (OpenVLA layout), or a Hugging Face hub id.',
        callback=policy_folder,
    ),
]
Adapter = Annotated[
    Path | None, typer.Option('--adapter', help='LoRA adapter folder; without it, the base.')
]
Tasks = Annotated[
    list[str], typer.Option('--task', help='<suite>/<index>, e.g. libero_object/0; repeatable.')
]
InitStates = Annotated[str, typer.Option('--init-states', help="Such as '0-4,7'.")]
Seed = Annotated[int, typer.Option('--seed', min=0, help='Of the whole command.')]
Workers = Annotated[
    int, typer.Option('--workers', min=0, help='Graphs at once; 0: as the machine carries.')
]
MaxSteps = Annotated[
    int, typer.Option('--max-steps', min=0, help="0: the suite's official limit.")
]
Rendering = Annotated[
    str, typer.Option('--rendering', help='auto (stock where there is a GPU), fast or stock.')
]
ContractName = Annotated[
    str,
    typer.Option(
        '--contract', help="Name in config/contract/, or a YAML; empty: the policy's own."
    ),
]
UnnormKey = Annotated[
    str, typer.Option('--unnorm-key', help='Which action statistics; empty: the only ones.')
]
Resume = Annotated[
    bool, typer.Option('--resume/--no-resume', help='Go on with what the output folder holds.')
]


class UsageError(ValueError):
    """Options that do not fit together; the text says what to give."""


def set_up_logging(verbose: bool) -> None:
    """Send our packages' messages to the terminal, above the progress bars."""
    handler = RichHandler(console=console, show_path=False, rich_tracebacks=False)
    logging.basicConfig(level=logging.WARNING, format='%(message)s', handlers=[handler])
    for package in OUR_PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


@contextmanager
def readable_errors() -> Iterator[None]:
    """End with one readable message and exit code 1, or 130 after Ctrl-C.

    The packages' own exceptions and the system's are for people. Anything else is a bug and keeps
    its traceback.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt | Interrupted):
            console.print('Stopped. The same command goes on from here.')
            sys.exit(INTERRUPTED_CODE)
        ours = type(error).__module__.split('.')[0] in OUR_PACKAGES
        if not ours and not isinstance(error, OSError | ImportError):
            raise
        console.file.flush()
        text = f'[red]error:[/red] {_escaped(str(error))}'
        Console(stderr=True, highlight=False).print(text, soft_wrap=True)
        sys.exit(1)


class EpisodeBar:
    """A bar over episodes with success counts; a line now and then where there is no terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._counts: Counter[str] = Counter()
        self._bar = ProgressBar(title)

    def __enter__(self) -> EpisodeBar:
        """Show the bar."""
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it as it is."""
        self._bar.__exit__(*error)

    def update(self, record: EpisodeRecord, done: int, total: int) -> None:
        """Count an episode; fits `Pool.run`."""
        self._counts[str(record.outcome)] += 1
        self._bar.update(done, total, self.summary())

    def summary(self) -> str:
        """Return such as '3 successes, 2 failures'."""
        counts = self._counts
        parts = [f'{counts["success"]} success', f'{counts["failure"]} failure']
        parts += [f'{counts["error"]} error'] if counts['error'] else []
        return ', '.join(parts)


class ProgressBar:
    """One bar with a text at its end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn('{task.fields[note]}'),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=None, note='')

    def __enter__(self) -> ProgressBar:
        """Show the bar."""
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it as it is."""
        self._progress.__exit__(*error)

    def update(self, done: int, total: int, note: str = '') -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total, note=note)
        if not console.is_terminal and (
            done == total or time.monotonic() - self._last_line > QUIET_LINE_S
        ):
            self._last_line = time.monotonic()
            console.print(f'{self._title}: {done}/{total} {note}'.rstrip(), soft_wrap=True)

    def training(self, progress: TrainingProgress) -> None:
        """Move the bar; fits `train_sft` and `train_tpo`."""
        metrics = progress.metrics
        names = [n for n in ('loss', 'rewards/margins', 'accuracy/token') if n in metrics]
        note = ' '.join([progress.phase, *(f'{name} {metrics[name]:.3f}' for name in names)])
        self.update(progress.done, progress.total, note)


def _escaped(text: str) -> str:
    return text.replace('[', r'\[')
