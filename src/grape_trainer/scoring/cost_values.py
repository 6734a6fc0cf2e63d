"""The values of a cost program and the guards around what makes them.

A program holds numbers, arrays of numbers, lists of both, and None: nothing else ever comes into
being. Every guard refuses before it allocates: how large a result will be is worked out from the
shapes of what goes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

MAX_ELEMENTS = 50_000  # of an array; all differences of 100 keypoints are 30,000
MAX_ITEMS = 10_000  # of a list, a range, a loop
MAX_INTEGER = 2**53  # up to here a float is exact
MAX_DIMENSIONS = 6
MAX_LIST_DEPTH = 4

NUMBER = (bool, int, float, np.bool_, np.integer, np.floating)
SEQUENCE = (list, tuple, range)


class RefusedValue(ValueError):
    """A value or an operation that a cost program may not have; the text says which."""


def tidy(value: object) -> object:
    """Return a value that a program may hold; an array without dimensions becomes a number.

    Raises:
        RefusedValue: too large, complex, or of another type.

    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in 'bif':
            raise RefusedValue(f'an array of {value.dtype}; expected numbers')
        if value.size > MAX_ELEMENTS or value.ndim > MAX_DIMENSIONS:
            raise too_large(value.shape)
        return value if value.ndim else value[()]
    if isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise RefusedValue('an integer above 2**53')
    if value is None or isinstance(value, NUMBER):
        return value
    if isinstance(value, SEQUENCE):
        weigh(value)
        return value
    if isinstance(value, complex | np.complexfloating):
        raise RefusedValue('a complex number; a negative number has no real root')
    raise RefusedValue(f'a value of type {type(value).__name__}')


def weigh(value: object, depth: int = 0) -> int:
    """Return how many numbers a value holds; what is in a list twice counts twice.

    Raises:
        RefusedValue: too many, too deep, something that a list may not hold.

    """
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, range):
        return len(value)
    if not isinstance(value, list | tuple):
        if value is not None and not isinstance(value, NUMBER):
            raise RefusedValue(f'a list that holds a {type(value).__name__}')
        return 1
    if len(value) > MAX_ITEMS or depth >= MAX_LIST_DEPTH:
        raise RefusedValue(
            f'a list of {len(value)} items, {depth + 1} deep; at most {MAX_ITEMS} items and '
            f'{MAX_LIST_DEPTH} deep'
        )
    total = 1
    for item in value:
        total += weigh(item, depth + 1)
        if total > MAX_ELEMENTS:
            raise RefusedValue(f'a list of more than {MAX_ELEMENTS} numbers')
    return total


def operand(value: object) -> object:
    """Return a number or an array; lists become arrays."""
    if isinstance(value, SEQUENCE):
        weigh(value)
        return tidy(np.asarray(value))
    return value


def check_broadcast(*values: object) -> None:
    """Refuse an element-wise operation whose result would be too large."""
    product = 1
    for value in values:
        if isinstance(value, np.ndarray):
            product *= value.size or 1
    if product > MAX_ELEMENTS:
        shape = np.broadcast_shapes(*(np.shape(value) for value in values))
        if math.prod(shape) > MAX_ELEMENTS:
            raise too_large(shape)


def too_large(shape: Iterable[int]) -> RefusedValue:
    """Return the error for an array of a shape."""
    return RefusedValue(
        f'an array of shape {tuple(shape)}; at most {MAX_ELEMENTS} numbers and '
        f'{MAX_DIMENSIONS} dimensions'
    )


def whole(value: object, what: str) -> int:
    """Return an integer argument; RefusedValue for anything else."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise RefusedValue(f'{what} is {shown(value)}; expected an integer')


def items_of(value: object) -> list | tuple | range:
    """Return what a loop goes over."""
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value)
    if not isinstance(value, SEQUENCE):
        raise RefusedValue(f'a loop over {shown(value)}; expected a list, a range or an array')
    if len(value) > MAX_ITEMS:
        raise RefusedValue(f'a loop over {len(value)} items; at most {MAX_ITEMS}')
    return value


def shown(value: object) -> str:
    """Return a short text for an error."""
    if isinstance(value, np.ndarray):
        return f'an array of shape {value.shape}'
    return f'{value}' if isinstance(value, NUMBER) else f'a {type(value).__name__}'
