"""The functions that a cost program may call.

This table is the whole of numpy, and of Python's built-ins, that a program can reach: there is no
other way from its text to a function. An entry says how many arguments go by position, so that no
`out` array gets in, and which keywords there are. What could make something large is wrapped in a
guard that looks at the shapes first.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from grape_trainer.scoring.cost_operators import combined
from grape_trainer.scoring.cost_values import (
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_ITEMS,
    NUMBER,
    RefusedValue,
    check_broadcast,
    items_of,
    operand,
    shown,
    tidy,
    too_large,
    whole,
)

MAX_DIGITS = 20  # of a rounding

_ARRAY_KEYWORDS = {'a_min', 'a_max', 'min', 'max', 'weights'}


@dataclass(frozen=True)
class Function:
    """One entry of the table."""

    call: Callable
    least: int = 1  # arguments by position
    most: int = 1
    keywords: frozenset[str] = frozenset()
    lists: bool = False  # takes lists as they are; otherwise they become arrays first

    def __call__(self, arguments: list, keywords: dict[str, object]) -> object:
        """Call it with values of a program; return one."""
        if not self.lists:
            arguments = [operand(argument) for argument in arguments]
        for name, value in keywords.items():
            if name in _ARRAY_KEYWORDS:
                keywords[name] = operand(value)
            elif not _is_setting(value):
                raise RefusedValue(f'{name}={shown(value)}; expected a number')
        return tidy(self.call(*arguments, **keywords))


def _is_setting(value: object) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(part is None or isinstance(part, (*NUMBER, type)) for part in parts)


def _numbers(arguments: tuple, name: str) -> list:
    values = list(items_of(arguments[0])) if len(arguments) == 1 else list(arguments)
    wrong = [value for value in values if not isinstance(value, NUMBER)]
    if wrong:
        raise RefusedValue(
            f'{name} of {shown(wrong[0])}; it takes numbers, np.{name} takes arrays'
        )
    return values


def _extreme(function: Callable) -> Callable:
    def extreme(*arguments: object, **keywords: object) -> object:
        values = _numbers(arguments, function.__name__)
        if not values and 'default' in keywords:
            return keywords['default']
        return function(values)

    return extreme


def _sum(values: object, start: object = 0) -> object:
    total = operand(start)
    for value in items_of(values):
        value = operand(value)
        check_broadcast(total, value)
        total = tidy(total + value)
    return total


def _range(*arguments: object) -> range:
    made = range(*(whole(argument, 'an argument of range') for argument in arguments))
    # len() itself fails above the machine's word.
    if made and (made[-1] - made[0]) // made.step + 1 > MAX_ITEMS:
        raise RefusedValue(f'a range of more than {MAX_ITEMS}')
    return made


def _enumerate(values: object, start: object = 0) -> list:
    return list(enumerate(items_of(values), whole(start, 'the start of enumerate')))


def _zip(*sequences: object) -> list:
    return list(zip(*map(items_of, sequences), strict=False))


def _digits(value: object) -> int:
    if abs(whole(value, 'the number of digits')) > MAX_DIGITS:
        raise RefusedValue(f'rounding to {value} digits; at most {MAX_DIGITS}')
    return int(value)


def _round(value: object, digits: object = None) -> object:
    value = _one_number(value, 'round')
    return round(value) if digits is None else round(value, _digits(digits))


def _round_each(values: object, decimals: object = 0) -> object:
    return np.round(values, _digits(decimals))


def _one_number(value: object, name: str) -> object:
    if not isinstance(value, NUMBER):
        raise RefusedValue(f'{name} of {shown(value)}; expected a number')
    return value


def _each(function: Callable) -> Callable:
    """Guard an element-wise function of several arguments."""

    def guarded(*arguments: object, **keywords: object) -> object:
        check_broadcast(*arguments, *keywords.values())
        return function(*arguments, **keywords)

    return guarded


def _product(function: Callable) -> Callable:
    """Guard a product of two arrays, whose result has at most size times size elements."""

    def guarded(a: object, b: object, **keywords: object) -> object:
        if np.size(a) * np.size(b) > MAX_ELEMENTS:
            raise too_large((np.size(a), np.size(b)))
        return function(a, b, **keywords)

    return guarded


def _filled(function: Callable) -> Callable:
    """Guard a function that makes an array of a shape."""

    def guarded(shape: object, *arguments: object, **keywords: object) -> object:
        sides = shape if isinstance(shape, list | tuple) else (shape,)
        sides = tuple(whole(side, 'a side of the shape') for side in sides)
        if len(sides) > MAX_DIMENSIONS or math.prod(max(s, 1) for s in sides) > MAX_ELEMENTS:
            raise too_large(sides)
        return function(sides, *arguments, **keywords)

    return guarded


def _joined(function: Callable) -> Callable:
    """Guard a function that takes a list of arrays."""

    def guarded(parts: object, *arguments: object, **keywords: object) -> object:
        arrays = [np.asarray(operand(part)) for part in items_of(parts)]
        if sum(array.size for array in arrays) > MAX_ELEMENTS:
            raise RefusedValue(f'joined arrays of more than {MAX_ELEMENTS} numbers')
        return function(arrays, *arguments, **keywords)

    return guarded


def _eye(n: object) -> np.ndarray:
    if whole(n, 'the size') > MAX_DIMENSIONS:
        raise too_large((n, n))
    return np.eye(n)


def _arange(*arguments: object) -> np.ndarray:
    numbers = [_one_number(argument, 'np.arange') for argument in arguments]
    start, stop, step = {1: [0, *numbers, 1], 2: [*numbers, 1]}.get(len(numbers), numbers)
    if not abs((stop - start) / step) < MAX_ITEMS:
        raise RefusedValue(f'np.arange of more than {MAX_ITEMS} numbers')
    return np.arange(start, stop, step)


def _linspace(start: object, stop: object, num: object = 50) -> np.ndarray:
    check_broadcast(start, stop)
    each = max(np.size(start) * np.size(stop), 1)
    if not 0 <= whole(num, 'num') <= MAX_ITEMS // each:
        raise RefusedValue(f'np.linspace of {num} times {each} numbers; at most {MAX_ITEMS}')
    return np.linspace(start, stop, num)


def _norm(x: object, ord: object = None, axis: object = None, keepdims: object = False) -> object:
    if ord is not None and (not isinstance(ord, NUMBER) or ord not in (1, 2, np.inf)):
        raise RefusedValue('np.linalg.norm takes ord 1, 2 or np.inf')
    if ord is None and axis is None and not keepdims:
        flat = np.ravel(x) * 1.0  # what np.linalg.norm does, without its checks
        return np.sqrt(flat.dot(flat))
    return np.linalg.norm(x, ord, axis, bool(keepdims))


def _entries(
    names: str,
    least: int,
    most: int,
    keywords: str = '',
    guard: Callable = lambda function: function,
    lists: bool = False,
) -> dict[str, Function]:
    allowed = frozenset(keywords.split())
    return {
        name: Function(guard(getattr(np, name)), least, most, allowed, lists)
        for name in names.split()
    }


BUILTINS: Mapping[str, Function] = {
    'abs': Function(abs),
    'all': Function(lambda values: all(bool(v) for v in items_of(values)), lists=True),
    'any': Function(lambda values: any(bool(v) for v in items_of(values)), lists=True),
    'bool': Function(bool, lists=True),
    'enumerate': Function(_enumerate, 1, 2, frozenset({'start'}), lists=True),
    'float': Function(lambda value: float(_one_number(value, 'float'))),
    'int': Function(lambda value: int(_one_number(value, 'int'))),
    'len': Function(len, lists=True),
    'list': Function(lambda values: list(items_of(values)), lists=True),
    'max': Function(_extreme(max), 1, MAX_ITEMS, frozenset({'default'}), lists=True),
    'min': Function(_extreme(min), 1, MAX_ITEMS, frozenset({'default'}), lists=True),
    'pow': Function(lambda base, exponent: combined(ast.Pow(), base, exponent), 2, 2),
    'range': Function(_range, 1, 3, lists=True),
    'round': Function(_round, 1, 2),
    'sorted': Function(lambda values: sorted(_numbers((values,), 'sort')), lists=True),
    'sum': Function(_sum, 1, 2, frozenset({'start'}), lists=True),
    'tuple': Function(lambda values: tuple(items_of(values)), lists=True),
    'zip': Function(_zip, 1, 6, lists=True),
}

NUMPY: Mapping[str, Function] = {
    **_entries(
        'abs absolute fabs sign sqrt cbrt square exp expm1 log log1p log2 log10 sin cos tan '
        'arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh exp2 floor ceil rint trunc '
        'deg2rad rad2deg radians degrees negative isfinite isnan isinf logical_not float64',
        1, 1,
    ),
    **_entries(
        'add subtract multiply divide true_divide floor_divide mod remainder fmod power '
        'float_power maximum minimum fmax fmin hypot arctan2 copysign heaviside greater '
        'greater_equal less less_equal equal not_equal logical_and logical_or logical_xor '
        'logaddexp array_equal',
        2, 2, guard=_each,
    ),
    **_entries('isclose allclose', 2, 4, 'rtol atol', _each),
    **_entries('where', 3, 3, '', _each),
    **_entries('clip', 1, 3, 'a_min a_max min max', _each),
    **_entries('sum prod mean median min max amin amax ptp all any', 1, 2, 'axis keepdims'),
    **_entries('std var', 1, 2, 'axis keepdims ddof'),
    **_entries('argmin argmax count_nonzero cumsum cumprod argsort sort flip', 1, 2, 'axis'),
    **_entries('average', 1, 2, 'axis weights'),
    **_entries('diff', 1, 1, 'axis'),
    **_entries('percentile quantile', 2, 2, 'axis', _product),
    **_entries('interp', 3, 3),
    **_entries('dot inner vdot outer matmul', 2, 2, '', _product),
    **_entries('cross', 2, 2, 'axis', _product),
    **_entries('expand_dims', 2, 2, 'axis', lists=True),
    **_entries('squeeze', 1, 2, 'axis'),
    **_entries('transpose ravel atleast_1d atleast_2d shape size ndim', 1, 1),
    **_entries('reshape', 2, 2, lists=True),
    **_entries('zeros ones', 1, 1, 'dtype', _filled, lists=True),
    **_entries('full', 2, 2, 'dtype', _filled, lists=True),
    **_entries('zeros_like ones_like', 1, 1),
    **_entries('full_like', 2, 2),
    **_entries('array asarray', 1, 1, 'dtype'),
    **_entries('concatenate stack', 1, 2, 'axis', _joined, lists=True),
    **_entries('vstack hstack column_stack', 1, 1, '', _joined, lists=True),
    'round': Function(_round_each, 1, 2, frozenset({'decimals'})),
    'around': Function(_round_each, 1, 2, frozenset({'decimals'})),
    'eye': Function(_eye),
    'identity': Function(_eye),
    'arange': Function(_arange, 1, 3),
    'linspace': Function(_linspace, 2, 3, frozenset({'num'})),
    'linalg.norm': Function(_norm, 1, 4, frozenset({'ord', 'axis', 'keepdims'})),
}  # fmt: skip

NUMPY_CONSTANTS: Mapping[str, object] = {
    'pi': np.pi,
    'e': np.e,
    'inf': np.inf,
    'newaxis': None,
}

# What `dtype=` may name.
TYPES: Mapping[str, type] = {
    'bool': bool,
    'float': float,
    'int': int,
    'np.bool_': bool,
    'np.float64': float,
    'np.int64': int,
}
