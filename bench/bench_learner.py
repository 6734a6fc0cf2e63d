"""Tokens a second that the learner takes in, with one and with two processes.

    .venv/bin/python bench/bench_learner.py [--processes 1 2] [--json out.json]

TPO's gradient of batches of pairs on a fresh grape-tiny with an adapter, made-up trials, one
thread a process, gloo; each count in turns. A token is an action token of a trial in the batch.
CPU seconds (of all processes, a step) tell the work from the wait for a busy machine.
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

import torch
from bench_tpo import fresh_policy, made_up
from rich.console import Console

from grape_bringup.processes import free_port
from grape_policy_node.engine import Engine
from grape_trainer.dataset import BagPair
from grape_trainer.distributed import join_ranks
from grape_trainer.large_model import fit_into_memory
from grape_trainer.objective.tpo import TpoOptions
from grape_trainer.preference_run import policy_log_probs
from grape_trainer.training_config import TpoConfig
from grape_trainer.trajectory_gradient import accumulate_gradient

CHUNK_STEPS = 25


def main() -> None:
    """Measure the counts in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--parallel', default='ddp', choices=['ddp', 'fsdp'])
    parser.add_argument('--pairs', type=int, default=2)
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--rank', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        measure(options.pairs, options.steps, options.parallel)
        return
    found: dict[int, list[dict]] = {count: [] for count in options.processes}
    for _ in range(options.rounds):
        for count in options.processes:
            found[count].append(_in_processes(count))
    for count, rounds in found.items():
        tokens, cpu = (statistics.median(r[n] for r in rounds) for n in ('tokens_s', 'cpu_s'))
        Console().print(f'{count} processes: {tokens:.0f} tokens/s, {cpu:.2f} CPU s a step')
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + '\n')


def measure(pairs: int, steps: int, parallel: str) -> None:
    """Time one step in this process of several; the first one prints it."""
    torch.set_num_threads(1)
    config = TpoConfig(parallel=parallel)
    ranks = join_ranks(config)
    engine = Engine(fresh_policy())
    engine.adapters.new('trained', seed=0)
    fit_into_memory(engine.model, config, ranks)
    parameters = engine.adapters.parameters('trained')
    batch = [BagPair(f'pair {i}', Path(f'c{i}'), Path(f'r{i}')) for i in range(pairs)]

    def step(length: int) -> None:
        trials = {b: made_up(engine, b, length) for p in batch for b in p.bags.values()}
        reference = {bag: torch.full((length, 7), -6.9) for bag in trials}
        accumulate_gradient(
            batch, trials.get, policy_log_probs(engine), reference, TpoOptions(), CHUNK_STEPS,
            ranks=ranks, parameters=parameters,
        )  # fmt: skip
        ranks.sum_gradients(parameters)

    step(4)
    started, cpu_started = time.monotonic(), time.process_time()
    step(steps)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu_started
    cpu = ranks.sum_metrics({'cpu': cpu})['cpu']
    if ranks.first:
        tokens = 2 * pairs * steps * 7
        sys.stdout.write(json.dumps({'tokens_s': tokens / seconds, 'cpu_s': cpu}) + '\n')


def _in_processes(count: int) -> dict[str, float]:
    place = {'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1'}
    place |= {'MASTER_PORT': str(free_port()), 'OMP_NUM_THREADS': '1'}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, '--rank', *sys.argv[1:]],
            env={**os.environ, **place, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f'{count} processes failed')
    return json.loads(said[0].splitlines()[-1])


if __name__ == '__main__':
    main()
