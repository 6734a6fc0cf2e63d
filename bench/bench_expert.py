"""How often the scripted expert succeeds, and how long it takes.

    .venv/bin/python bench/bench_expert.py [--suite libero_object ...] [--init-states 5]
        [--noise 0.25] [--rate 20] [--json out.json]

No pictures and no ROS: the expert sees the scene. The first attempt only; `grape demos` makes up
to four.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from grape_trainer.evaluation import wilson_interval
from sim_bridge.expert import Expert
from sim_bridge.libero import LiberoEnvironment
from sim_bridge.rollout import ActuationNoise, play

TASKS = 10  # of a suite


def main() -> None:
    """Play every task of the suites and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--suite', nargs='+', default=['libero_object', 'libero_spatial'])
    parser.add_argument('--init-states', type=int, default=5, help='the first N of each task')
    parser.add_argument('--noise', type=float, default=0.25)
    parser.add_argument('--rate', type=float, default=20, help='Hz of actions: 20, 10, 5, ...')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    names = [f'{suite}/{index}' for suite in options.suite for index in range(TASKS)]
    results = {}
    for name in track(names, description='expert'):
        env = LiberoEnvironment(None, rate_hz=options.rate)
        results[name] = [
            asdict(episode(env, name, state, options.noise))
            for state in range(options.init_states)
        ]
        env.close()
    table = Table('task', 'success', 'n', '95 % Wilson', 'median steps of a success')
    for group in [*names, *options.suite]:
        played = [r for name in names if f'{name}/'.startswith(f'{group}/') for r in results[name]]
        table.add_row(group, *summary(played))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def episode(env: LiberoEnvironment, task: str, init_state: int, noise: float):  # noqa: ANN201
    """Play one episode with the expert."""
    observation = env.reset(task, init_state, 0)
    expert = Expert(env)
    steps = env.task_info().max_steps
    return play(env, lambda _: expert.action(), observation, steps, ActuationNoise(noise, 0))


def summary(played: list[dict]) -> tuple[str, ...]:
    """Return successes, n, interval and median steps as text."""
    good = [result['steps'] for result in played if result['success']]
    low, high = wilson_interval(len(good), len(played))
    median = f'{np.median(good):.0f}' if good else '-'
    return str(len(good)), str(len(played)), f'{low:.2f} - {high:.2f}', median


if __name__ == '__main__':
    main()
