"""`grape experiment`: every run of an experiment, several at a time, resumably.

The base policy's evaluation and first trials are made once, with all workers; then each run is a
`grape iterate` in a process of its own, with one graph, so that training and simulating runs share
the cores. What is complete is passed over, so that the same command goes on after anything.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import yaml

from grape_bringup.cli_console import console
from grape_bringup.interruption import Interrupted
from grape_bringup.iterate import GraphSteps, LazyPool, find_policy
from grape_bringup.pool import default_workers
from grape_trainer.experiment import Experiment
from grape_trainer.iteration import RunState, evaluate_policy, round_folder
from grape_trainer.iteration_config import IterateConfig

POLL_S = 2.0
STOP_S = 60.0

log = logging.getLogger(__name__)


def run_all(
    experiment: Experiment, only: list[str], seeds: list[int], jobs: int
) -> dict[str, int]:
    """Do what is left of the runs.

    Args:
        experiment: what to run.
        only: names of runs; empty: all.
        seeds: empty: all.
        jobs: runs at a time; 0: as many as the machine carries.

    Returns:
        Run name/seed -> exit code, of those that were started.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.

    """
    jobs = jobs or default_workers()
    chosen = [
        config
        for seed in experiment.seeds
        for name, by_seed in experiment.runs.items()
        for config in [by_seed[seed]]
        if (not only or name in only) and (not seeds or seed in seeds)
    ]
    waiting = [config for config in chosen if not _is_done(config)]
    console.print(f'{experiment.name}: {len(waiting)} of {len(chosen)} runs are to be done')
    if not waiting:
        return {}
    _prepare(waiting, jobs)
    return _run(waiting, jobs)


def _prepare(configs: list[IterateConfig], jobs: int) -> None:
    """Play what the runs share: two of them writing one folder would spoil it."""
    first = configs[0]
    shared, policy = Path(first.shared), find_policy(first)
    with ExitStack() as stack:
        graphs = LazyPool(replace(first, workers=jobs), policy, shared / 'logs', stack)
        if not all((shared / 'base' / suite.file).is_file() for suite in first.suites):
            steps = GraphSteps(first, shared, policy, graphs)
            base = shared / 'base'
            evaluate_policy(lambda _, action: action(), steps, first, base, base, None)
        for config in {config.seed: config for config in configs}.values():
            steps = GraphSteps(config, shared, policy, graphs)
            steps.collect(round_folder(config, Path(config.out), 1), None)


def _run(waiting: list[IterateConfig], jobs: int) -> dict[str, int]:
    running: dict[str, subprocess.Popen] = {}
    ended: dict[str, int] = {}
    queue = list(waiting)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                config = queue.pop(0)
                running[config.out] = _start(config)
                console.print(f'{config.out}: started', soft_wrap=True)
            time.sleep(POLL_S)
            for out, process in list(running.items()):
                if process.poll() is not None:
                    ended[out] = running.pop(out).returncode
                    said = 'complete' if ended[out] == 0 else f'failed; read {out}/run.log'
                    console.print(f'{out}: {said}', soft_wrap=True)
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        _stop(list(running.values()))
    return ended


def _start(config: IterateConfig) -> subprocess.Popen:
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'experiment.yaml'
    file.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    command = [sys.executable, '-m', 'grape_bringup.cli', 'iterate', '--config', str(file)]
    command += ['--workers', '1', '--no-report']
    with (folder / 'run.log').open('a') as stream:
        # A session of its own: Ctrl-C comes from here, once.
        return subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning('process %d does not stop; it is killed', process.pid)
            process.kill()


def _is_done(config: IterateConfig) -> bool:
    folder = Path(config.out)
    if not (folder / 'state.json').is_file():
        return False
    state = RunState.open(folder, config)
    return all(state.is_done(f'round_{config.rounds}/{suite.phase}') for suite in config.suites)
