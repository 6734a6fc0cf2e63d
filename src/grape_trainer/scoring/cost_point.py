"""Points in the declarative notation, and the Python that each of them means.

end_effector, target, receptacle, keypoint 3        where it is
start of end_effector, start of keypoint 3          where it was at the stage's first state
{point: target, offset_m: [0, 0, 0.1]}              moved, in the robot base frame
{mean: [target, receptacle]}                        in the middle of several
{at_m: [0.5, 0.0, 0.2]}                             a fixed place
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

MAX_KEYPOINT = 99
MAX_METRES = 100.0
MAX_MEAN = 10  # points in a mean

_NAMED = {'target': 0, 'receptacle': 1}
_KEYPOINT = re.compile(r'keypoint[ _]?([0-9]{1,2})')
_EXPECTED = (
    "expected 'end_effector', 'target', 'receptacle', 'keypoint N', 'start of' one of these, "
    '{point: ..., offset_m: [x, y, z]}, {mean: [...]} or {at_m: [x, y, z]}'
)


@dataclass(frozen=True)
class Point:
    """A point, as Python text for now and for the stage's first state."""

    now: str
    start: str


def python_vector(values: Sequence[float]) -> str:
    """Return np.array([...]) of numbers."""
    return f'np.array([{", ".join(repr(float(value)) for value in values)}])'


def read_vector(value: object) -> tuple[float, ...]:
    """Return three finite numbers.

    Raises:
        ValueError: something else.

    """
    if isinstance(value, list | tuple) and len(value) == 3:
        numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == 3 and all(math.isfinite(v) and abs(v) <= MAX_METRES for v in numbers):
            return tuple(float(v) for v in numbers)
    raise ValueError(f'expected [x, y, z], three numbers of at most {MAX_METRES:g}')


def _read_point(value: object) -> Point:
    if isinstance(value, Point):
        return value
    if isinstance(value, str):
        return _named(value.strip())
    if isinstance(value, dict):
        keys = set(value)
        if keys == {'point', 'offset_m'}:
            point, offset = _read_point(value['point']), read_vector(value['offset_m'])
            moved = python_vector(offset)
            return Point(f'({point.now} + {moved})', f'({point.start} + {moved})')
        if keys == {'at_m'}:
            place = python_vector(read_vector(value['at_m']))
            return Point(place, place)
        if keys == {'mean'} and isinstance(value['mean'], list) and value['mean']:
            if len(value['mean']) > MAX_MEAN:
                raise ValueError(f'a mean of {len(value["mean"])} points; at most {MAX_MEAN}')
            points = [_read_point(part) for part in value['mean']]
            return Point(
                f'(({" + ".join(p.now for p in points)}) / {float(len(points))})',
                f'(({" + ".join(p.start for p in points)}) / {float(len(points))})',
            )
    raise ValueError(f'not a point; {_EXPECTED}')


def _named(name: str) -> Point:
    if name.startswith('start of '):
        start = _named(name.removeprefix('start of ').strip()).start
        return Point(start, start)
    if name == 'end_effector':
        return Point('end_effector', 'start_end_effector')
    match = _KEYPOINT.fullmatch(name)
    index = int(match[1]) if match else _NAMED.get(name)
    if index is None:
        raise ValueError(f"'{name[:40]}' is not a point; {_EXPECTED}")
    return Point(f'keypoints[{index}]', f'start_keypoints[{index}]')


PointField = Annotated[Point, BeforeValidator(_read_point)]
