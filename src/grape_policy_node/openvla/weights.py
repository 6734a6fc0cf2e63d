"""Weights in safetensors files: what is in them, and into memory without a second copy.

The headers are read first, so that a truncated shard, a missing key or another shape is an error
before gigabytes move. Weights that stay as they are on the CPU are mapped, not copied: a page is
read when it is first used. All others are read in pieces and converted piece by piece. Either way
the peak is the weights themselves and little more.

Format: 8 bytes with the header's length, the header (JSON), the data (safetensors 0.4 and later).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from safetensors import safe_open

from grape_policy_node.openvla.folder import CheckpointError, weight_files

PIECE_BYTES = 4 * 1024**2
HEADER_LIMIT = 100 * 1024**2  # safetensors' own
DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
}
# The reference renames timm's LayerScale parameter, because transformers renames each 'gamma'.
LAYER_SCALE = re.compile(r'(?<=\.ls[12]\.)gamma$')
# Buffers that old versions of transformers wrote; they follow from the config.
ROTARY = '.rotary_emb.inv_freq'


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        path: the file.
        name: in the file.
        dtype: in the file.
        shape: its sizes.
        start: first byte in the file.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return what the weight files of a folder hold, by parameter name.

    Raises:
        CheckpointError: a file is missing, truncated or no safetensors file, a name occurs twice,
            or a dtype is not a floating-point one.
    """
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for tensor in read_header(path):
            name = LAYER_SCALE.sub('scale_factor', tensor.name)
            if name.endswith(ROTARY):
                continue
            if name in stored:
                raise CheckpointError(
                    f"weight '{name}' is in {stored[name].path.name} and in {path.name} of "
                    f'{folder}; expected it once'
                )
            stored[name] = tensor
    return stored


def read_header(path: Path) -> list[StoredTensor]:
    """Return what one file of weights holds; see :func:`read_entries`."""
    entries, data = read_entries(path)
    return [_stored(path, name, entry, data) for name, entry in entries.items()]


def read_entries(path: Path) -> tuple[dict[str, dict], int]:
    """Read a file's header and check the file's length against it.

    Returns:
        Name -> dtype, shape and data_offsets; and where the data begin, bytes.

    Raises:
        CheckpointError: truncated, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            (length,) = struct.unpack('<Q', file.read(8))
            if length > min(HEADER_LIMIT, size - 8):
                raise ValueError(f'its header would be {length} bytes long, the file has {size}')
            header = json.loads(file.read(length))
        header.pop('__metadata__', None)
        end = 8 + length + max((entry['data_offsets'][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f'{path} is not a readable safetensors file: {error}') from error
    if size != end:
        raise CheckpointError(
            f'{path} has {size} bytes, its header says {end}: the file is '
            f'{"truncated" if size < end else "longer than it should be"}. Copy or fetch it again.'
        )
    return header, 8 + length


def load_weights(
    stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: str | torch.device
) -> dict[str, torch.Tensor]:
    """Bring weights into memory.

    Args:
        stored: of :func:`read_headers`.
        dtype: in memory, whatever the file's.
        device: where they go.
    """
    on_cpu = torch.device(device).type == 'cpu'
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name, tensor in stored.items():
        by_file[tensor.path].append(name)
    piece = torch.empty(PIECE_BYTES, dtype=torch.uint8)
    state = {}
    for path, names in by_file.items():
        as_they_are = [n for n in names if on_cpu and stored[n].dtype == dtype]
        if as_they_are:
            with safe_open(str(path), 'pt', device='cpu') as file:
                for name in as_they_are:
                    state[name] = file.get_tensor(stored[name].name)
        with path.open('rb') as file:
            for name in names:
                if name not in state:
                    state[name] = _converted(file, stored[name], piece, dtype, device)
    return state


def _stored(path: Path, name: str, entry: Mapping[str, object], data: int) -> StoredTensor:
    if entry['dtype'] not in DTYPES:
        raise CheckpointError(
            f"{path}: weight '{name}' is {entry['dtype']}; expected one of {sorted(DTYPES)}. "
            'Quantised checkpoints are not read: give the published weights.'
        )
    dtype, shape = DTYPES[entry['dtype']], tuple(entry['shape'])
    begin, end = entry['data_offsets']
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}: weight '{name}' of shape {shape} has {end - begin} bytes; expected "
            f'{math.prod(shape) * dtype.itemsize}'
        )
    return StoredTensor(path, name, dtype, shape, data + begin)


def _converted(
    file: BufferedReader,
    stored: StoredTensor,
    piece: torch.Tensor,
    dtype: torch.dtype,
    device: str | torch.device,
) -> torch.Tensor:
    """Read a tensor in pieces (through one buffer of bytes) into another dtype or device."""
    result = torch.empty(stored.shape, dtype=dtype, device=device)
    flat = result.view(-1)
    values, buffer = piece.view(stored.dtype), memoryview(piece.numpy())
    file.seek(stored.start)
    for begin in range(0, stored.count, len(values)):
        count = min(len(values), stored.count - begin)
        wanted = count * stored.dtype.itemsize
        got = file.readinto(buffer[:wanted])
        if got != wanted:
            raise CheckpointError(
                f"{stored.path} ended within weight '{stored.name}': it was changed while it "
                'was read. Load it again.'
            )
        flat[begin : begin + count].copy_(values[:count])
    return result
