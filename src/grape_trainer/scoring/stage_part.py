"""Parts that open, close, turn on and turn off: how far they are, and which way they have to go.

An environment declares at START what it acts on (EpisodeInfo.environment):

    parts:  {'cabinet_1_top_region': 'cabinet_1_top'}      goal argument -> keypoint on the part
    joints: {'cabinet_1_top': {kind: slide, axis: [0, 1, 0], value: 0.0,
                               reached: {open: 0.14, close: 0.0}}}

The joint's value at every state follows from the keypoint's path, so that nothing but keypoints
has to be recorded. A goal is reached beyond its value, seen from that of the opposite goal. What
was so from the start is not the robot's doing: it counts once it was undone by half and redone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from scipy.spatial.transform import Rotation

from grape_trainer.scoring.stage_definition import StageError

# Goals that have a direction (LIBERO's predicates), and the event that each ends with.
AIMED_EVENTS: Mapping[str, str] = {
    'open': 'opened',
    'close': 'closed',
    'turnon': 'turned_on',
    'turnoff': 'turned_off',
}
OPPOSITES: Mapping[str, str] = {
    'open': 'close',
    'close': 'open',
    'turnon': 'turnoff',
    'turnoff': 'turnon',
}
# The first that fits an instruction counts: 'close the open drawer' is to close.
AIM_VERBS: tuple[tuple[str, str], ...] = (
    (r'\b(turn|switch)\b.*\boff\b', 'turnoff'),
    (r'\b(turn|switch)\b.*\bon\b', 'turnon'),
    (r'\b(close|shut)\b', 'close'),
    (r'\bopen\b', 'open'),
)
# A keypoint this near to a hinge's axis says too little about the angle; its orientation does.
SHORTEST_ARM_M = 0.02

Vector = tuple[float, float, float]


class Joint(BaseModel):
    """How a part moves; values in m (slide) or rad (hinge), vectors in the robot base frame."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    kind: Literal['slide', 'hinge']
    axis: Vector  # along which, or right-handed about which, the value grows
    value: float  # at the first state
    reached: dict[str, float]  # goal predicate -> the value beyond which it is reached
    pivot_m: Vector | None = None  # a point on a hinge's axis

    @field_validator('axis')
    @classmethod
    def _unit(cls, axis: Vector) -> Vector:
        length = float(np.linalg.norm(axis))
        if not 0 < length < np.inf:
            raise ValueError(f'axis is {axis}; expected a direction')
        return tuple(float(v) / length for v in axis)

    @model_validator(mode='after')
    def _complete(self) -> Joint:
        for aim, value in self.reached.items():
            if aim not in OPPOSITES:
                raise ValueError(f"reached names '{aim}'; expected: {', '.join(OPPOSITES)}")
            if self.reached.get(OPPOSITES[aim], value) == value:
                raise ValueError(f"'{aim}' needs '{OPPOSITES[aim]}' with another value beside it")
        if self.kind == 'hinge' and self.pivot_m is None:
            raise ValueError('a hinge needs pivot_m, a point on its axis')
        return self

    def values(self, position_m: np.ndarray, turn: Rotation | None) -> np.ndarray:
        """Return the joint's value (T+1,) from a keypoint on the part.

        Args:
            position_m: (T+1, 3) of the keypoint.
            turn: the T+1 rotations from the first one; None where they are not known.

        Raises:
            StageError: a hinge whose keypoint is on its axis and has no orientation.

        """
        axis = np.array(self.axis)
        if self.kind == 'slide':
            return self.value + (position_m - position_m[0]) @ axis
        arm_m = position_m - self.pivot_m
        arm_m = arm_m - np.outer(arm_m @ axis, axis)
        if np.linalg.norm(arm_m[0]) >= SHORTEST_ARM_M:
            angle = np.arctan2(np.cross(arm_m[0], arm_m) @ axis, arm_m @ arm_m[0])
        elif turn is not None:
            angle = turn.as_rotvec() @ axis
        else:
            raise StageError(
                f'a keypoint on the axis of a hinge needs its orientation; expected it in '
                f'scene_state, or a keypoint {SHORTEST_ARM_M:g} m or more from the axis.'
            )
        return self.value + np.unwrap(angle)

    def beyond(self, values: np.ndarray | float, aim: str) -> np.ndarray:
        """Return whether a goal is reached at each value."""
        return (values - self.reached[aim]) * self._direction(aim) > 0

    def done(self, values: np.ndarray, aim: str) -> np.ndarray:
        """Return (T+1,) whether a goal is reached and was not so from the start."""
        middle = (self.reached[aim] + self.reached[OPPOSITES[aim]]) / 2
        undone = (values - middle) * self._direction(aim) < 0
        undone[0] |= not self.beyond(values[0], aim)
        return self.beyond(values, aim) & np.logical_or.accumulate(undone)

    def share(self, values: np.ndarray, aim: str) -> np.ndarray:
        """Return (T+1,) 0 .. 1, the share that is done of the way from the start to a goal."""
        done = self.done(values, aim)
        if self.beyond(values[0], aim):
            return 1.0 * done
        way = self.reached[aim] - values[0]
        # A start exactly at the goal's value is not beyond it, and has no way to go.
        share = (values - values[0]) / way if way else np.zeros(len(values))
        return np.where(done, 1.0, np.clip(share, 0.0, 1.0))

    def _direction(self, aim: str) -> float:
        return float(np.sign(self.reached[aim] - self.reached[OPPOSITES[aim]]))


def declared_parts(environment: Mapping[str, object]) -> Mapping[str, str]:
    """Return the keypoint of each goal argument that is acted on, {} where none is declared.

    Raises:
        StageError: 'parts' is no mapping.

    """
    parts = environment.get('parts') or {}
    if not isinstance(parts, Mapping):
        raise StageError(
            f"the environment's 'parts' is {parts!r}; expected goal argument -> keypoint, such as "
            "{'stove_1': 'stove_1_knob'}."
        )
    return {str(argument): str(keypoint) for argument, keypoint in parts.items()}


def declared_joint(environment: Mapping[str, object], keypoint: str) -> Joint | None:
    """Return how the part of a keypoint moves, None where the environment declares no joint of it.

    Raises:
        StageError: a declaration that is not complete or contradicts itself.

    """
    joints = environment.get('joints') or {}
    if not isinstance(joints, Mapping):
        raise StageError(f"the environment's 'joints' is {joints!r}; expected keypoint -> joint.")
    if keypoint not in joints:
        return None
    try:
        return Joint.model_validate(joints[keypoint])
    except ValidationError as error:
        problems = '; '.join(
            f'{".".join(map(str, e["loc"])) or "the whole"}: {e["msg"]}' for e in error.errors()
        )
        raise StageError(
            f"the joint that the environment declares for '{keypoint}' cannot be used: {problems}."
            ' Its form is in docs/reference/stages.md.'
        ) from error


def aim_of(instruction: str) -> str:
    """Return the goal predicate that an instruction's verb says: open, close, ...; '' for none."""
    text = instruction.lower()
    return next((aim for pattern, aim in AIM_VERBS if re.search(pattern, text)), '')
