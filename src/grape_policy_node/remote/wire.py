"""Messages as bytes: msgpack, with numpy arrays as openpi writes them, and without pickle.

An array is a map of ``__ndarray__`` (True), ``data``, ``dtype`` (such as '<f4') and ``shape``, a
numpy scalar one of ``__npgeneric__``, ``data`` and ``dtype``; these keys are byte strings. What
comes from the network is not trusted: sizes are bounded before anything is allocated, and only
numbers and booleans are taken as arrays, because a dtype of objects would ask for pickle.

Source of the format: Physical-Intelligence/openpi, openpi_client/msgpack_numpy.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

MAX_MESSAGE_BYTES = 16 * 2**20  # a camera image of 1280 x 720 takes 2.8 MB
MAX_DIMENSIONS = 8
MAX_ENTRIES = 100_000  # of one list or map
MAX_TEXT_BYTES = 2**20
DTYPES = ('|b1', '|i1', '|u1', '<i2', '<u2', '<i4', '<u4', '<i8', '<u8', '<f2', '<f4', '<f8')

_ARRAY, _SCALAR = b'__ndarray__', b'__npgeneric__'
_DATA, _DTYPE, _SHAPE = b'data', b'dtype', b'shape'


class WireError(ValueError):
    """Bytes that are no message, or a value that does not belong into one."""


def pack(content: Mapping[str, Any]) -> bytes:
    """Encode a message.

    Args:
        content: of None, bool, int, float, str, bytes, lists, maps, numpy arrays and scalars.

    Raises:
        WireError: anything else; names the type or dtype.
    """
    try:
        return msgpack.packb(content, default=_as_map)
    except (TypeError, OverflowError, msgpack.exceptions.PackException) as error:
        raise WireError(f'the message cannot be encoded: {error}') from error


def unpack(data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Decode a message; arrays are read-only views of its bytes.

    Args:
        data: one websocket message.
        limit: largest size, bytes.

    Raises:
        WireError: too large, no msgpack map, or an array that is not as it says.
    """
    if len(data) > limit:
        raise WireError(f'the message has {len(data)} bytes; at most {limit} are taken')
    try:
        content = msgpack.unpackb(
            data,
            object_hook=_from_map,
            ext_hook=_no_extension,
            max_str_len=min(limit, MAX_TEXT_BYTES),
            max_bin_len=limit,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise WireError(f'the message is not readable msgpack: {reason}') from error
    if not isinstance(content, dict):
        raise WireError(f'the message is a {type(content).__name__}; expected a msgpack map')
    return content


def _as_map(value: object) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f'a {type(value).__name__} cannot be sent; expected numbers, text, arrays')
    value = value.astype(value.dtype.newbyteorder('<'), copy=False)
    dtype = _checked_dtype(value.dtype.str)
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: dtype.str, _SHAPE: value.shape}
    return {_SCALAR: True, _DATA: value.item(), _DTYPE: dtype.str}


def _from_map(content: dict) -> Any:
    try:
        if _ARRAY in content:
            return _array(content[_DATA], content[_DTYPE], content[_SHAPE])
        if _SCALAR in content:
            return _scalar(content[_DATA], content[_DTYPE])
    except KeyError as error:
        raise WireError(f'an array without {error}; found {sorted(map(str, content))}') from None
    return content


def _array(data: object, dtype: object, shape: object) -> np.ndarray:
    kind = _checked_dtype(dtype)
    if not isinstance(data, bytes):
        raise WireError(f'an array whose data is a {type(data).__name__}; expected bytes')
    sizes = shape if isinstance(shape, list) else [None]
    if len(sizes) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in sizes):
        raise WireError(
            f'an array of shape {str(shape)[:80]}; expected up to {MAX_DIMENSIONS} numbers from 0'
        )
    needed = math.prod(sizes) * kind.itemsize
    if needed != len(data):
        raise WireError(
            f'an array of {len(data)} bytes; shape {sizes} of {kind.str} needs {needed}'
        )
    return np.ndarray(tuple(sizes), kind, buffer=data)


def _scalar(value: object, dtype: object) -> np.generic:
    kind = _checked_dtype(dtype)
    if not isinstance(value, bool | int | float):
        raise WireError(f'a scalar of {kind.str} that is a {type(value).__name__}')
    return kind.type(value)


def _checked_dtype(text: object) -> np.dtype:
    # '|O' and the like must not even reach numpy.
    if text not in DTYPES:
        raise WireError(
            f'arrays of dtype {str(text)[:40]!r} are not taken; {", ".join(DTYPES)} are'
        )
    return np.dtype(text)


def _no_extension(code: int, data: bytes) -> None:
    raise WireError(f'msgpack extension type {code} is not taken')
