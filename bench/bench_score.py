"""How fast recorded trials are scored, against the time that the robot took to make them.

    .venv/bin/python bench/bench_score.py BAGS... [--jobs 1 2] [--copies 1] [--costs FILE]

Scores the bags into a fresh table with each number of processes and prints episodes a second, the
ratio to real time, and the peak memory of this process. `--copies` names each bag several times
(by links), to see that time is linear and memory flat. `--costs` scores with a cost program.
Memory is this process's and its largest child's. CPU time is all processes'; on a machine that has
other work it says more than the clock.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grape_episode.bag import find_bags, read_info
from grape_trainer.scoring.objective import load_scored_objective
from grape_trainer.scoring.scorer import score_bags


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bags', type=Path, nargs='+')
    parser.add_argument('--jobs', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--copies', type=int, nargs='+', default=[1])
    parser.add_argument('--objective', default='')
    parser.add_argument('--costs', type=Path)
    options = parser.parse_args()
    objective = load_scored_objective(
        options.objective, options.costs, allow_unapproved=options.costs is not None
    )
    bags = find_bags(options.bags)
    robot_s = sum(read_info(bag).steps / _rate(bag) for bag in bags)
    columns = ('s', 'CPU s', 'bags a s', 'times real time', 'peak MiB', 'child')
    table = Table('bags', 'processes', *columns)
    with tempfile.TemporaryDirectory() as folder:
        for copies in options.copies:
            many = linked(bags, copies, Path(folder, f'x{copies}'))
            for jobs in options.jobs:
                out = Path(folder, f'{copies}-{jobs}.csv')
                began, cpu = time.perf_counter(), _cpu_s()
                score_bags(many, objective, out, jobs=jobs)
                took = time.perf_counter() - began
                peaks = (
                    resource.getrusage(who).ru_maxrss / 1024
                    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
                )
                table.add_row(
                    *map(str, (len(many), jobs)),
                    f'{took:.1f}',
                    f'{_cpu_s() - cpu:.1f}',
                    f'{len(many) / took:.1f}',
                    f'{robot_s * copies / took:.0f}',
                    *(f'{peak:.0f}' for peak in peaks),
                )
    Console().print(table)


def linked(bags: list[Path], copies: int, folder: Path) -> list[Path]:
    """Return each bag under several names: folders of links."""
    many = []
    for copy in range(copies):
        for bag in bags:
            twin = folder / f'{copy}' / bag.name
            twin.mkdir(parents=True)
            for file in bag.iterdir():
                if file.is_file():
                    (twin / file.name).symlink_to(file.resolve())
            many.append(twin)
    return many


def _cpu_s() -> float:
    """Return the CPU time of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _rate(bag: Path) -> float:
    return float(read_info(bag).contract['control_rate_hz'])


if __name__ == '__main__':
    main()
