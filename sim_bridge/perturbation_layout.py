"""Where things may be moved to on a table: rejection sampling on upright boxes, seen from above.

Positions are in the robot's base frame, x forward, y left, m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

TRIES = 300


@dataclass(frozen=True)
class Box:
    """What a thing covers of the table, from one corner to the opposite one."""

    low_m: np.ndarray  # (2,)
    high_m: np.ndarray  # (2,)

    @property
    def centre_m(self) -> np.ndarray:
        """The middle, (2,)."""
        return (self.low_m + self.high_m) / 2

    def moved(self, offset_m: np.ndarray) -> Box:
        """Return this box elsewhere."""
        return Box(self.low_m + offset_m, self.high_m + offset_m)

    def gap_m(self, other: Box) -> float:
        """Return the distance to another box; 0 where they overlap."""
        apart = np.maximum(self.low_m - other.high_m, other.low_m - self.high_m)
        return float(np.linalg.norm(np.maximum(apart, 0.0)))

    def holds(self, other: Box) -> bool:
        """Say whether the other box lies in this one."""
        return bool((other.low_m >= self.low_m).all() and (other.high_m <= self.high_m).all())


def find_offset(
    boxes: Sequence[Box],
    propose: Callable[[], np.ndarray | None],
    others: Iterable[Box],
    area: Box,
    gap_m: float,
) -> np.ndarray | None:
    """Return the first proposed offset (2,) m by which all boxes may be moved.

    Args:
        boxes: move together.
        propose: gives an offset, or None for one that it does not want itself.
        others: must stay `gap_m` away from each box.
        area: must hold every box.
        gap_m: see others.

    Returns:
        None where none of TRIES proposals fits.

    """
    others = list(others)
    for _ in range(TRIES):
        offset_m = propose()
        if offset_m is None:
            continue
        moved = [box.moved(offset_m) for box in boxes]
        if all(area.holds(box) for box in moved) and all(
            box.gap_m(other) >= gap_m for box in moved for other in others
        ):
            return offset_m
    return None


def any_direction(rng: np.random.Generator, min_m: float, max_m: float) -> np.ndarray:
    """Return an offset (2,) of uniform direction and length."""
    angle, length = rng.uniform(-np.pi, np.pi), rng.uniform(min_m, max_m)
    return length * np.array([np.cos(angle), np.sin(angle)])


def near_path(
    rng: np.random.Generator,
    start_m: np.ndarray,
    end_m: np.ndarray,
    along: tuple[float, float],
    aside_m: float,
) -> np.ndarray:
    """Return a point (2,) beside the line from start to end."""
    path = end_m - start_m
    left = np.array([-path[1], path[0]]) / np.linalg.norm(path)
    return start_m + rng.uniform(*along) * path + rng.uniform(-aside_m, aside_m) * left


def distance_to_path(point_m: np.ndarray, start_m: np.ndarray, end_m: np.ndarray) -> float:
    """Return the distance of a point from the line between start and end."""
    path = end_m - start_m
    along = np.clip((point_m - start_m) @ path / (path @ path), 0.0, 1.0)
    return float(np.linalg.norm(point_m - start_m - along * path))
