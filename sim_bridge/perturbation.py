"""Perturbations of a task: their names, parameters and seeds, and how a task's name carries them.

A perturbed task is asked for by name, `libero_object/0+layout_shift:min_m=0.1,seed=3+obstacle`, so
that whatever keeps a task apart from another (bags, manifest, pairs, tables) keeps these apart.
What they do to a scene is the environment's affair (perturbation_libero.py).

Every draw is a function of (perturbation, its seed, initial state): the trials of one initial
state share their scene and can be compared, whatever the policy's own seed.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from grape_episode.task_name import SEPARATOR

OBSTACLE, DISTRACTOR = 'obstacle_', 'distractor_'  # begin the names of added objects
ANY = 'any'


class PerturbationError(ValueError):
    """A perturbation that does not exist or cannot be applied; the text says what is possible."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What all perturbations have: a name and a seed, 0 or more."""

    name: ClassVar[str] = ''
    seed: int = 0

    def __str__(self) -> str:
        """Return the canonical text: the name, then what differs from the defaults."""
        told = [
            f'{field.name}={getattr(self, field.name)}'
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f'{self.name}:{",".join(told)}' if told else self.name

    def generator(self, *of: int) -> np.random.Generator:
        """Return the generator of one thing, such as (initial state,)."""
        return np.random.default_rng([zlib.crc32(self.name.encode()), self.seed, *of])

    def record(self) -> dict[str, Any]:
        """Return what a bag keeps: name, parameters, seed."""
        parameters = asdict(self)
        return {'name': self.name, 'seed': parameters.pop('seed'), 'parameters': parameters}

    def _check(self, holds: bool, expected: str) -> None:
        if not holds:
            raise PerturbationError(f"'{self}': expected {expected}.")


@dataclass(frozen=True, kw_only=True)
class LayoutShift(Perturbation):
    """Objects away from where training had them, on the table.

    Attributes:
        objects: roles (target and receptacle, each for itself), all (each for itself), or
            together (all by one offset, which keeps 'left of', 'between').
        min_m, max_m: how far each is moved, in a direction of its own.

    """

    name: ClassVar[str] = 'layout_shift'
    objects: str = 'roles'
    min_m: float = 0.05
    max_m: float = 0.12

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(self.objects in ('roles', 'all', 'together'), 'objects=roles|all|together')
        self._check(0 < self.min_m <= self.max_m <= 0.5, '0 < min_m <= max_m <= 0.5')


@dataclass(frozen=True, kw_only=True)
class Obstacle(Perturbation):
    """Upright objects near the straight path from the target to the receptacle, or to the hand.

    Attributes:
        count: 1 or 2.
        kind: an object model, or any.
        path: carry (to the receptacle; to the hand where the task has none), or reach.
        along_min, along_max: where on the path, 0 at the target, 1 at its other end.
        aside_m: at most this far from the path.
        mass_kg: 0 is the model's own, which is some grams: it topples at a touch.

    """

    name: ClassVar[str] = 'obstacle'
    count: int = 1
    kind: str = ANY
    path: str = 'carry'
    along_min: float = 0.25
    along_max: float = 0.75
    aside_m: float = 0.04
    mass_kg: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(self.count in (1, 2), 'count=1|2')
        self._check(self.path in ('carry', 'reach'), 'path=carry|reach')
        self._check(0 <= self.along_min <= self.along_max <= 1, '0 <= along_min <= along_max <= 1')
        self._check(0 <= self.aside_m <= 0.3, '0 <= aside_m <= 0.3')
        self._check(0 <= self.mass_kg <= 20, '0 <= mass_kg <= 20')


@dataclass(frozen=True, kw_only=True)
class Distractors(Perturbation):
    """Objects that the task does not have, away from the path.

    Attributes:
        count: 1 to 4.
        away_m: at least this far from the straight path from target to receptacle.

    """

    name: ClassVar[str] = 'distractors'
    count: int = 2
    away_m: float = 0.12

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(1 <= self.count <= 4, 'count=1..4')
        self._check(0 <= self.away_m <= 0.3, '0 <= away_m <= 0.3')


@dataclass(frozen=True, kw_only=True)
class RobotPose(Perturbation):
    """Noise on the arm's initial joint positions: normal, `std_rad` each."""

    name: ClassVar[str] = 'robot_pose'
    std_rad: float = 0.05

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(0 < self.std_rad <= 0.3, '0 < std_rad <= 0.3')


@dataclass(frozen=True, kw_only=True)
class Reposition(Perturbation):
    """The target jumps to another place before control step `step`, as in RL4VLA."""

    name: ClassVar[str] = 'reposition'
    step: int = 5
    min_m: float = 0.05
    max_m: float = 0.12

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(self.step >= 1, 'step=1 or more')
        self._check(0 < self.min_m <= self.max_m <= 0.5, '0 < min_m <= max_m <= 0.5')


@dataclass(frozen=True, kw_only=True)
class Lighting(Perturbation):
    """All lights dimmer or brighter by one factor, and turned about the vertical.

    Attributes:
        low, high: bounds of the factor.
        turn_rad: the lights turn by up to this much, either way.

    """

    name: ClassVar[str] = 'lighting'
    low: float = 0.4
    high: float = 1.6
    turn_rad: float = 0.8

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(0 < self.low <= self.high <= 5, '0 < low <= high <= 5')
        self._check(0 <= self.turn_rad <= math.pi, '0 <= turn_rad <= pi')


@dataclass(frozen=True, kw_only=True)
class TableTexture(Perturbation):
    """Another texture on what the objects stand on; `texture` names it, or any."""

    name: ClassVar[str] = 'table_texture'
    texture: str = ANY


@dataclass(frozen=True, kw_only=True)
class ImageNoise(Perturbation):
    """Noise on every pixel of every picture, another in each step; `strength` weak or strong."""

    name: ClassVar[str] = 'image_noise'
    strength: str = 'weak'

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(self.strength in ('weak', 'strong'), 'strength=weak|strong')


@dataclass(frozen=True, kw_only=True)
class InstructionTemplate(Perturbation):
    """The instruction said otherwise; `index` 0..15 of perturbation_senses, -1: drawn."""

    name: ClassVar[str] = 'instruction_template'
    index: int = -1

    def __post_init__(self) -> None:
        """Check the values."""
        self._check(-1 <= self.index <= 15, 'index=0..15, or -1')


# The order in which they are applied, and in which a task's canonical name has them.
KINDS: dict[str, type[Perturbation]] = {
    kind.name: kind
    for kind in (
        LayoutShift,
        Obstacle,
        Distractors,
        RobotPose,
        Reposition,
        Lighting,
        TableTexture,
        ImageNoise,
        InstructionTemplate,
    )
}


def parse_perturbation(text: str) -> Perturbation:
    """Return the perturbation that 'NAME[:KEY=VALUE,...]' says.

    Raises:
        PerturbationError: names what is unknown or out of range, and the choices.

    """
    name, _, told = text.partition(':')
    if name not in KINDS:
        raise PerturbationError(f"Unknown perturbation '{name}'; there are: {', '.join(KINDS)}.")
    defaults = {field.name: field.default for field in fields(KINDS[name])}
    values: dict[str, Any] = {}
    for item in filter(None, told.split(',')):
        key, equals, value = item.partition('=')
        if not equals or key not in defaults or key in values:
            raise PerturbationError(
                f"Perturbation '{name}' cannot take '{item}'; expected KEY=VALUE, each key once, "
                f'of: {", ".join(f"{key}={default}" for key, default in defaults.items())}.'
            )
        values[key] = _value(name, key, value, type(defaults[key]))
    return KINDS[name](**values)


def split_task(task: str) -> tuple[str, tuple[Perturbation, ...]]:
    """Return a task's base name and its perturbations, in the order of KINDS.

    Raises:
        PerturbationError: see `parse_perturbation`; or the same name twice.

    """
    base, *texts = task.split(SEPARATOR)
    found = [parse_perturbation(text) for text in texts]
    names = [perturbation.name for perturbation in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PerturbationError(f"Task '{task}' has {', '.join(twice)} twice; expected it once.")
    return base, tuple(sorted(found, key=lambda one: list(KINDS).index(one.name)))


def join_task(base: str, perturbations: tuple[Perturbation, ...]) -> str:
    """Return the canonical name of a perturbed task; `split_task` takes it back."""
    return SEPARATOR.join([base, *map(str, perturbations)])


def _value(name: str, key: str, text: str, kind: type) -> int | float | str:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    is_number = kind in (int, float)
    if (is_number and not math.isfinite(value)) or (key == 'seed' and value < 0) or not text:
        wanted = 'a whole number, 0 or more' if key == 'seed' else kind.__name__
        raise PerturbationError(f"Perturbation '{name}': {key}='{text}'; expected {wanted}.")
    return value
