"""Checkpoint folders in the published layout, read and written.

``config.json``, ``model.safetensors`` or shards with an index, ``preprocessor_config.json``,
tokenizer files, and for a fine-tuned model ``dataset_statistics.json``, which replaces the
``norm_stats`` of the config. Two keys are ours: ``vision_configs`` (sizes of the towers, for timm
ids that are not the published ones) and ``empty_token_id`` (for vocabularies that are not
Llama-2's).

Every weight must find its place: a missing or left-over key is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from grape_policy_node.action_tokens import NormStats
from grape_policy_node.openvla.model import EMPTY_TOKEN_ID, OpenVLA, OpenVLAConfig
from grape_policy_node.openvla.processor import PixelTransform, Processor
from grape_policy_node.openvla.vision import PUBLISHED_TOWERS, VisionConfig

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
STATISTICS = 'dataset_statistics.json'
SHARD_BYTES = 5 * 1024**3

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A folder that does not hold a usable OpenVLA checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that is needed to run it and to write it again.

    Attributes:
        model: in eval mode.
        processor: pixels and prompt.
        statistics: by ``unnorm_key``, as in ``dataset_statistics.json``.
        preprocessor: content of ``preprocessor_config.json``.
        folder: where it was read from, or a name for a fresh one.
    """

    model: OpenVLA
    processor: Processor
    statistics: dict[str, dict]
    preprocessor: dict[str, object]
    folder: str

    def norm_stats(self, unnorm_key: str | None) -> tuple[str, NormStats]:
        """Return the key and its statistics; None is allowed where there is exactly one.

        Raises:
            CheckpointError: unknown or ambiguous key; the message lists the keys.
        """
        keys = sorted(self.statistics)
        if unnorm_key is None and len(keys) == 1:
            unnorm_key = keys[0]
        if unnorm_key not in self.statistics:
            asked = (
                'no unnorm_key was given' if unnorm_key is None else f"unnorm_key '{unnorm_key}'"
            )
            raise CheckpointError(
                f'{asked}; the statistics of {self.folder} have: {", ".join(keys) or "no keys"}. '
                'Pass unnorm_key as one of them.'
            )
        entry = self.statistics[unnorm_key]
        where = f"{self.folder}: statistics '{unnorm_key}'"
        if 'action' not in entry:
            raise CheckpointError(f"{where}: found {sorted(entry)}; expected an entry 'action'")
        return unnorm_key, NormStats.from_dict(entry['action'], where)


def read_json(path: Path) -> dict:
    """Read a JSON object; a missing or broken file is a CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise CheckpointError(
            f'{path} does not exist; expected an OpenVLA checkpoint folder with config.json, '
            f'{SINGLE} (or shards with {INDEX}) and preprocessor_config.json'
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f'{path} is not readable JSON: {error}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}; expected an object')
    return content


def load_checkpoint(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    vision_configs: Sequence[Mapping[str, object]] | None = None,
    rotary_dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: in the published layout.
        dtype: of the weights in memory, whatever the file's.
        device: where they go.
        vision_configs: sizes of the towers, for a folder whose config.json lacks them.
        rotary_dtype: precision of the rotary frequencies. They are in no file. bfloat16 gives
            what the reference computes after ``model.to(torch.bfloat16)``, which rounds them.

    Raises:
        CheckpointError: with what was found, what was expected and what to do.
    """
    folder = Path(folder)
    spec = parse_config(read_json(folder / 'config.json'), str(folder), vision_configs)
    preprocessor = read_json(folder / 'preprocessor_config.json')
    processor = build_processor(spec, preprocessor, _read_tokenizer(folder), str(folder))
    statistics = spec.raw.get('norm_stats') or {}
    if (folder / STATISTICS).exists():
        statistics = read_json(folder / STATISTICS)
    with torch.device('meta'):
        model = OpenVLA(spec)
    _fill(model, _read_weights(folder, dtype, device), str(folder))
    # A buffer that is in no file; on the meta device it has no values.
    rotary = LlamaRotaryEmbedding(model.language_model.config)
    rotary.inv_freq = rotary.inv_freq.to(rotary_dtype).float()
    rotary = rotary.to(device)
    model.language_model.model.rotary_emb = rotary
    return Checkpoint(model.eval(), processor, statistics, preprocessor, str(folder))


def parse_config(
    raw: dict[str, object],
    where: str,
    vision_configs: Sequence[Mapping[str, object]] | None = None,
) -> OpenVLAConfig:
    """Read the content of ``config.json``."""
    if raw.get('model_type') != 'openvla':
        raise CheckpointError(
            f"{where}: config.json has model_type '{raw.get('model_type')}'; expected 'openvla'"
        )
    ids = raw.get('timm_model_ids', [])
    sizes = raw.get('image_sizes', [])
    if len(ids) != 2 or len(sizes) != 2:
        raise CheckpointError(
            f'{where}: config.json names the vision towers {ids} with image sizes {sizes}; '
            'expected two (DINOv2 and SigLIP, the fused backbone)'
        )
    vision_configs = vision_configs or raw.get('vision_configs')
    if vision_configs is None:
        unknown = [name for name in ids if name not in PUBLISHED_TOWERS]
        if unknown:
            raise CheckpointError(
                f'{where}: the sizes of vision towers {unknown} are not known; known are '
                f"{sorted(PUBLISHED_TOWERS)}. Add a list 'vision_configs' with embed_dim, depth, "
                'num_heads ... of the two towers to config.json.'
            )
        vision_configs = [PUBLISHED_TOWERS[name] for name in ids]
    if len(vision_configs) != 2:
        raise CheckpointError(
            f'{where}: vision_configs has {len(vision_configs)} towers; expected 2'
        )
    try:
        towers = tuple(
            VisionConfig.from_dict(tower, int(size))
            for tower, size in zip(vision_configs, sizes, strict=True)
        )
        return OpenVLAConfig(
            towers=towers,
            text=dict(raw.get('text_config', {})),
            pad_to_multiple_of=int(raw.get('pad_to_multiple_of', 64)),
            action_bins=int(raw.get('n_action_bins', 256)),
            empty_token_id=int(raw.get('empty_token_id', EMPTY_TOKEN_ID)),
            raw=raw,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{where}: config.json: {error}') from error


def build_processor(
    spec: OpenVLAConfig,
    preprocessor: Mapping[str, object],
    tokenizer: Tokenizer | None,
    where: str,
) -> Processor:
    """Join the image pipeline and the tokenizer; their sizes must be the model's."""
    try:
        pixels = PixelTransform.from_dict(preprocessor, f'{where}: preprocessor_config.json')
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if pixels.image_size != spec.image_size:
        raise CheckpointError(
            f'{where}: preprocessor_config.json makes {pixels.image_size} px images, '
            f'config.json says {spec.image_size} px; they must agree'
        )
    llama = spec.llama
    pad = llama.pad_token_id if llama.pad_token_id is not None else spec.vocab_size
    return Processor(pixels, tokenizer, llama.bos_token_id, pad, spec.empty_token_id, where)


def save_checkpoint(
    checkpoint: Checkpoint, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write a folder that :func:`load_checkpoint` reads; an existing one is replaced at the end.

    Raises:
        CheckpointError: the model has adapters attached (save those on their own).
    """
    model = checkpoint.model
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
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
        _write_json(partial / 'config.json', config)
        _write_json(partial / 'preprocessor_config.json', checkpoint.preprocessor)
        _write_json(partial / STATISTICS, checkpoint.statistics)
        if checkpoint.processor.tokenizer is not None:
            checkpoint.processor.tokenizer.save(str(partial / 'tokenizer.json'))
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def folder_sha256(folder: str | Path) -> str:
    """Hash of what decides a policy's output: weights, configs, statistics and tokenizer."""
    folder = Path(folder)
    names = ['config.json', 'preprocessor_config.json', STATISTICS, 'tokenizer.json']
    files = [folder / name for name in names] + sorted(folder.glob('*.safetensors'))
    digest = hashlib.sha256()
    for path in files:
        if path.exists():
            digest.update(path.name.encode())
            with path.open('rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / 'tokenizer.json'
    if not path.exists():
        logger.warning(
            '%s has no tokenizer.json: token ids must be given, not instructions', folder
        )
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f'{path} is not a readable tokenizer: {error}') from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; the index decides where there is one."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get('weight_map', {})
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in files if not path.exists()]
        if missing or not files:
            raise CheckpointError(
                f'{folder}: {INDEX} lists {len(files)} shards, missing are {missing}; '
                'copy them beside it'
            )
        return files
    if not (folder / SINGLE).exists():
        raise CheckpointError(
            f'{folder} has neither {SINGLE} nor {INDEX}; found '
            f'{sorted(p.name for p in folder.iterdir())}'
        )
    return [folder / SINGLE]


def _read_weights(
    folder: Path, dtype: torch.dtype, device: str | torch.device
) -> dict[str, torch.Tensor]:
    state = {}
    for path in _weight_files(folder):
        try:
            with safe_open(str(path), 'pt', device=str(device)) as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    state[name] = file.get_tensor(name).to(dtype)
        except Exception as error:  # safetensors raises its own type, and OSError
            raise CheckpointError(f'{path} is not a readable safetensors file: {error}') from error
    return state


def _fill(model: OpenVLA, state: dict[str, torch.Tensor], where: str) -> None:
    """Assign every weight; names and shapes must be the model's exactly."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    if missing or unexpected:
        raise CheckpointError(
            f'{where}: the weights do not fit the config: {len(missing)} missing '
            f'{missing[:6]}, {len(unexpected)} unexpected {unexpected[:6]}. '
            'Check the sizes in config.json (vision_configs, text_config).'
        )
    shapes = [
        f'{name}: found {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}'
        for name in wanted
        if state[name].shape != wanted[name].shape
    ]
    if shapes:
        raise CheckpointError(
            f'{where}: {len(shapes)} weights have another shape than config.json says: '
            + '; '.join(shapes[:4])
        )
    model.load_state_dict(state, strict=True, assign=True)
    # Weights assigned from a file must be trainable like fresh ones.
    model.requires_grad_(True)


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
