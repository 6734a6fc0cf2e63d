"""A model -> a checkpoint folder in the published layout, which ``load_checkpoint`` reads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from grape_policy_node.openvla.folder import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    SINGLE,
    STATISTICS,
    TOKENIZER,
    CheckpointError,
)

if TYPE_CHECKING:
    from grape_policy_node.openvla.checkpoint import Checkpoint

SHARD_BYTES = 5 * 1024**3
HEAD = 'language_model.lm_head.weight'


def save_checkpoint(
    checkpoint: Checkpoint, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write a folder that :func:`load_checkpoint` reads; an existing one is replaced at the end.

    Raises:
        CheckpointError: the model has adapters attached (save those on their own).
    """
    model = checkpoint.model
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.spec.llama.tie_word_embeddings:
        del state[HEAD]
    attached = [name for name in state if 'lora_' in name]
    if attached:
        raise CheckpointError(
            f'the model has LoRA layers attached ({attached[0]} ...); save the adapter with '
            'AdapterSet.save, and load the base model afresh to save it'
        )
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        _write_weights(state, partial, shard_bytes)
        config = dict(model.spec.raw)
        config['vision_configs'] = [asdict(tower) for tower in model.spec.towers]
        config['empty_token_id'] = model.spec.empty_token_id
        config['torch_dtype'] = str(model.dtype).removeprefix('torch.')
        _write_json(partial / CONFIG, config)
        _write_json(partial / PREPROCESSOR, checkpoint.preprocessor)
        _write_json(partial / STATISTICS, checkpoint.statistics)
        if checkpoint.processor.tokenizer is not None:
            checkpoint.processor.tokenizer.save(str(partial / TOKENIZER))
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _write_weights(state: dict[str, torch.Tensor], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= size
    if len(shards) == 1:
        save_file(shards[0], str(folder / SINGLE), metadata={'format': 'pt'})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        save_file(shard, str(folder / file), metadata={'format': 'pt'})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    _write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8')
