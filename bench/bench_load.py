"""Loading a checkpoint: time, and the peak of memory against the weights.

    python bench/bench_load.py                       # 200, 600 and 1500 MB
    python bench/bench_load.py --mb 100 --out x.json

Each row is a random checkpoint in the published layout (three shards) loaded by a process of its
own. `load` is load_checkpoint alone; `use` reads every weight once, because weights of the file's
own dtype are mapped and cost nothing before they are used. Peaks are VmHWM less the memory that
the process had before, as a fraction of the weights in memory; before, it has loaded a checkpoint
of 1 MB, so that the code's own pages do not count. The files are in the page cache, so the times
are those of a second start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from grape_policy_node.openvla.checkpoint import load_checkpoint, parse_config
from grape_policy_node.openvla.model import OpenVLA

CASES = ['float32:float32', 'bfloat16:bfloat16', 'bfloat16:float32']  # file:memory
SHARDS = 3
TOWER = {'embed_dim': 256, 'depth': 3, 'num_heads': 4}
TEXT = {
    'model_type': 'llama',
    'hidden_size': 1024,
    'intermediate_size': 2752,
    'num_attention_heads': 16,
    'vocab_size': 8192 + 64,
}
WARM_TOWER = {**TOWER, 'embed_dim': 32}
WARM_TEXT = {**TEXT, 'hidden_size': 64, 'intermediate_size': 64, 'vocab_size': 512}
LAYER_PARAMETERS = 4 * 1024**2 + 3 * 1024 * 2752
FIXED_PARAMETERS = 2 * 1024 * TEXT['vocab_size'] + 9_000_000  # words; towers and projector


def write_checkpoint(folder: Path, megabytes: int, dtype: str) -> None:
    """Write random weights of about a size in a dtype; 0: the smallest."""
    tower, text = (TOWER, TEXT) if megabytes else (WARM_TOWER, WARM_TEXT)
    kind = getattr(torch, dtype)
    parameters = megabytes * 1e6 / kind.itemsize - FIXED_PARAMETERS
    config = {
        'model_type': 'openvla',
        'timm_model_ids': ['bench_dinov2', 'bench_siglip'],
        'image_sizes': [224, 224],
        'vision_configs': [{**tower, 'init_values': 1e-5}, {**tower, 'class_token': False}],
        'text_config': {
            **text,
            'num_hidden_layers': max(1, round(parameters / LAYER_PARAMETERS)),
        },
        'norm_stats': {'bench': {'action': {'q01': [-1.0] * 7, 'q99': [1.0] * 7}}},
    }
    spec = parse_config(config, 'bench')
    config['vision_configs'] = [asdict(tower) for tower in spec.towers]
    with torch.device('meta'):
        shapes = {name: weight.shape for name, weight in OpenVLA(spec).state_dict().items()}
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    names = list(shapes)
    weight_map = {}
    for number in range(SHARDS):
        part = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        file = f'model-{number + 1:05d}-of-{SHARDS:05d}.safetensors'
        state = {
            n: torch.empty(shapes[n]).uniform_(-0.05, 0.05, generator=generator) for n in part
        }
        save_file({n: weight.to(kind) for n, weight in state.items()}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    preprocessor = {
        'image_resize_strategy': 'resize-naive',
        'input_sizes': [[3, 224, 224]] * 2,
        'means': [[0.5] * 3] * 2,
        'stds': [[0.5] * 3] * 2,
    }
    (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor))


def measure(folder: Path, megabytes: int, stored: str, dtype: str) -> dict[str, float]:
    """Write a checkpoint and load it in a process of its own."""
    write_checkpoint(folder / 'policy', megabytes, stored)
    write_checkpoint(folder / 'warm', 0, stored)
    command = [sys.executable, __file__, '--child', str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(folder: str, dtype: str) -> None:
    """Load, use, and write one line of JSON."""
    torch.set_num_threads(1)
    _use(load_checkpoint(Path(folder) / 'warm', dtype=getattr(torch, dtype)).model)
    # 5: begin VmHWM anew, so that what the imports needed for a moment does not count.
    Path('/proc/self/clear_refs').write_text('5')
    before = _memory_bytes('VmRSS')
    began = time.perf_counter()
    model = load_checkpoint(Path(folder) / 'policy', dtype=getattr(torch, dtype)).model
    seconds = time.perf_counter() - began
    weights = sum(weight.nbytes for weight in model.parameters())
    loaded = _memory_bytes('VmHWM') - before
    _use(model)
    result = {
        'weights_mb': weights / 1e6,
        'load_s': seconds,
        'use_s': time.perf_counter() - began - seconds,
        'peak_load': loaded / weights,
        'peak_use': (_memory_bytes('VmHWM') - before) / weights,
    }
    sys.stdout.write(json.dumps(result) + '\n')


def _use(model: OpenVLA) -> None:
    """Touch every page of the weights."""
    for weight in model.parameters():
        weight.detach().view(-1)[:: 4096 // weight.element_size()].float().sum()


def _memory_bytes(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {field}; expected Linux')


def main() -> None:
    """Measure each size and conversion, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--mb', type=int, nargs='+', default=[200, 600, 1500], help='file sizes')
    parser.add_argument('--case', nargs='+', default=CASES, metavar='FILE:MEMORY', help='dtypes')
    parser.add_argument('--out', type=Path, help='JSON')
    parser.add_argument('--child', nargs=2, metavar=('FOLDER', 'DTYPE'), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    rows = []
    sys.stdout.write('file            in memory          load    use   peak load  peak use\n')
    for megabytes in options.mb:
        for stored, dtype in (case.split(':') for case in options.case):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder), megabytes, stored, dtype)
            row = {'file': stored, 'memory': dtype, **found}
            rows.append(row)
            sys.stdout.write(
                f'{megabytes:5d} MB {stored:9s} {row["weights_mb"]:6.0f} MB {dtype:9s} '
                f'{row["load_s"]:6.2f} s {row["use_s"]:5.2f} s '
                f'{row["peak_load"]:8.2f} x {row["peak_use"]:7.2f} x\n'
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
