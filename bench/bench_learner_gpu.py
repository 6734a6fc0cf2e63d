"""The 7B shapes on GPUs: seconds and peak memory of TPO's gradient of one pair.

    .venv/bin/python bench/bench_learner_gpu.py [--steps 50 200] [--chunk-steps 8 16 32]
    .venv/bin/python bench/bench_learner_gpu.py --size small --device cpu --steps 4   (no GPU)
    accelerate launch --num_processes 2 bench/bench_learner_gpu.py --parallel fsdp

Random weights in bfloat16, LoRA of rank 32 in float32, bfloat16 autocast, made-up trials; with and
without gradient checkpointing. tokens/s counts the action tokens of both trials.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from bench_engine import build
from bench_engine_gpu import build_7b
from bench_tpo import PAIR, made_up

from grape_policy_node.engine import Engine
from grape_trainer.distributed import Ranks, join_ranks
from grape_trainer.large_model import fit_into_memory
from grape_trainer.objective.tpo import TpoOptions
from grape_trainer.preference_run import policy_log_probs
from grape_trainer.training_config import TpoConfig
from grape_trainer.trajectory_gradient import accumulate_gradient


def main() -> None:
    """Measure every chunk size and length; print one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='7b', choices=['7b', 'small', 'medium'])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--parallel', default='ddp', choices=['ddp', 'fsdp'])
    parser.add_argument('--gradient-checkpointing', action='store_true')
    parser.add_argument('--steps', type=int, nargs='+', default=[50, 200])
    parser.add_argument('--chunk-steps', type=int, nargs='+', default=[8, 16, 32])
    options = parser.parse_args()
    config = TpoConfig(
        device=options.device,
        parallel=options.parallel,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    ranks = join_ranks(config)
    device = options.device
    engine = (
        build_7b(device) if options.size == '7b' else build(options.size, torch.bfloat16, device)
    )
    engine.adapters.new('trained', seed=0)
    fit_into_memory(engine.model, config, ranks)
    about = {'processes': ranks.count, 'torch': torch.__version__, **vars(options)}
    for steps in options.steps:
        for chunk_steps in options.chunk_steps:
            found = measure(engine, ranks, steps, chunk_steps)
            if ranks.first:
                sys.stdout.write(json.dumps({**about, **found}) + '\n')


def measure(engine: Engine, ranks: Ranks, steps: int, chunk_steps: int) -> dict[str, object]:
    """Time one pair after a warm-up of a chunk; an exhausted GPU is a result."""
    parameters = engine.adapters.parameters('trained')

    def pair(length: int) -> None:
        trials = {bag: made_up(engine, bag, length) for bag in (PAIR.chosen, PAIR.rejected)}
        reference = {bag: torch.full((length, 7), -6.9) for bag in trials}
        for parameter in parameters:
            parameter.grad = None
        accumulate_gradient(
            [PAIR], trials.get, policy_log_probs(engine), reference, TpoOptions(), chunk_steps,
            ranks=ranks, parameters=parameters,
        )  # fmt: skip
        ranks.sum_gradients(parameters)

    cuda = engine.model.device.type == 'cuda'
    found: dict[str, object] = {'steps': steps, 'chunk_steps': chunk_steps}
    try:
        pair(chunk_steps)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.monotonic()
        pair(steps)
        if cuda:
            torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return {**found, 'seconds': None, 'note': 'out of memory'}
    seconds = time.monotonic() - started
    found |= {'seconds': seconds, 'tokens_s': 2 * steps * 7 / seconds}
    if cuda:
        found['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return found


if __name__ == '__main__':
    main()
