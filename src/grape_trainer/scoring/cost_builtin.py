"""The built-in constraints of pick-and-place, after the paper's appendix E.2, over all states.

A constraint is a function `stageN_<target|path|collision|grasp>_constraintM(end_effector,
keypoints, signals)`. It gets a stage's N states at once, end_effector (N, 3) and keypoints
(N, K, 3) in m in the robot base frame (z up), ordered as in the appendix: 0 the target, 1 the
receptacle, 2: the obstacles. It gives a cost for each state, (N,), 0 or less where satisfied.

What differs from E.2: the carried target's own tracked position is compared with the receptacle
(E.2 uses the end effector, which says nothing after a drop); z is up (E.2 compares index 1); a
path is compared with the straight one of E.2.3 instead of being counted in 1 cm steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from grape_trainer.scoring.objective import GeometrySettings

TARGET, RECEPTACLE, FIRST_OBSTACLE = 0, 1, 2


@dataclass(frozen=True)
class Signals:
    """What else a constraint may look at, over the N states of its stage."""

    held: np.ndarray  # (N,) bool, the target is in the gripper
    collided: np.ndarray  # (N,) bool, SceneState.collisions is not empty
    time_s: np.ndarray  # (N,) since the stage began
    geometry: GeometrySettings
    progress: np.ndarray | None = None  # (N,) 0 .. 1, towards the event that ends the stage


Constraint = Callable[[np.ndarray, np.ndarray, Signals], np.ndarray]


def stage1_target_constraint1(end_effector, keypoints, signals):
    """Distance from the end effector to the target, m (E.2.1 stage 1)."""
    return _distance(end_effector, keypoints[:, TARGET])


def stage2_target_constraint1(end_effector, keypoints, signals):
    """Horizontal distance from the carried target to the receptacle, m (E.2.1 stage 2)."""
    return _distance(keypoints[:, TARGET, :2], keypoints[:, RECEPTACLE, :2])


def stage3_target_constraint1(end_effector, keypoints, signals):
    """Distance from the target to the receptacle it shall rest in or on, m (E.2.1 stage 3)."""
    return _distance(keypoints[:, TARGET], keypoints[:, RECEPTACLE])


def stage1_grasp_constraint1(end_effector, keypoints, signals):
    """Return 1 while the target is not held."""
    return 1.0 - signals.held


def stage2_grasp_constraint1(end_effector, keypoints, signals):
    """Return 1 while the target is not held: a drop on the way."""
    return 1.0 - signals.held


def stage3_grasp_constraint1(end_effector, keypoints, signals):
    """Return 1 while the target is still held: it has to be released."""
    return 1.0 * signals.held


def stage1_collision_constraint1(end_effector, keypoints, signals):
    """Return 1 while the end effector is not above the target (E.2.2 stage 1)."""
    return _below(end_effector, keypoints[:, TARGET], signals.geometry)


def stage1_collision_constraint2(end_effector, keypoints, signals):
    """Clearance missing to all obstacles, m (E.2.2 stage 2)."""
    return _clearance_missing(end_effector, keypoints, signals)


def stage1_collision_constraint3(end_effector, keypoints, signals):
    """Return 1 while the robot touches what is neither the target nor its support."""
    return 1.0 * signals.collided


def stage2_collision_constraint1(end_effector, keypoints, signals):
    """Clearance missing to all obstacles, m, of end effector or held target (E.2.2 stage 2)."""
    return _clearance_missing(end_effector, keypoints, signals)


def stage2_collision_constraint2(end_effector, keypoints, signals):
    """Return 1 while the robot or the held target touches what it should not."""
    return 1.0 * signals.collided


def stage3_collision_constraint1(end_effector, keypoints, signals):
    """Return 1 while the end effector is not above the receptacle's keypoint (E.2.2 stage 3)."""
    return _below(end_effector, keypoints[:, RECEPTACLE], signals.geometry)


def stage3_collision_constraint2(end_effector, keypoints, signals):
    """Clearance missing to all obstacles, m, of end effector or held target."""
    return _clearance_missing(end_effector, keypoints, signals)


def stage3_collision_constraint3(end_effector, keypoints, signals):
    """Return 1 while the robot or the held target touches what it should not."""
    return 1.0 * signals.collided


def stage1_path_constraint1(end_effector, keypoints, signals):
    """Path so far and what remains to the target, over the straight path, minus 1."""
    return _detour(end_effector, keypoints[:, TARGET], signals.geometry)


def stage1_path_constraint2(end_effector, keypoints, signals):
    """Time so far and what remains, over the time of the straight path, minus 1 (E.2.3)."""
    return _delay(end_effector, keypoints[:, TARGET], signals)


def stage2_path_constraint1(end_effector, keypoints, signals):
    """Path so far and what remains to the receptacle, over the straight path, minus 1."""
    return _detour(end_effector, keypoints[:, RECEPTACLE], signals.geometry)


def stage2_path_constraint2(end_effector, keypoints, signals):
    """Time so far and what remains, over the time of the straight path, minus 1 (E.2.3)."""
    return _delay(end_effector, keypoints[:, RECEPTACLE], signals)


def stage3_path_constraint1(end_effector, keypoints, signals):
    """Path so far and what remains to the receptacle, over the straight path, minus 1."""
    return _detour(end_effector, keypoints[:, RECEPTACLE], signals.geometry)


def stage3_path_constraint2(end_effector, keypoints, signals):
    """Time so far and what remains, over the time of the straight path, minus 1 (E.2.3)."""
    return _delay(end_effector, keypoints[:, RECEPTACLE], signals)


def _distance(a, b):
    return np.linalg.norm(a - b, axis=-1)


def _below(end_effector, keypoint, geometry):
    return 1.0 * (end_effector[:, 2] < keypoint[:, 2] - geometry.above_margin_m)


def _clearance_missing(end_effector, keypoints, signals):
    obstacles = keypoints[:, FIRST_OBSTACLE:]
    nearest = _distance(end_effector[:, None], obstacles)
    carried = _distance(keypoints[:, TARGET, None], obstacles)
    nearest = np.where(signals.held[:, None], np.minimum(nearest, carried), nearest)
    return np.maximum(signals.geometry.clearance_m - nearest, 0.0).sum(axis=1)


def _detour(end_effector, goal, geometry):
    steps = np.linalg.norm(np.diff(end_effector, axis=0), axis=-1)
    so_far = np.concatenate(([0.0], np.cumsum(steps)))
    remaining = _distance(end_effector, goal)
    return (so_far + remaining) / max(remaining[0], geometry.straight_floor_m) - 1.0


def _delay(end_effector, goal, signals):
    remaining = _distance(end_effector, goal)
    speed = signals.geometry.straight_speed_mps
    straight = max(remaining[0], signals.geometry.straight_floor_m)
    return (signals.time_s * speed + remaining) / straight - 1.0


SHARED = (_distance, _below, _clearance_missing, _detour, _delay)

BUILTIN: Mapping[str, Constraint] = {
    constraint.__name__: constraint
    for constraint in (
        stage1_target_constraint1,
        stage1_grasp_constraint1,
        stage1_collision_constraint1,
        stage1_collision_constraint2,
        stage1_collision_constraint3,
        stage1_path_constraint1,
        stage1_path_constraint2,
        stage2_target_constraint1,
        stage2_grasp_constraint1,
        stage2_collision_constraint1,
        stage2_collision_constraint2,
        stage2_path_constraint1,
        stage2_path_constraint2,
        stage3_target_constraint1,
        stage3_grasp_constraint1,
        stage3_collision_constraint1,
        stage3_collision_constraint2,
        stage3_collision_constraint3,
        stage3_path_constraint1,
        stage3_path_constraint2,
    )
}
# What looks at recorded contacts says nothing about a trial without them.
NEED_CONTACTS = frozenset(
    (
        'stage1_collision_constraint3',
        'stage2_collision_constraint2',
        'stage3_collision_constraint3',
    )
)
