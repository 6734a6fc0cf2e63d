"""LIBERO steps a second, stock rendering against ours, in one run.

    .venv/bin/python bench/bench_libero.py --steps 60 --json out.json

Every variant runs in a process of its own and plays the same random actions on the same task. The
variants take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

VARIANTS = (
    'stock, two cameras',
    'stock, one camera',
    'fast, all triangles',
    'fast',
    'no rendering',
)


def main() -> None:
    """Run the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', default='libero_object/0')
    parser.add_argument('--pixels', type=int, default=224)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--variant', choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        rate = measure(options.variant, options.task, options.pixels, options.steps)
        sys.stdout.write(f'RATE {rate}\n')
        sys.stdout.flush()
        os._exit(0)  # EGL and OSMesa may complain while they are torn down
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name in VARIANTS:
            rates[name].append(in_process(name, options))
    stock = statistics.median(rates[VARIANTS[0]])
    table = Table('rendering', 'steps/s (median)', 'all runs', 'against stock')
    for name, values in rates.items():
        median = statistics.median(values)
        runs = ', '.join(f'{value:.1f}' for value in values)
        table.add_row(name, f'{median:.1f}', runs, f'{median / stock:.2f}x')
    Console().print(table)
    if options.json:
        medians = {name: statistics.median(values) for name, values in rates.items()}
        result = {
            name: {
                'steps_per_s': rates[name],
                'median': medians[name],
                'against_stock': medians[name] / stock,
            }
            for name in VARIANTS
        }
        options.json.write_text(json.dumps(result, indent=1))


def in_process(name: str, options: argparse.Namespace) -> float:
    """Return the steps a second of one variant, from a process of its own."""
    command = [sys.executable, __file__, '--variant', name, '--task', options.task]
    command += ['--pixels', str(options.pixels), '--steps', str(options.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [line for line in done.stdout.splitlines() if line.startswith('RATE ')]
    return float(found[-1].split()[1])


def measure(name: str, task: str, pixels: int, steps: int) -> float:
    """Return the steps a second of a variant in this process."""
    step = _stock_two_cameras(task, pixels) if name == VARIANTS[0] else _ours(name, task, pixels)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (steps + 3, 7))
    actions[:, 6] = 1.0
    for action in actions[:3]:
        step(action)
    began = time.perf_counter()
    for action in actions[3:]:
        step(action)
    return steps / (time.perf_counter() - began)


def _ours(name: str, task: str, pixels: int):  # noqa: ANN202
    from sim_bridge import rendering
    from sim_bridge.libero import LiberoEnvironment

    mode = 'fast' if name == 'fast' else 'stock'
    env = LiberoEnvironment(None if name == 'no rendering' else pixels, mode)
    env.reset(task, 0, 0)
    if name == 'fast, all triangles':
        rendering.make_fast(env.simulation.sim, pixels, thin_meshes=False)
    return env.step


def _stock_two_cameras(task: str, pixels: int):  # noqa: ANN202
    """LIBERO's own default: agent view and wrist camera."""
    from sim_bridge import rendering
    from sim_bridge.libero_tasks import load_task

    rendering.set_default_backend()
    from libero.libero.envs import OffScreenRenderEnv

    found = load_task(task)
    env = OffScreenRenderEnv(
        bddl_file_name=str(found.bddl_file), camera_heights=pixels, camera_widths=pixels
    )
    env.seed(0)
    env.reset()
    env.set_init_state(found.init_states[0])
    return env.step


if __name__ == '__main__':
    main()
