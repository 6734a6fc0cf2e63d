"""The kinds of declarative costs: their fields, and the Python text that each of them means.

A cost is 0 or less where its constraint is satisfied. Lengths are in m in the robot base frame,
z up; `of` is what is looked at, by default the end effector.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from grape_trainer.scoring.cost_point import (
    MAX_KEYPOINT,
    MAX_METRES,
    Point,
    PointField,
    python_vector,
    read_vector,
)

Metres = Annotated[float, Field(ge=0, le=MAX_METRES, allow_inf_nan=False)]
PositiveMetres = Annotated[float, Field(gt=0, le=MAX_METRES, allow_inf_nan=False)]
SignedMetres = Annotated[float, Field(ge=-MAX_METRES, le=MAX_METRES, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0, le=MAX_KEYPOINT)]
Axes = Literal['xyz', 'xy', 'xz', 'yz', 'x', 'y', 'z']

END_EFFECTOR = Point('end_effector', 'start_end_effector')
_SLICES = {
    'xyz': '', 'xy': '[0:2]', 'xz': '[0:3:2]', 'yz': '[1:3]', 'x': '[0:1]', 'y': '[1:2]',
    'z': '[2:3]',
}  # fmt: skip
_DIRECTIONS = {
    f'{sign}{axis}': tuple(float(f'{sign}1') if axis == each else 0.0 for each in 'xyz')
    for sign in ('', '-')
    for axis in 'xyz'
}


def _read_direction(value: object) -> tuple[float, ...]:
    named = _DIRECTIONS.get(value, value) if isinstance(value, str) else value
    direction = read_vector(named)
    if not any(direction):
        raise ValueError("a direction has a length; expected 'x', '-z', ... or [x, y, z]")
    return direction


def _read_size(value: object) -> tuple[float, ...]:
    size = read_vector(value)
    if min(size) < 0:
        raise ValueError('a size is not negative')
    return size


Direction = Annotated[tuple[float, ...], BeforeValidator(_read_direction)]
Size = Annotated[tuple[float, ...], BeforeValidator(_read_size)]


def _norm(a: str, b: str, axes: str = 'xyz') -> str:
    difference = f'({a} - {b}){_SLICES[axes]}' if _SLICES[axes] else f'{a} - {b}'
    return f'np.linalg.norm({difference})'


def _minus(expression: str, allowance: float) -> str:
    return f'{expression} - {allowance!r}' if allowance else expression


class _Cost(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')

    stage: int = Field(ge=1, le=99)
    cost_class: Literal['target', 'path', 'collision', 'grasp'] = Field(alias='class')
    number: int | None = Field(default=None, ge=1, le=99)
    note: str = Field(default='', max_length=300)


class Distance(_Cost):
    """Distance from `of` to `to`, along some axes, above a threshold."""

    kind: Literal['distance']
    of: PointField = END_EFFECTOR
    to: PointField
    axes: Axes = 'xyz'
    threshold_m: Metres = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        return _minus(_norm(self.of.now, self.to.now, self.axes), self.threshold_m)


class Steps(_Cost):
    """How many steps of a length the way to `to` takes (E.2.3)."""

    kind: Literal['steps']
    of: PointField = END_EFFECTOR
    to: PointField
    step_m: PositiveMetres = 0.01

    def formula(self) -> str:
        """Return the Python text that it means."""
        return f'int({_norm(self.of.now, self.to.now)} / {self.step_m!r})'


class Above(_Cost):
    """What `of` lacks to be a margin above (or below) `to`; as a flag, 1 unless it is (E.2.2)."""

    kind: Literal['above', 'below']
    of: PointField = END_EFFECTOR
    to: PointField
    margin_m: SignedMetres = 0.0
    axis: Literal['x', 'y', 'z'] = 'z'
    measure: Literal['missing', 'flag'] = 'missing'

    def formula(self) -> str:
        """Return the Python text that it means."""
        index = 'xyz'.index(self.axis)
        above = self.kind == 'above'
        a, b = f'{self.of.now}[{index}]', f'{self.to.now}[{index}]'
        bound = f'{b} {"+" if above else "-"} {self.margin_m!r}' if self.margin_m else b
        if self.measure == 'flag':
            return f'0.0 if {a} {">" if above else "<"} {bound} else 1.0'
        return f'max(0.0, {bound} - {a})' if above else f'max(0.0, {a} - ({bound}))'


class Clearance(_Cost):
    """Clearance that is missing to each obstacle, added up (E.2.2); also of a held target."""

    kind: Literal['clearance']
    of: PointField = END_EFFECTOR
    obstacles: Literal['all'] | list[Index] = 'all'  # all: keypoint 2 and up
    clearance_m: PositiveMetres = 0.1
    with_held_target: bool = False

    def formula(self) -> str:
        """Return the Python text that it means."""
        listed = ', '.join(f'keypoints[{index}]' for index in self.obstacles)
        obstacles = 'keypoints[2:]' if self.obstacles == 'all' else f'[{listed}]'
        nearest = _norm(self.of.now, 'obstacle')
        if self.with_held_target:
            nearest = (
                f'(min({nearest}, {_norm("keypoints[0]", "obstacle")}) if held else {nearest})'
            )
        return f'sum(max(0.0, {self.clearance_m!r} - {nearest}) for obstacle in {obstacles})'


class Detour(_Cost):
    """Path so far and what remains to `to`, over the straight path, minus 1."""

    kind: Literal['detour']
    to: PointField
    floor_m: PositiveMetres = 0.05  # a shorter straight path counts as this long
    allowed: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        return _minus(_over_straight('path_length_m', self.to, self.floor_m), 1.0 + self.allowed)


class Delay(_Cost):
    """Time so far and what remains to `to` at a speed, over that of the straight path, minus 1."""

    kind: Literal['delay']
    to: PointField
    speed_mps: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 0.2
    floor_m: PositiveMetres = 0.05
    allowed: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        so_far = f'time_s * {self.speed_mps!r}'
        return _minus(_over_straight(so_far, self.to, self.floor_m), 1.0 + self.allowed)


def _over_straight(so_far: str, to: Point, floor_m: float) -> str:
    left = _norm('end_effector', to.now)
    straight = _norm('start_end_effector', to.start)
    return f'({so_far} + {left}) / max({straight}, {floor_m!r})'


class PathLength(_Cost):
    """Path of the end effector since the stage began, above a limit."""

    kind: Literal['path_length']
    limit_m: Metres = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        return f'max(0.0, path_length_m - {self.limit_m!r})'


class Duration(_Cost):
    """Time since the stage began, above a limit, s."""

    kind: Literal['duration']
    limit_s: Seconds = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        return f'max(0.0, time_s - {self.limit_s!r})'


class Gripper(_Cost):
    """1 unless the target is held, or released."""

    kind: Literal['gripper']
    state: Literal['held', 'released']

    def formula(self) -> str:
        """Return the Python text that it means."""
        return '0.0 if held else 1.0' if self.state == 'held' else '1.0 if held else 0.0'


class Contact(_Cost):
    """1 while the robot touches what it should not."""

    kind: Literal['contact']

    def formula(self) -> str:
        """Return the Python text that it means."""
        return '1.0 if collided else 0.0'


class Alignment(_Cost):
    """1 minus the cosine between the direction `from` -> `to` and an axis, above a tolerance."""

    kind: Literal['alignment']
    origin: PointField = Field(alias='from')
    to: PointField
    axis: Direction
    either_way: bool = False
    tolerance: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        cosine = _cosine(self.origin, self.to, self.axis)
        return _minus(f'1.0 - {f"abs({cosine})" if self.either_way else cosine}', self.tolerance)


class Angle(_Cost):
    """Angle between the direction `from` -> `to` and an axis, above a limit, rad."""

    kind: Literal['angle']
    origin: PointField = Field(alias='from')
    to: PointField
    axis: Direction
    limit_rad: Annotated[float, Field(ge=0, le=3.1416, allow_inf_nan=False)] = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        cosine = _cosine(self.origin, self.to, self.axis)
        return f'max(0.0, np.arccos(np.clip({cosine}, -1.0, 1.0)) - {self.limit_rad!r})'


def _cosine(origin: Point, to: Point, axis: tuple[float, ...]) -> str:
    way, unit = f'{to.now} - {origin.now}', python_vector(axis)
    lengths = f'np.linalg.norm({way}) * np.linalg.norm({unit})'
    return f'np.dot({way}, {unit}) / max({lengths}, 1e-09)'


class InsideBox(_Cost):
    """How far `of` is outside a box around a point, added up over the axes."""

    kind: Literal['inside_box']
    of: PointField = END_EFFECTOR
    around: PointField
    half_size_m: Size

    def formula(self) -> str:
        """Return the Python text that it means."""
        outside = f'np.abs({self.of.now} - {self.around.now}) - {python_vector(self.half_size_m)}'
        return f'np.sum(np.maximum(0.0, {outside}))'


class Displacement(_Cost):
    """How far `of` is from where it was at the stage's first state, above a limit."""

    kind: Literal['displacement']
    of: PointField
    axes: Axes = 'xyz'
    limit_m: Metres = 0.0

    def formula(self) -> str:
        """Return the Python text that it means."""
        return f'max(0.0, {_norm(self.of.now, self.of.start, self.axes)} - {self.limit_m!r})'


class Lift(_Cost):
    """Height that `of` lacks above where it was at the stage's first state."""

    kind: Literal['lift']
    of: PointField = Point('keypoints[0]', 'start_keypoints[0]')
    height_m: PositiveMetres

    def formula(self) -> str:
        """Return the Python text that it means."""
        return f'max(0.0, {self.height_m!r} - ({self.of.now}[2] - {self.of.start}[2]))'


class Progress(_Cost):
    """Share of the stage's press, fall, move or turn that is missing."""

    kind: Literal['progress']

    def formula(self) -> str:
        """Return the Python text that it means."""
        return '1.0 - progress'


KINDS = (
    Distance, Steps, Above, Clearance, Detour, Delay, PathLength, Duration, Gripper, Contact,
    Alignment, Angle, InsideBox, Displacement, Lift, Progress,
)  # fmt: skip
Cost = (
    Distance | Steps | Above | Clearance | Detour | Delay | PathLength | Duration | Gripper
    | Contact | Alignment | Angle | InsideBox | Displacement | Lift | Progress
)  # fmt: skip
