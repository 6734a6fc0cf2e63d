"""Python's operators between the values of a cost program, each behind its guard.

They mean what Python and numpy mean by them, and refuse what would be large, what is not a number
and what would be another kind of value (a list repeated, a shift, a complex root).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

import numpy as np

from grape_trainer.scoring.cost_values import (
    MAX_ELEMENTS,
    MAX_INTEGER,
    NUMBER,
    SEQUENCE,
    RefusedValue,
    check_broadcast,
    items_of,
    shown,
    tidy,
    weigh,
)

MAX_EXPONENT = 64  # of a power of integers

_BINARY: Mapping[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_IN_PLACE: Mapping[type[ast.operator], Callable] = {
    ast.Add: operator.iadd,
    ast.Sub: operator.isub,
    ast.Mult: operator.imul,
    ast.Div: operator.itruediv,
    ast.FloorDiv: operator.ifloordiv,
    ast.Mod: operator.imod,
    ast.Pow: operator.ipow,
}
_COMPARE: Mapping[type[ast.cmpop], Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: Mapping[type[ast.unaryop], Callable] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_BITWISE = (ast.BitAnd, ast.BitOr, ast.BitXor)


def combined(kind: ast.operator, left: object, right: object) -> object:
    """Return left <operator> right; RefusedValue where it may not be."""
    arrays = isinstance(left, np.ndarray) or isinstance(right, np.ndarray)
    if isinstance(kind, _BITWISE):
        _check_bits(left, right)
    elif isinstance(left, SEQUENCE) or isinstance(right, SEQUENCE):
        joined = (
            isinstance(kind, ast.Add) and type(left) is type(right) and type(left) is not range
        )
        if not arrays and not joined:
            raise RefusedValue('arithmetic with lists; write np.array([...])')
    elif left is None or right is None:
        raise RefusedValue('arithmetic with None')
    elif not arrays and isinstance(kind, ast.Pow):
        _check_power(left, right)
    if arrays:
        left, right = np.asarray(left), np.asarray(right)
        if isinstance(kind, ast.MatMult) and left.size * right.size > MAX_ELEMENTS:
            raise RefusedValue('a matrix product of arrays this large')
        if not isinstance(kind, ast.MatMult):
            check_broadcast(left, right)
    return tidy(_BINARY[type(kind)](left, right))


def changed(kind: ast.operator, old: object, value: object) -> object:
    """Return what old <operator>= value makes of old; as in Python, an array is changed itself."""
    if not isinstance(old, np.ndarray) or type(kind) not in _IN_PLACE:
        return combined(kind, old, value)
    check_broadcast(old, *[value] if isinstance(value, np.ndarray) else [])
    return tidy(_IN_PLACE[type(kind)](old, value))


def signed(kind: ast.unaryop, value: object) -> object:
    """Return -value, +value, ~value or not value."""
    if isinstance(kind, ast.Not):
        return not value
    if isinstance(kind, ast.Invert):
        _check_bits(value)
        value = np.asarray(value)  # ~True is -2 for Python's own True
    if not isinstance(value, (np.ndarray, *NUMBER)):
        raise RefusedValue(f'the sign of {shown(value)}')
    return tidy(_UNARY[type(kind)](value))


def compared(kind: ast.cmpop, left: object, right: object) -> object:
    """Return left <comparison> right."""
    if isinstance(kind, ast.Is | ast.IsNot):
        if left is not None and right is not None:
            raise RefusedValue("'is' between numbers; write '=='")
        return (left is right) is isinstance(kind, ast.Is)
    if isinstance(kind, ast.In | ast.NotIn):
        items = items_of(right)
        if not all(isinstance(value, NUMBER) for value in (left, *items)):
            raise RefusedValue(f"'in' with {shown(left)}; expected a number in a list of numbers")
        return (left in items) is isinstance(kind, ast.In)
    for value in (left, right):
        if not isinstance(value, (np.ndarray, *NUMBER)):
            raise RefusedValue(f'a comparison with {shown(value)}; expected numbers or arrays')
    check_broadcast(left, right)
    return tidy(_COMPARE[type(kind)](left, right))


def selected(value: object, index: object) -> object:
    """Return value[index]."""
    if not isinstance(value, (np.ndarray, *SEQUENCE)):
        raise RefusedValue(f'an item of {shown(value)}')
    if isinstance(value, np.ndarray):
        _check_selection(value, index)
    return tidy(value[index])


def store(array: object, index: object, value: object) -> None:
    """Do array[index] = value."""
    if not isinstance(array, np.ndarray):
        raise RefusedValue(f'setting an item of {shown(array)}; only arrays are changed')
    _check_selection(array, index)
    array[index] = value


def _check_power(base: object, exponent: object) -> None:
    """Refuse a power of integers before it is worked out."""
    if isinstance(base, float | np.floating) or isinstance(exponent, float | np.floating):
        return
    if abs(exponent) > MAX_EXPONENT or abs(int(base)) ** abs(int(exponent)) > MAX_INTEGER:
        raise RefusedValue(f'the power {base} ** {exponent}; use a float or a smaller one')


def _check_bits(*values: object) -> None:
    for value in values:
        boolean = isinstance(value, bool | np.bool_) or (
            isinstance(value, np.ndarray) and value.dtype.kind == 'b'
        )
        if not boolean:
            raise RefusedValue(f"'&', '|', '^' and '~' combine True and False, not {shown(value)}")


def _check_selection(array: np.ndarray, index: object) -> None:
    """Refuse an index by arrays or lists that would select more than there may be."""
    chosen = 1
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (np.ndarray, list, tuple, range)):
            chosen *= max(weigh(part), 1)
    if chosen > 1 and chosen * array.size > MAX_ELEMENTS:
        raise RefusedValue(f'an index that selects {chosen} times from {array.size} numbers')
