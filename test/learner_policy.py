"""A policy of the real architecture at 28 px and made-up trials of it, for the tests."""

from pathlib import Path

import numpy as np
import torch

from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import save_checkpoint
from grape_policy_node.openvla.tiny import TinyConfig, build_tiny
from grape_trainer.dataset import TokenTrial
from grape_trainer.preference_run import policy_log_probs

INSTRUCTIONS = ('pick up the milk', 'put the red cup on the plate')
ARCHITECTURE = {
    'name': 'mini',
    'image_size': 28,
    'towers': [
        {'embed_dim': 16, 'depth': 2, 'num_heads': 2, 'patch': 14, 'class_token': True,
         'reg_tokens': 4, 'no_embed_class': True, 'init_values': 0.1},
        {'embed_dim': 16, 'depth': 2, 'num_heads': 2, 'patch': 14, 'class_token': False,
         'mlp_ratio': 2.0},
    ],
    'text_config': {
        'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2,
        'num_attention_heads': 2, 'num_key_value_heads': 2, 'max_position_embeddings': 256,
    },
    'text_tokens': 320,
    'pad_to_multiple_of': 64,
    'means': [[0.48, 0.45, 0.4], [0.5, 0.5, 0.5]],
    'stds': [[0.22, 0.22, 0.22], [0.5, 0.5, 0.5]],
}  # fmt: skip
STATISTICS = {
    'grape': {'action': {'q01': [-1.0] * 7, 'q99': [1.0] * 7, 'mask': [True] * 6 + [False]}}
}


def write_policy(folder: Path, seed: int = 0) -> Path:
    """Save a fresh policy."""
    checkpoint = build_tiny(TinyConfig(**ARCHITECTURE), INSTRUCTIONS, STATISTICS, seed)
    save_checkpoint(checkpoint, folder)
    return folder


def fresh_engine(seed: int = 0) -> Engine:
    """Return an engine on a fresh policy."""
    checkpoint = build_tiny(TinyConfig(**ARCHITECTURE), INSTRUCTIONS, STATISTICS, seed)
    return Engine(checkpoint)


def made_up_trial(engine: Engine, name: str, steps: int, seed: int) -> TokenTrial:
    """Return random frames and tokens, with the engine's own log-probabilities recorded."""
    generator = np.random.default_rng(seed)
    size = engine.processor.pixels.image_size
    tokens = engine.action_tokenizer
    ids = generator.integers(tokens.first_id, tokens.vocab_size, (steps, 7))
    trial = TokenTrial(
        episode_id=name,
        path=Path(name),
        task='libero_object/0',
        init_state=0,
        instruction=INSTRUCTIONS[seed % 2],
        adapter_id=engine.adapter_id,
        images=generator.integers(0, 256, (steps, size, size, 3), dtype=np.uint8),
        token_ids=torch.from_numpy(ids),
        log_probs=torch.zeros(steps, 7),
    )
    with torch.no_grad():
        trial.log_probs.copy_(policy_log_probs(engine)(trial, 0, steps))
    return trial
