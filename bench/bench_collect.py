"""How many episodes a minute are collected, by workers and by where the policy's engine is.

    .venv/bin/python bench/bench_collect.py --policy models/grape_tiny [--workers 1 2 4]

For each number of workers and each engine (own: every policy node loads the policy; shared: one
server answers in batches) a pool is started, every worker plays one episode that is not counted,
and then `--episodes` are timed. All have the same length, because the limit comes before any
success. Memory is that of the processes that hold the policy (PSS, pages shared are split).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from grape_bringup.graph_setup import OWN, SHARED, GraphSetup
from grape_bringup.pool import Pool
from grape_bringup.rollouts import played_by, trial_requests
from grape_episode.contract import contract_of_policy

TASK = 'libero_object/0'
HOLDS_POLICY = ('policy_node.yaml', 'grape_bringup.cli serve')


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--policy', type=Path, default=Path('models/grape_tiny'))
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--engines', nargs='+', default=[OWN, SHARED])
    parser.add_argument('--episodes', type=int, default=8)
    parser.add_argument('--steps', type=int, default=50)
    options = parser.parse_args()
    table = Table('workers', 'engine', 'start s', 'episodes a minute', 'against the first', 'MiB')
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for workers, engine in product(options.workers, options.engines):
            found = measured(options, workers, engine, Path(folder, f'{workers}-{engine}'))
            start_s, rate, mib = found
            first = first or rate
            table.add_row(
                str(workers),
                engine,
                f'{start_s:.0f}',
                f'{rate:.1f}',
                f'{rate / first:.2f}x',
                f'{mib:.0f}',
            )
            Console(stderr=True).print(f'{workers} {engine}: {rate:.1f} episodes a minute')
    Console().print(table)


def measured(
    options: argparse.Namespace, workers: int, engine: str, folder: Path
) -> tuple[float, float, float]:
    """Return seconds until all play, episodes a minute, and the policy's memory in MiB."""
    contract = contract_of_policy(options.policy)
    setup = GraphSetup(options.policy, contract=contract, rendering='fast', engine=engine)
    by = played_by(contract, 'fast', options.policy)
    warm = trial_requests([(TASK, 0)], workers, 0, 1.0, 4)
    timed = trial_requests([(TASK, 0)], options.episodes, 1, 1.0, options.steps)
    with Pool(setup, folder / 'logs', workers) as pool:
        began = time.perf_counter()
        pool.run(warm, folder / 'warm', by)
        start_s = time.perf_counter() - began
        began = time.perf_counter()
        pool.run(timed, folder / 'timed', by)
        took_s = time.perf_counter() - began
        return start_s, 60.0 * len(timed) / took_s, policy_mib()


def policy_mib() -> float:
    """Return the memory of this process's children that hold the policy."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        line = ' '.join(process.cmdline())
        if any(words in line for words in HOLDS_POLICY):
            found += process.memory_full_info().pss
    return found / 2**20


if __name__ == '__main__':
    main()
