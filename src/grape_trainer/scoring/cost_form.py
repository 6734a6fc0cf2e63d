"""The form of a cost function: what it is called and what it is given (GRAPE appendix E.2).

    stageN_<target|path|collision|grasp>_constraintM(end_effector, keypoints) -> cost

It is a function of one state of a stage and gives one number, 0 or less where the constraint is
satisfied. A function that needs more than the paper's two inputs names it as a further parameter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

CLASSES = ('target', 'path', 'collision', 'grasp')
REQUIRED_INPUTS = ('end_effector', 'keypoints')
# name -> what it is, at the state that the function is asked about
SIGNAL_INPUTS = {
    'held': 'True while the target is in the gripper',
    'collided': 'True while the robot touches what it should not',
    'time_s': 'seconds since the stage began',
    'path_length_m': 'length of the end effector path since the stage began, m',
    'start_end_effector': 'end effector (3,) at the first state of the stage, m',
    'start_keypoints': 'keypoints (K, 3) at the first state of the stage, m',
    'progress': '0 to 1, towards the event that ends the stage (press, fall, move, turn)',
}
NAME_FORM = 'expected stageN_<target|path|collision|grasp>_constraintM'

_NAME = re.compile(r'stage([1-9][0-9]?)_(target|path|collision|grasp)_constraint([1-9][0-9]?)')


@dataclass(frozen=True)
class StageName:
    """A cost function's name, taken apart."""

    stage: int  # from 1
    cost_class: str  # one of CLASSES
    number: int  # from 1


def stage_name(name: str) -> StageName | None:
    """Take a name apart; None for a name of another form."""
    match = _NAME.fullmatch(name)
    return StageName(int(match[1]), match[2], int(match[3])) if match else None


@dataclass(frozen=True)
class StageInputs:
    """The N states of a stage, in m in the robot base frame (z up).

    Keypoint 0 is the target, 1 the receptacle, 2 and up are the obstacles.
    """

    end_effector: np.ndarray  # (N, 3)
    keypoints: np.ndarray  # (N, K, 3)
    held: np.ndarray  # (N,) bool
    collided: np.ndarray  # (N,) bool
    time_s: np.ndarray  # (N,) since the stage began
    progress: np.ndarray | None = None  # (N,) 0 .. 1; None where the stage has no such event

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: arrays that do not belong together, or no state.

        """
        states = len(self.end_effector)
        shapes = {
            'end_effector': (np.shape(self.end_effector), (states, 3)),
            'keypoints': (np.shape(self.keypoints), (states, *np.shape(self.keypoints)[1:2], 3)),
            'held': (np.shape(self.held), (states,)),
            'collided': (np.shape(self.collided), (states,)),
            'time_s': (np.shape(self.time_s), (states,)),
            'progress': (np.shape(self._progress), (states,)),
        }
        wrong = [
            f'{name} is {found}, expected {wanted}'
            for name, (found, wanted) in shapes.items()
            if found != wanted
        ]
        if wrong or not states:
            raise ValueError(
                f"a stage's states: {'; '.join(wrong) or 'there is none'}. Give one row a state."
            )

    @property
    def _progress(self) -> np.ndarray:
        return np.full(len(self.end_effector), np.nan) if self.progress is None else self.progress

    def packed(self) -> tuple[int, int, bytes]:
        """Return N, K and all values as float64 bytes, a row of 3 K + 7 numbers a state."""
        states, count = np.shape(self.keypoints)[:2]
        columns = (
            np.asarray(self.end_effector, np.float64),
            np.reshape(np.asarray(self.keypoints, np.float64), (states, 3 * count)),
            np.stack(
                [self.held, self.collided, self.time_s, self._progress], axis=1, dtype=np.float64
            ),
        )
        return states, count, np.concatenate(columns, axis=1).tobytes()


def unpacked(states: int, count: int, content: bytes) -> StageInputs:
    """Return what `packed` took."""
    table = np.frombuffer(content, np.float64).reshape(states, 3 * count + 7)
    return StageInputs(
        end_effector=table[:, :3],
        keypoints=table[:, 3:-4].reshape(states, count, 3),
        held=table[:, -4] != 0.0,
        collided=table[:, -3] != 0.0,
        time_s=table[:, -2],
        progress=table[:, -1],
    )


def packed_bytes(states: int, count: int) -> int:
    """Return how many bytes `packed` makes of N states with K keypoints."""
    return states * (3 * count + 7) * 8
