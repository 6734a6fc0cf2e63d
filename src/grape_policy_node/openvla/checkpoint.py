"""Checkpoint folders in the published layout, read into a model (saving.py writes them).

``config.json``, ``model.safetensors`` or shards with an index, ``preprocessor_config.json``,
tokenizer files, and for a fine-tuned model ``dataset_statistics.json``, which replaces the
``norm_stats`` of the config. Three keys are ours: ``vision_configs`` (sizes of the towers, for
timm ids that are not the published ones), ``empty_token_id`` (for vocabularies that are not
Llama-2's) and ``prompt_template`` (of the prompt, where the language model's name does not tell).

Every weight must find its place: a missing or left-over key is an error that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from grape_policy_node.action_tokens import NormStats
from grape_policy_node.openvla.folder import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    SINGLE,
    STATISTICS,
    TOKENIZER,
    CheckpointError,
    read_config,
    read_json,
    read_statistics,
    weight_files,
)
from grape_policy_node.openvla.hub import resolve_folder
from grape_policy_node.openvla.layout import check_architecture, parse_config
from grape_policy_node.openvla.model import OpenVLA, OpenVLAConfig
from grape_policy_node.openvla.processor import PixelTransform, Processor
from grape_policy_node.openvla.saving import HEAD, save_checkpoint
from grape_policy_node.openvla.tokenizer import check_tokenizer, read_tokenizer
from grape_policy_node.openvla.tower_sizes import tower_sizes
from grape_policy_node.openvla.weights import StoredTensor, load_weights, read_headers

EMBEDDING = 'language_model.model.embed_tokens.weight'

__all__ = [
    'Checkpoint',
    'CheckpointError',
    'build_processor',
    'check_weights',
    'folder_sha256',
    'load_checkpoint',
    'parse_config',
    'read_json',
    'save_checkpoint',
    'with_adapter_statistics',
]


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that is needed to run it and to write it again.

    Attributes:
        model: in eval mode.
        processor: pixels and prompt.
        statistics: by ``unnorm_key``, as in ``dataset_statistics.json``.
        preprocessor: content of ``preprocessor_config.json``.
        folder: where it was read from, or a name for a fresh one.
        statistics_from: the adapter folder whose statistics these are; empty: the checkpoint's.
    """

    model: OpenVLA
    processor: Processor
    statistics: dict[str, dict]
    preprocessor: dict[str, object]
    folder: str
    statistics_from: str = ''

    def norm_stats(self, unnorm_key: str | None) -> tuple[str, NormStats]:
        """Return the key and its statistics; None is allowed where there is exactly one.

        Raises:
            CheckpointError: unknown or ambiguous key; the message lists the keys.
        """
        folder = self.statistics_from or self.folder
        keys = sorted(self.statistics)
        if unnorm_key is None and len(keys) == 1:
            unnorm_key = keys[0]
        if unnorm_key not in self.statistics:
            asked = (
                'no unnorm_key was given' if unnorm_key is None else f"unnorm_key '{unnorm_key}'"
            )
            raise CheckpointError(
                f'{asked}; the statistics of {folder} have: {", ".join(keys) or "no keys"}. '
                'Pass unnorm_key as one of them.'
            )
        entry = self.statistics[unnorm_key]
        where = f"{folder}: statistics '{unnorm_key}'"
        if not isinstance(entry, Mapping) or 'action' not in entry:
            raise CheckpointError(f"{where}: found {sorted(entry)}; expected an entry 'action'")
        try:
            return unnorm_key, NormStats.from_dict(entry['action'], where)
        except ValueError as error:
            raise CheckpointError(str(error)) from error


def load_checkpoint(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    vision_configs: Sequence[Mapping[str, object]] | None = None,
    rotary_dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: in the published layout, or a Hugging Face hub id.
        dtype: of the weights in memory, whatever the file's. On the CPU, weights of the file's
            own dtype are mapped; the peak is the weights either way.
        device: where they go.
        vision_configs: sizes of the towers, for a folder whose config.json lacks them.
        rotary_dtype: precision of the rotary frequencies. They are in no file. bfloat16 gives
            what the reference computes after ``model.to(torch.bfloat16)``, which rounds them.

    Raises:
        CheckpointError: with what was found, what was expected and what to do.
    """
    folder = resolve_folder(folder)
    where = str(folder)
    raw = read_config(folder)
    check_architecture(raw, where, folder)
    stored = read_headers(folder)
    spec = parse_config(raw, where, tower_sizes(raw, stored, where, vision_configs))
    preprocessor = read_json(folder / PREPROCESSOR)
    processor = build_processor(spec, preprocessor, read_tokenizer(folder), where)
    with torch.device('meta'):
        model = OpenVLA(spec)
    check_weights(model, stored, where)
    _fill(model, load_weights(stored, dtype, device))
    # A buffer that is in no file; on the meta device it has no values.
    rotary = LlamaRotaryEmbedding(model.language_model.config)
    rotary.inv_freq = rotary.inv_freq.to(rotary_dtype).float()
    rotary = rotary.to(device)
    model.language_model.model.rotary_emb = rotary
    return Checkpoint(model.eval(), processor, read_statistics(folder, raw), preprocessor, where)


def with_adapter_statistics(checkpoint: Checkpoint, adapter: str | Path) -> Checkpoint:
    """Un-normalise by what an adapter was trained with, where its folder says it.

    A fine-tuned adapter speaks the units of its own data: ``dataset_statistics.json`` beside
    ``adapter_config.json`` replaces the base's statistics. An adapter without the file was
    trained on the base's, as ours are.
    """
    path = Path(adapter) / STATISTICS
    if not path.is_file():
        return checkpoint
    return replace(checkpoint, statistics=read_json(path), statistics_from=str(adapter))


def build_processor(
    spec: OpenVLAConfig,
    preprocessor: Mapping[str, object],
    tokenizer: Tokenizer | None,
    where: str,
) -> Processor:
    """Join the image pipeline and the tokenizer; their sizes must be the model's.

    Raises:
        CheckpointError: an unknown image pipeline, or sizes or words that are another model's.
    """
    try:
        pixels = PixelTransform.from_dict(preprocessor, f'{where}: preprocessor_config.json')
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if len(pixels.means) != len(spec.towers):
        raise CheckpointError(
            f'{where}: preprocessor_config.json normalises for {len(pixels.means)} vision '
            f'towers, config.json names {len(spec.towers)}; they must agree'
        )
    if pixels.image_size != spec.image_size:
        raise CheckpointError(
            f'{where}: preprocessor_config.json makes {pixels.image_size} px images, '
            f'config.json says {spec.image_size} px; they must agree'
        )
    if tokenizer is not None:
        check_tokenizer(tokenizer, spec, where)
    llama = spec.llama
    pad = llama.pad_token_id if llama.pad_token_id is not None else spec.vocab_size
    return Processor(
        pixels, tokenizer, llama.bos_token_id, pad, spec.empty_token_id, where,
        spec.prompt_template,
    )  # fmt: skip


def check_weights(model: OpenVLA, stored: Mapping[str, StoredTensor], where: str) -> None:
    """Compare names and shapes of stored weights with the model's, before any is read.

    Raises:
        CheckpointError: names what is missing, left over or of another shape.
    """
    wanted = model.state_dict()
    if model.language_model.config.tie_word_embeddings and HEAD not in stored:
        del wanted[HEAD]
    missing = sorted(set(wanted) - set(stored))
    unexpected = sorted(set(stored) - set(wanted))
    if missing or unexpected:
        raise CheckpointError(
            f'{where}: the weights do not fit the config: {len(missing)} missing '
            f'{missing[:6]}, {len(unexpected)} unexpected {unexpected[:6]}. '
            'Check the sizes in config.json (vision_configs, text_config).'
        )
    shapes = [
        f'{name}: found {stored[name].shape}, expected {tuple(wanted[name].shape)}'
        for name in wanted
        if stored[name].shape != tuple(wanted[name].shape)
    ]
    if shapes:
        raise CheckpointError(
            f'{where}: {len(shapes)} weights have another shape than config.json says: '
            + '; '.join(shapes[:4])
        )


def folder_sha256(folder: str | Path) -> str:
    """Hash of what decides a policy's output: weights, configs, statistics and tokenizer."""
    folder = resolve_folder(folder)
    files = [folder / name for name in (CONFIG, PREPROCESSOR, STATISTICS, TOKENIZER)]
    files += weight_files(folder) if (folder / INDEX).exists() else [folder / SINGLE]
    digest = hashlib.sha256()
    for path in files:
        if path.exists():
            digest.update(path.name.encode())
            with path.open('rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


def _fill(model: OpenVLA, state: dict[str, torch.Tensor]) -> None:
    """Assign the weights, whose names and shapes have been checked."""
    if HEAD not in state:
        state[HEAD] = state[EMBEDDING]
    model.load_state_dict(state, strict=True, assign=True)
    if state[HEAD] is state[EMBEDDING]:
        model.language_model.lm_head.weight = model.language_model.get_input_embeddings().weight
    # Weights assigned from a file must be trainable like fresh ones.
    model.requires_grad_(True)
