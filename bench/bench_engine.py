"""One action, and a batch of eight: our engine against transformers' generate, side by side.

    .venv/bin/python bench/bench_engine.py [--sizes tiny small medium] [--rounds 5] [--threads 2]
        [--device cpu] [--compile] [--json out.json]

Same weights, same pixels, greedy, in turns. The straightforward path embeds picture and prompt and
calls LlamaForCausalLM.generate for seven tokens, one observation after the other (the published
code refuses batches). Then the log-probabilities of a whole trajectory: in chunks, against one
forward pass a step. Random weights; sizes 7b needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from grape_bringup.ros_environment import config_file
from grape_policy_node.action_tokens import ACTION_DIMS
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.tiny import build_tiny, load_tiny_config

INSTRUCTION = 'pick up the alphabet soup and place it in the basket'
STATISTICS = {'any': {'action': {'q01': [-1.0] * 7, 'q99': [1.0] * 7, 'mask': [True] * 7}}}
BATCH = 8
STEPS = 32  # of the trajectory
HEADS = {'tiny': 4, 'small': 8, 'medium': 12}
LLAMA = {'small': (512, 1408, 8), 'medium': (768, 2048, 12)}  # width, MLP, layers
TOWER = {'small': (192, 6), 'medium': (384, 12)}  # width, depth


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', nargs='+', default=['tiny', 'small', 'medium'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true', help='torch.compile too (minutes)')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {size: measure(size, options) for size in options.sizes}
    Console().print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + '\n')


def build(size: str, dtype: torch.dtype, device: str) -> Engine:
    """Return a fresh model of that size, frozen as for acting."""
    config = load_tiny_config(config_file('policy/grape_tiny.yaml'))
    if size != 'tiny':
        width, mlp, layers = LLAMA[size]
        dim, depth = TOWER[size]
        towers = [{**tower, 'embed_dim': dim, 'depth': depth, 'num_heads': dim // 64}
                  for tower in config.towers]  # fmt: skip
        text = {**config.text_config, 'hidden_size': width, 'intermediate_size': mlp}
        text |= {'num_hidden_layers': layers}
        text |= dict.fromkeys(('num_attention_heads', 'num_key_value_heads'), HEADS[size])
        config = replace(config, image_size=224, towers=towers, text_config=text)
    checkpoint = build_tiny(config, [INSTRUCTION], STATISTICS, seed=0)
    checkpoint.model.to(device=device, dtype=dtype)
    engine = Engine(checkpoint)
    engine.set_adapter('base')
    return engine


def measure(size: str, options: argparse.Namespace) -> dict[str, object]:
    """Time every way for one size; milliseconds, medians of the rounds."""
    device, rounds = options.device, options.rounds
    exact, half = (build(size, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    side = exact.model.spec.image_size
    pixels = torch.randn(BATCH, 6, side, side, generator=torch.Generator().manual_seed(0))
    ids, _ = exact.processor.prompts([INSTRUCTION])

    def ours(engine: Engine, count: int) -> np.ndarray:
        given = engine.predict_ids(pixels[:count], ids.expand(count, -1))
        return np.stack([prediction.token_ids for prediction in given])

    ways: dict[str, Callable[[], object]] = {}
    for count in (1, BATCH):
        ways[f'generate {count}'] = lambda n=count: generate(exact, pixels[:n], ids)
        ways[f'engine {count}'] = lambda n=count: ours(exact, n)
        ways[f'generate bf16 {count}'] = lambda n=count: generate(half, pixels[:n], ids)
        ways[f'engine bf16 {count}'] = lambda n=count: ours(half, n)
    if options.compile:
        compiled = Engine(exact.checkpoint, runtime='compile')
        compiled.set_adapter('base')
        ways['engine compiled 1'] = lambda: ours(compiled, 1)
    trajectory = pixels[torch.arange(STEPS) % BATCH]
    tokens = np.tile(ours(exact, 1), (STEPS, 1))
    ways['log-probs, a step each'] = lambda: scored(exact, trajectory, tokens, 1)
    ways['log-probs, chunks'] = lambda: scored(exact, trajectory, tokens, 16)
    same = generate(exact, pixels, ids) == ours(exact, BATCH).tolist()
    times = in_turns(ways, rounds)
    parameters = sum(p.numel() for p in exact.model.parameters())
    return {'parameters': parameters, 'prompt': int(ids.shape[1]), 'same_tokens': same, **times}


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each way; the first round only warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


@torch.no_grad()
def generate(engine: Engine, pixels: torch.Tensor, ids: torch.Tensor) -> list[list[int]]:
    """Choose tokens as the published code does, restricted to the action ids like ours."""
    model, choice = engine.model, engine.action_tokenizer
    device = model.device
    other = torch.ones(model.language_model.config.vocab_size, dtype=torch.bool)
    other[choice.first_id : choice.vocab_size] = False
    suppressed = other.nonzero()[:, 0].tolist()
    tokens = []
    for row in pixels:
        embeds, _ = model.embed(row[None].to(device), ids.to(device))
        made = model.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=embeds.new_ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=ACTION_DIMS,
            min_new_tokens=ACTION_DIMS,
            do_sample=False,
            suppress_tokens=suppressed,
        )
        tokens.append(made[0].tolist())
    return tokens


@torch.no_grad()
def scored(engine: Engine, pixels: torch.Tensor, tokens: np.ndarray, chunk: int) -> torch.Tensor:
    """Return the log-probabilities of a trajectory."""
    return engine.trajectory_log_probs(pixels, INSTRUCTION, tokens, chunk=chunk)


def table(results: dict[str, dict]) -> Table:
    """One row a size and kind of work."""
    out = Table('size', 'parameters', 'work', 'straightforward ms', 'engine ms', 'ratio')
    for size, found in results.items():
        million = f'{found["parameters"] / 1e6:.1f} M'
        pairs = [
            (f'{kind}{count}', f'generate {kind}{count}', f'engine {kind}{count}')
            for kind in ('', 'bf16 ')
            for count in (1, BATCH)
        ]
        pairs.append(
            (f'log-probs of {STEPS} steps', 'log-probs, a step each', 'log-probs, chunks')
        )
        if 'engine compiled 1' in found:
            pairs.append(('1, compiled', 'generate 1', 'engine compiled 1'))
        for work, slow, fast in pairs:
            ratio = found[slow] / found[fast]
            out.add_row(
                size, million, work, f'{found[slow]:.1f}', f'{found[fast]:.1f}', f'{ratio:.2f}x'
            )
    return out


if __name__ == '__main__':
    main()
