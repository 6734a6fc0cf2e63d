"""A small, fresh policy for tests: grape-tiny's layout at a fraction of its size."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from grape_policy_node.engine import Observation
from grape_policy_node.openvla.checkpoint import Checkpoint
from grape_policy_node.openvla.tiny import build_tiny, load_tiny_config

GRAPE_TINY = Path(__file__).parents[1] / 'config' / 'policy' / 'grape_tiny.yaml'
STATISTICS = {
    'libero_test': {
        'action': {
            'q01': [-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, 0.0],
            'q99': [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 1.0],
            'mask': [True] * 6 + [False],
        }
    }
}
MILK = 'Pick up the milk and place it in the basket'
DRAWER = 'open the top drawer and put the bowl inside it'


def tiny_checkpoint(seed: int = 0, statistics: dict | None = None) -> Checkpoint:
    """Two blocks a tower, two layers, 28 px: builds and runs in milliseconds."""
    config = replace(
        load_tiny_config(GRAPE_TINY),
        image_size=28,
        towers=[
            {
                'embed_dim': 32,
                'depth': 3,
                'num_heads': 2,
                'reg_tokens': 4,
                'no_embed_class': True,
                'init_values': 0.1,
            },
            {'embed_dim': 24, 'depth': 3, 'num_heads': 2, 'class_token': False, 'mlp_ratio': 3.7},
        ],
        text_config={
            'hidden_size': 48,
            'intermediate_size': 96,
            'num_hidden_layers': 3,
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
        },
    )
    checkpoint = build_tiny(config, [MILK, DRAWER], statistics or STATISTICS, seed)
    # A fresh model's logits are nearly flat; make its choices distinct.
    with torch.no_grad():
        checkpoint.model.language_model.lm_head.weight.mul_(20.0)
    return checkpoint


def observation(seed: int, instruction: str = MILK, size: int = 64) -> Observation:
    """Make a random picture with an instruction."""
    return Observation(picture(seed, size), instruction)


def picture(seed: int, size: int = 64) -> np.ndarray:
    """(size, size, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
