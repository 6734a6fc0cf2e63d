"""The files of a checkpoint folder: their names, and what reads the small ones."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = 'config.json'
PREPROCESSOR = 'preprocessor_config.json'
STATISTICS = 'dataset_statistics.json'
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
TOKENIZER = 'tokenizer.json'
SENTENCEPIECE = 'tokenizer.model'
ADAPTER_CONFIG = 'adapter_config.json'


class CheckpointError(ValueError):
    """A folder that does not hold a usable OpenVLA checkpoint."""


def read_json(path: Path) -> dict:
    """Read a JSON object; a missing or broken file is a CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise CheckpointError(
            f'{path} does not exist; expected an OpenVLA checkpoint folder with {CONFIG}, '
            f'{SINGLE} (or shards with {INDEX}) and {PREPROCESSOR}'
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f'{path} is not readable JSON: {error}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}; expected an object')
    return content


def read_config(folder: Path) -> dict:
    """Read ``config.json``; an adapter's folder is told apart from a policy's."""
    adapter = folder / ADAPTER_CONFIG
    if adapter.is_file() and not (folder / CONFIG).exists():
        base = read_json(adapter).get('base_model_name_or_path')
        raise CheckpointError(
            f'{folder} holds a LoRA adapter ({ADAPTER_CONFIG}) and no {CONFIG}; expected a policy '
            f'folder. Give its base ({base or "unknown"}) as the policy and this folder as the '
            'adapter.'
        )
    return read_json(folder / CONFIG)


def read_statistics(folder: Path, config: dict) -> dict[str, dict]:
    """Return the action statistics: of ``dataset_statistics.json``, else the config's."""
    if (folder / STATISTICS).exists():
        return read_json(folder / STATISTICS)
    return config.get('norm_stats') or {}


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder; the index decides where there is one.

    Raises:
        CheckpointError: no weights, or shards that the index lists and the folder lacks.
    """
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get('weight_map')
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(
                f'{folder / INDEX} has no weight_map; expected parameter names with shard files'
            )
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in files if not path.exists()]
        if missing:
            raise CheckpointError(
                f'{folder}: {INDEX} lists {len(files)} shards, missing are {missing}; '
                'copy them beside it'
            )
        return files
    if not (folder / SINGLE).exists():
        found = sorted(path.name for path in folder.iterdir())
        pickled = [name for name in found if name.endswith(('.bin', '.pt', '.pth'))]
        what = f' {pickled} are pickled weights, which are not read.' if pickled else ''
        raise CheckpointError(
            f'{folder} has neither {SINGLE} nor {INDEX}; found {found}.{what} '
            'Save the model with safetensors.'
        )
    return [folder / SINGLE]
