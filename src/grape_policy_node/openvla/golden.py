"""Golden files: what the reference implementation computed from a checkpoint folder.

``golden.safetensors`` holds ``<case>.<quantity>`` for the checkpoint itself,
``golden_<name>.safetensors`` holds ``<case>.<name>.<quantity>`` for the adapter in the subfolder
``<name>``. An adapter's cases take their inputs from ``golden.safetensors``. ``golden.json`` has
the sizes of the vision towers, where config.json has none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from grape_policy_node.openvla.folder import CheckpointError, read_json
from grape_policy_node.openvla.vision import VisionConfig
from grape_policy_node.openvla.weights import read_entries

GOLDEN = 'golden.safetensors'
SIZES = 'golden.json'
TOWERS = ('dino', 'siglip')
KEY = re.compile(r'(?P<case>[^.]+)\.(?:[^.]+\.)?(?P<quantity>[^.]+)')

PIXELS = 'pixel_values'
IDS = 'input_ids'
INPUTS = ('image', PIXELS, IDS)
OUTPUTS = (
    'projected_patches',
    'last_logits',
    'action_token_logits',
    'greedy_tokens',
    'greedy_logprobs',
    'action',
)


@dataclass(frozen=True)
class GoldenFile:
    """The cases of one golden file.

    Attributes:
        path: the file.
        adapter: folder of the adapter it was computed with, or None.
        cases: case -> quantity -> values.
    """

    path: Path
    adapter: Path | None
    cases: Mapping[str, Mapping[str, torch.Tensor]]

    @property
    def unknown(self) -> list[str]:
        """Quantities that nothing here computes."""
        held = {quantity for case in self.cases.values() for quantity in case}
        return sorted(held - {*INPUTS, *OUTPUTS})


def read_golden_files(folder: Path) -> list[GoldenFile]:
    """Read all golden files of a folder, the checkpoint's own first.

    Raises:
        CheckpointError: none there, a broken one, an adapter that is not there, or nothing in it
            to compare.
    """
    own = folder / GOLDEN
    paths = ([own] if own.exists() else []) + sorted(folder.glob('golden_*.safetensors'))
    if not paths:
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else 'no folder'
        raise CheckpointError(
            f'{folder} has no {GOLDEN}; expected what the reference implementation computed for '
            f'this checkpoint (docs/reference/checkpoints.md says how it is laid out). Found: '
            f'{found}.'
        )
    files: list[GoldenFile] = []
    for path in paths:
        cases = _cases(path)
        adapter = None
        if path != own:
            adapter = folder / path.stem.removeprefix('golden_')
            inputs = files[0].cases if files and files[0].path == own else {}
            cases = {
                case: {**{n: v for n, v in inputs.get(case, {}).items() if n in INPUTS}, **values}
                for case, values in cases.items()
            }
        files.append(GoldenFile(path, adapter, cases))
        _check(files[-1])
    return files


def golden_sizes(folder: Path) -> list[dict[str, object]] | None:
    """Return the sizes of the towers in ``golden.json``, as far as they are known here."""
    if not (folder / SIZES).exists():
        return None
    content = read_json(folder / SIZES)
    known = VisionConfig.__dataclass_fields__
    sizes = [
        {key: value for key, value in content[name].items() if key in known}
        for name in TOWERS
        if isinstance(content.get(name), Mapping)
    ]
    return sizes or None


def golden_unnorm_key(folder: Path) -> str | None:
    """Return the statistics that ``golden.json`` names, if it does."""
    content = read_json(folder / SIZES) if (folder / SIZES).exists() else {}
    key = content.get('unnorm_key')
    return key if isinstance(key, str) else None


def _cases(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    read_entries(path)  # says what is wrong with a broken file
    cases: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, values in load_file(path).items():
        match = KEY.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path} holds '{name}'; expected names like 0.last_logits or "
                '0.adapter.last_logits'
            )
        cases[match['case']][match['quantity']] = values
    return dict(sorted(cases.items()))


def _check(file: GoldenFile) -> None:
    if file.adapter is not None and not file.adapter.is_dir():
        raise CheckpointError(
            f'{file.path} is for the adapter {file.adapter}, which is not there; expected a '
            'folder with adapter_config.json and adapter_model.safetensors'
        )
    for case, values in file.cases.items():
        if IDS not in values or not ({PIXELS, 'image'} & set(values)):
            raise CheckpointError(
                f'{file.path}: case {case} has {sorted(values)}; expected the inputs {IDS} and '
                f'{PIXELS} (or image) in it or in {GOLDEN}'
            )
    if not any(set(values) & {PIXELS, *OUTPUTS} for values in file.cases.values()):
        raise CheckpointError(
            f'{file.path} holds nothing to compare; expected some of {(PIXELS, *OUTPUTS)}'
        )
