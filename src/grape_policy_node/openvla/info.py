"""What a checkpoint or adapter folder is, from its small files and the headers of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from grape_policy_node.adapters import WEIGHTS, adapter_id
from grape_policy_node.openvla.checkpoint import (
    build_processor,
    check_weights,
    folder_sha256,
    parse_config,
)
from grape_policy_node.openvla.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    PREPROCESSOR,
    SENTENCEPIECE,
    STATISTICS,
    TOKENIZER,
    CheckpointError,
    read_config,
    read_json,
    read_statistics,
    weight_files,
)
from grape_policy_node.openvla.golden import golden_sizes
from grape_policy_node.openvla.hub import resolve_folder
from grape_policy_node.openvla.layout import check_architecture
from grape_policy_node.openvla.model import OpenVLA, OpenVLAConfig
from grape_policy_node.openvla.processor import PROMPTS
from grape_policy_node.openvla.tokenizer import read_tokenizer
from grape_policy_node.openvla.tower_sizes import tower_sizes
from grape_policy_node.openvla.weights import StoredTensor, read_entries, read_header, read_headers

HASH_LIMIT_BYTES = 512 * 1024**2  # what is hashed without being asked
PARTS = {
    'vision tower 1': 'vision_backbone.featurizer.',
    'vision tower 2': 'vision_backbone.fused_featurizer.',
    'projector': 'projector.',
    'language model': 'language_model.model.layers.',
    'embedding and head': ('language_model.model.embed', 'language_model.lm_head'),
}
ACTION_NAMES = ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'gripper')

Rows = list[tuple[str, str]]


def describe_folder(folder: str | Path, hash_weights: bool | None = None) -> Rows:
    """Return names and values that say what a folder is, for people.

    Args:
        folder: a policy's or an adapter's; or a policy's hub id.
        hash_weights: compute the policy's sha256, which reads all weights; None: where they are
            small.

    Raises:
        CheckpointError: it is neither, or its weight files are broken.
    """
    folder = resolve_folder(folder)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).exists():
        return _describe_adapter(folder)
    raw = read_config(folder)
    check_architecture(raw, str(folder), folder)
    stored = read_headers(folder)
    statistics = read_statistics(folder, raw)
    rows = [('policy', str(folder)), *_weights(folder, stored)]
    try:
        spec = parse_config(
            raw, str(folder), tower_sizes(raw, stored, str(folder), golden_sizes(folder))
        )
        rows += _architecture(raw, spec) + _inputs(folder, spec, stored)
    except CheckpointError as error:
        rows.append(('can be loaded', f'no: {error}'))
    rows += _statistics(folder, statistics)
    rows.append(('sha256', _sha256(folder, stored, hash_weights)))
    return rows


def _weights(folder: Path, stored: Mapping[str, StoredTensor]) -> Rows:
    counts = {
        part: sum(tensor.count for name, tensor in stored.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    total = sum(tensor.count for tensor in stored.values())
    parts = ', '.join(f'{part} {_millions(n)}' for part, n in counts.items() if n)
    dtypes = Counter(_name(tensor.dtype) for tensor in stored.values())
    files = weight_files(folder)
    size = sum(path.stat().st_size for path in files)
    shards = 'one file' if len(files) == 1 else f'{len(files)} shards'
    return [
        ('parameters', f'{_millions(total)}: {parts}'),
        ('weights', f'{", ".join(sorted(dtypes))}, {size / 1e6:.1f} MB in {shards}'),
    ]


def _architecture(raw: Mapping[str, object], spec: OpenVLAConfig) -> Rows:
    rows = []
    for name, tower in zip(raw['timm_model_ids'], spec.towers, strict=True):
        tokens = f'{"class token, " if tower.class_token else ""}{tower.reg_tokens} registers'
        rows.append(
            (
                'vision tower',
                f'{name}: width {tower.embed_dim}, {tower.depth} blocks, {tower.num_heads} heads, '
                f'patch {tower.patch} px, {tokens if tower.prefix_tokens else "patches only"}'
                f'{", LayerScale" if tower.init_values is not None else ""}',
            )
        )
    llama, bins = spec.llama, spec.action_bins
    rows.append(
        (
            'language model',
            f'Llama, width {llama.hidden_size}, {llama.num_hidden_layers} layers, '
            f'{llama.num_attention_heads} heads ({llama.num_key_value_heads} key/value), MLP '
            f'{llama.intermediate_size}',
        )
    )
    rows.append(
        (
            'vocabulary',
            f'{spec.vocab_size} words and {spec.pad_to_multiple_of} rows of padding; action ids '
            f'{spec.vocab_size - bins}..{spec.vocab_size - 1}, empty token {spec.empty_token_id}',
        )
    )
    rows.append(('prompt', f'{spec.prompt_template}: {PROMPTS[spec.prompt_template]!r}'))
    return rows


def _inputs(folder: Path, spec: OpenVLAConfig, stored: Mapping[str, StoredTensor]) -> Rows:
    """The image pipeline, the tokenizer, and whether all fits together."""
    preprocessor = read_json(folder / PREPROCESSOR)
    size = spec.image_size
    rows = [
        (
            'image',
            f'{preprocessor.get("image_resize_strategy")} to {size} x {size} px, bicubic, '
            f'{spec.channels} channels, {spec.towers[0].patches} patches; means '
            f'{preprocessor.get("means")}, stds {preprocessor.get("stds")}',
        )
    ]
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        rows.append(('tokenizer', f'none (no {TOKENIZER}, no {SENTENCEPIECE})'))
    else:
        source = TOKENIZER if (folder / TOKENIZER).exists() else SENTENCEPIECE
        rows.append(('tokenizer', f'{source}, {tokenizer.get_vocab_size()} words'))
    build_processor(spec, preprocessor, tokenizer, str(folder))
    with torch.device('meta'):
        check_weights(OpenVLA(spec), stored, str(folder))
    missing = '' if tokenizer else ', but no instruction can be encoded: no tokenizer'
    return [*rows, ('can be loaded', f'yes{missing}')]


def _statistics(folder: Path, statistics: Mapping[str, object]) -> Rows:
    source = STATISTICS if (folder / STATISTICS).exists() else f'{CONFIG} (norm_stats)'
    if not statistics:
        return [('statistics', f'none in {source}: the policy cannot act')]
    rows = [('statistics', f'{len(statistics)} in {source}: {", ".join(sorted(statistics))}')]
    for key, entry in sorted(statistics.items()):
        action = entry.get('action') if isinstance(entry, Mapping) else None
        rows.append((f'  {key}', _range(action) if action else "no entry 'action'"))
    return rows


def _range(action: Mapping[str, list]) -> str:
    """Return 1st to 99th percentile of each dimension, or 'as it is' where the mask is off."""
    low, high = action.get('q01'), action.get('q99')
    if not low or not high or len(low) != len(high):
        return f'no q01 and q99; found {sorted(action)}'
    mask = action.get('mask') or [True] * len(low)
    names = ACTION_NAMES if len(low) == len(ACTION_NAMES) else [str(i) for i in range(len(low))]
    return ', '.join(
        f'{name} {a:.3g}..{b:.3g}' if scaled else f'{name} as it is'
        for name, a, b, scaled in zip(names, low, high, mask, strict=True)
    )


def _sha256(folder: Path, stored: Mapping[str, StoredTensor], wanted: bool | None) -> str:
    size = sum(tensor.count * tensor.dtype.itemsize for tensor in stored.values())
    if wanted or (wanted is None and size <= HASH_LIMIT_BYTES):
        return folder_sha256(folder)
    return 'not computed: it reads all weights (--sha256)'


def _describe_adapter(folder: Path) -> Rows:
    config = read_json(folder / ADAPTER_CONFIG)
    name = adapter_id(folder)
    entries, _ = read_entries(folder / WEIGHTS)
    lora = {key for key in entries if '.lora_' in key}
    tensors = {tensor.name: tensor for tensor in read_header(folder / WEIGHTS)}
    dtypes = sorted({_name(tensors[key].dtype) for key in lora})
    base = sorted(key for key in entries if key not in lora)
    count = sum(tensors[key].count for key in lora)
    statistics = read_json(folder / STATISTICS) if (folder / STATISTICS).exists() else None
    rows = [
        ('adapter', str(folder)),
        ('id', name),
        ('base', str(config.get('base_model_name_or_path') or 'not said')),
        (
            'LoRA',
            f'{config.get("peft_type")}, rank {config.get("r")}, alpha '
            f'{config.get("lora_alpha")}, dropout {config.get("lora_dropout")}',
        ),
        ('layers', _targets(config.get('target_modules'))),
        ('parameters', f'{_millions(count)} in {len(lora)} tensors, {", ".join(dtypes)}'),
    ]
    if base:
        rows.append(('base weights beside', ', '.join(base)))
    if statistics is None:
        rows.append(('statistics', f"no {STATISTICS}: the base policy's count"))
        return rows
    return rows + _statistics(folder, statistics)


def _targets(modules: object) -> str:
    return ', '.join(sorted(modules)) if isinstance(modules, list) else str(modules)


def _millions(count: int) -> str:
    return f'{count / 1e9:.2f} B' if count >= 1e9 else f'{count / 1e6:.2f} M'


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
