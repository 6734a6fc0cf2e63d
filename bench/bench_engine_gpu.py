"""The 7B shapes on a GPU: a step, its share of the memory bandwidth, and generate beside it.

    .venv/bin/python bench/bench_engine_gpu.py [--rounds 10] [--json out.json]
    .venv/bin/python bench/bench_engine_gpu.py --size small --device cpu     (without a GPU)

Random weights in bfloat16, greedy, in turns. Decoding reads the language model's weights once a
token, so `bytes / bandwidth` bounds it from below; the bandwidth is that of a large copy, measured
here. A step's decoding time is the step less its prefill (towers, projector, prompt).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from bench_engine import BATCH, INSTRUCTION, STATISTICS, build, generate, in_turns
from rich.console import Console

from grape_bringup.ros_environment import config_file
from grape_policy_node.action_tokens import ACTION_DIMS
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import Checkpoint, build_processor, parse_config
from grape_policy_node.openvla.decoding import ActionDecoder
from grape_policy_node.openvla.model import OpenVLA
from grape_policy_node.openvla.tiny import EMPTY, load_tiny_config, train_tokenizer
from grape_policy_node.openvla.vision import PUBLISHED_TOWERS

COPY_BYTES = 2**31


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='7b', choices=['7b', 'small', 'medium'])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    device, half = options.device, torch.bfloat16
    engine = build_7b(device) if options.size == '7b' else build(options.size, half, device)
    found = measure(engine, options.rounds)
    console = Console(highlight=False)
    for name, value in found.items():
        console.print(
            f'{name:34} {value:.3f}' if isinstance(value, float) else f'{name:34} {value}'
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + '\n')


def build_7b(device: str) -> Engine:
    """Return the published shapes with random weights, made on the device."""
    tiny = load_tiny_config(config_file('policy/grape_tiny.yaml'))
    tokenizer = train_tokenizer([*tiny.corpus, INSTRUCTION], tiny.text_tokens)
    raw = {
        'model_type': 'openvla',
        'timm_model_ids': list(PUBLISHED_TOWERS),
        'image_sizes': [224, 224],
        'text_config': {'model_type': 'llama', 'vocab_size': 32064, 'pad_token_id': 32000},
        'empty_token_id': tokenizer.token_to_id(EMPTY),
    }
    spec = parse_config(raw, '7b')
    pipeline = {'image_resize_strategy': 'resize-naive', 'input_sizes': [[3, 224, 224]] * 2}
    pipeline |= {'means': tiny.means, 'stds': tiny.stds}
    processor = build_processor(spec, pipeline, tokenizer, '7b')
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = OpenVLA(spec)
    finally:
        torch.set_default_dtype(default)
    engine = Engine(Checkpoint(model.eval(), processor, STATISTICS, pipeline, '7b'))
    engine.set_adapter('base')
    return engine


def measure(engine: Engine, rounds: int) -> dict[str, object]:
    """Time steps of one and of eight observations; milliseconds."""
    side = engine.model.spec.image_size
    pixels = torch.randn(BATCH, 6, side, side)
    ids, _ = engine.processor.prompts([INSTRUCTION])
    decoder = ActionDecoder(engine.model.language_model, fuse=False)
    ways = {}
    for count in (1, BATCH):
        ways[f'generate, {count}'] = lambda n=count: generate(engine, pixels[:n], ids)
        ways[f'engine, {count}'] = lambda n=count: engine.predict_ids(
            pixels[:n], ids.expand(n, -1)
        )
        ways[f'prefill, {count}'] = lambda n=count: prefill(engine, decoder, pixels[:n], ids)
    times = in_turns(ways, rounds)
    llama = engine.model.language_model
    read = sum(p.numel() * p.element_size() for p in llama.model.layers.parameters())
    read += llama.lm_head.weight.numel() * llama.lm_head.weight.element_size()
    bandwidth = copy_bandwidth(engine.model.device)
    bound_ms = 1000 * (ACTION_DIMS - 1) * read / bandwidth
    decoding_ms = times['engine, 1'] - times['prefill, 1']
    return {
        **{f'{name} (ms)': value for name, value in times.items()},
        'speed-up over generate, 1': times['generate, 1'] / times['engine, 1'],
        f'speed-up over generate, {BATCH}': times[f'generate, {BATCH}']
        / times[f'engine, {BATCH}'],
        'weights read a token (GB)': read / 1e9,
        'bandwidth of a copy (GB/s)': bandwidth / 1e9,
        'decoding six tokens (ms)': decoding_ms,
        'bound by bandwidth (ms)': bound_ms,
        'share of the bandwidth': bound_ms / decoding_ms,
        'device': str(engine.model.device),
    }


@torch.no_grad()
def prefill(
    engine: Engine, decoder: ActionDecoder, pixels: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Run towers, projector and prompt, without a further token."""
    device = engine.model.device
    ids = ids.expand(len(pixels), -1).to(device)
    embeds, _ = engine.model.embed(pixels.to(device), ids)
    return decoder.prefill(embeds)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, reading and writing counted."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float('inf')
    for _ in range(5):
        if device.type == 'cuda':
            torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * COPY_BYTES / best


if __name__ == '__main__':
    main()
