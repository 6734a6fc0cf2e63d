"""`--processes N` of the training commands: the same command in N processes of this machine.

They get the environment of torch's own launchers (grape_trainer/distributed.py); with that in
place, as under `accelerate launch`, nothing is started here. Each has a session of its own: a
terminal's Ctrl-C comes to this process alone, which passes it on once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from grape_bringup.cli_console import INTERRUPTED_CODE
from grape_bringup.node_process import free_port

POLL_S = 0.2
GRACE_S = 60.0  # for the others to end by themselves when one has ended with an error
SHOWN_BYTES = 4000  # of what a process said that failed


def in_processes(count: int) -> int:
    """Run this command line in `count` processes and exit; in one of them go on.

    Raises:
        typer.Exit: with the exit code of the processes.

    """
    if count == 1 or 'WORLD_SIZE' in os.environ:
        return count
    raise typer.Exit(run_in_processes(count, sys.argv[1:]))


Processes = Annotated[
    int,
    typer.Option(
        '--processes',
        min=1,
        callback=in_processes,
        is_eager=True,
        help='Processes that share each batch: as many as there are GPUs.',
    ),
]


def run_in_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `grape ARGUMENTS` in processes 0..count-1 and return the first exit code that is not 0.

    The first process has the terminal; what another one says is shown if it is the first to fail.
    """
    environment = {
        'OMP_NUM_THREADS': str(max(1, (os.cpu_count() or 1) // count)),
        **os.environ,
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
        'WORLD_SIZE': str(count),
    }
    command = [sys.executable, '-m', 'grape_bringup.child', str(os.getpid())]
    command += ['grape_bringup.cli', *arguments]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(count)]
        processes = [
            subprocess.Popen(
                command,
                env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                stderr=None if rank == 0 else log.open('wb'),
                start_new_session=True,
            )
            for rank, log in enumerate(logs)
        ]
        failed = _wait(processes)
        if failed is None:
            return 0
        code = processes[failed].returncode
        if failed > 0 and code != INTERRUPTED_CODE:
            _show(failed, logs[failed])
        return code


def _wait(processes: Sequence[subprocess.Popen]) -> int | None:
    """Wait until all have ended; return the first one that ended with another code than 0."""
    failed, deadline, interruptions = None, 0.0, 0
    while any(process.poll() is None for process in processes):
        try:
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            interruptions += 1
            _signal(processes, signal.SIGINT if interruptions == 1 else signal.SIGKILL)
        if failed is None:
            failed = next((i for i, p in enumerate(processes) if p.poll()), None)
            deadline = time.monotonic() + GRACE_S
        elif time.monotonic() > deadline:
            _signal(processes, signal.SIGKILL)
    if failed is None:
        failed = next((i for i, p in enumerate(processes) if p.returncode), None)
    return failed


def _signal(processes: Sequence[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _show(rank: int, log: Path) -> None:
    text = log.read_bytes()[-SHOWN_BYTES:].decode(errors='replace')
    Console(stderr=True, highlight=False).print(
        f'process {rank} failed first:\n{text}', soft_wrap=True, markup=False
    )
