"""What every environment behind the bridge looks like, and a checker that it does.

An environment is lockstep: nothing moves between two calls of `step`. Adding one takes a class
with these methods and a pass of `check_environment`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from grape_episode.camera import CameraGeometry

ACTION_DIMS = 7


class SimulatorError(RuntimeError):
    """An environment that cannot go on; the text says what to do."""


class UnknownTaskError(ValueError):
    """A task or initial state that does not exist; the text lists the choices."""


@dataclass(frozen=True)
class SceneSnapshot:
    """What is where, in the robot's base frame.

    Attributes:
        names: of the keypoints, the same through an episode.
        positions_m: (K, 3) float64.
        quaternions_xyzw: (K, 4) float64.
        gripper_opening: measured, 0 closed .. 1 open.
        grasped: names of the objects that both fingers touch.
        contacts: 'a|b', sorted names, entities in contact.
        collisions: the contacts of the robot or of the held target with what is neither the
            target, nor its support, nor the receptacle.
        success: of the task.

    """

    names: tuple[str, ...]
    positions_m: np.ndarray
    quaternions_xyzw: np.ndarray
    gripper_opening: float
    grasped: tuple[str, ...]
    contacts: tuple[str, ...]
    collisions: tuple[str, ...]
    success: bool


@dataclass(frozen=True)
class Observation:
    """One observation.

    Attributes:
        images: camera -> (H, W, 3) uint8 RGB as the simulator renders it; {} without rendering.
        joint_names: J names.
        joint_positions: (J,) float64, rad (fingers m).
        ee_position_m: (3,) float64 in the base frame.
        ee_quaternion_xyzw: (4,) float64 in the base frame.
        scene: see SceneSnapshot.
        depths_m: camera -> (H, W) float32 along the optical axis, pixel for pixel with its image;
            {} unless the environment was asked for depth.

    """

    images: dict[str, np.ndarray]
    joint_names: tuple[str, ...]
    joint_positions: np.ndarray
    ee_position_m: np.ndarray
    ee_quaternion_xyzw: np.ndarray
    scene: SceneSnapshot
    depths_m: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PartJoint:
    """How a part moves (docs/reference/stages.md); m or rad, vectors in the base frame."""

    kind: str  # 'slide' or 'hinge'
    axis: tuple[float, float, float]  # along which, or right-handed about which, it grows
    pivot_m: tuple[float, float, float] | None  # a point on a hinge's axis
    value: float  # at the first observation
    reached: dict[str, float]  # goal predicate -> the value beyond which it is reached


@dataclass(frozen=True)
class TaskInfo:
    """A task as the trainer's stage templates need it.

    Attributes:
        task: its name.
        instruction: in words.
        max_steps: the benchmark's limit.
        init_states: how many there are.
        target: the keypoint that is carried or acted on first.
        receptacle: the keypoint that it goes to; '' without one.
        support: what the target rests on at first.
        goal: predicates with their arguments.
        parts: goal argument -> the keypoint of what moves.
        joints: that keypoint -> how it moves.
        not_obstacles: keypoints that nobody has to keep clear of.
        perturbations: each one's name, seed and parameters (perturbation.py).

    """

    task: str
    instruction: str
    max_steps: int
    init_states: int
    target: str
    receptacle: str
    support: tuple[str, ...]
    goal: tuple[tuple[str, ...], ...]
    parts: dict[str, str] = field(default_factory=dict)
    joints: dict[str, PartJoint] = field(default_factory=dict)
    not_obstacles: tuple[str, ...] = ()
    perturbations: tuple[dict[str, Any], ...] = ()


class Environment(Protocol):
    """One robot in one simulated scene."""

    def reset(self, task: str, init_state: int, seed: int) -> Observation:
        """Begin an episode: fixed initial state, settled.

        Raises:
            UnknownTaskError: no such task or initial state.

        """

    def step(self, action: np.ndarray) -> Observation:
        """Apply (7,) float64 policy units: pose deltas in [-1, 1], the gripper's opening 0..1."""

    def task_info(self) -> TaskInfo:
        """Describe the current task."""

    def camera_geometry(self) -> CameraGeometry:
        """Return the geometry of the camera's pictures; only asked of one that gives pictures."""

    def describe(self) -> dict[str, Any]:
        """Return versions and settings, for the record."""

    def close(self) -> None:
        """Release the simulator."""


def check_environment(env: Environment, task: str, steps: int = 12) -> list[str]:
    """Play two short episodes and return what breaks the protocol; [] is a pass.

    Checks shapes, types, units, lockstep determinism (same seed and actions: the same
    observations bit for bit), that the task is not done before it begins, the gripper's polarity
    and the error path of an unknown task.
    """
    problems: list[str] = []
    actions = np.zeros((2 * steps, ACTION_DIMS))
    actions[:, :3] = np.random.default_rng(0).uniform(-0.3, 0.3, (2 * steps, 3))
    actions[:steps, 6] = 1.0
    episodes = []
    for _ in range(2):
        track = [env.reset(task, 0, 0)]
        track += [env.step(action) for action in actions]
        episodes.append(track)
    for step, (first, second) in enumerate(zip(*episodes, strict=True)):
        problems += [f'step {step}: {text}' for text in _observation_problems(first)]
        if not _equal(first, second):
            problems.append(f'step {step}: a second run of the same actions differs')
    if episodes[0][0].scene.success is not False:
        problems.append(
            f'scene.success is {episodes[0][0].scene.success!r} after reset; expected False'
        )
    opened = episodes[0][steps].scene.gripper_opening
    closed = episodes[0][-1].scene.gripper_opening
    if not (opened > 0.7 and closed < 0.3):
        problems.append(
            f'gripper: opening {opened:.2f} after opening and {closed:.2f} after closing; '
            'expected above 0.7 and below 0.3 (0 is closed)'
        )
    try:
        env.reset('no_such_suite/0', 0, 0)
        problems.append("reset('no_such_suite/0') did not raise UnknownTaskError")
    except UnknownTaskError:
        pass
    return problems


def _observation_problems(observation: Observation) -> list[str]:
    problems = []
    for camera, image in observation.images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            problems.append(f'camera {camera} gives {image.dtype} {image.shape}')
        elif image.std() < 1.0:
            problems.append(f'camera {camera} gives a picture of one colour')
    for camera, depth_m in observation.depths_m.items():
        if depth_m.dtype != np.float32 or depth_m.shape != observation.images[camera].shape[:2]:
            problems.append(f'camera {camera} gives depth {depth_m.dtype} {depth_m.shape}')
        elif not (np.isfinite(depth_m).all() and 0 < np.median(depth_m) < 10):
            problems.append(f'camera {camera}: the median depth is {np.median(depth_m)} m')
    scene, count = observation.scene, len(observation.scene.names)
    shapes = {
        'ee_position_m': (observation.ee_position_m, (3,)),
        'ee_quaternion_xyzw': (observation.ee_quaternion_xyzw, (4,)),
        'joint_positions': (observation.joint_positions, (len(observation.joint_names),)),
        'scene.positions_m': (scene.positions_m, (count, 3)),
        'scene.quaternions_xyzw': (scene.quaternions_xyzw, (count, 4)),
    }
    for name, (value, shape) in shapes.items():
        if value.shape != shape or value.dtype != np.float64 or not np.isfinite(value).all():
            problems.append(f'{name} is {value.dtype} {value.shape}; expected float64 {shape}')
    if not np.isclose(np.linalg.norm(observation.ee_quaternion_xyzw), 1.0, atol=1e-6):
        problems.append('ee_quaternion_xyzw is not of length 1')
    if np.abs(observation.ee_position_m).max() > 2.0:
        problems.append(f'ee_position_m is {observation.ee_position_m}; expected metres')
    return problems


def _equal(first: Observation, second: Observation) -> bool:
    return (
        np.array_equal(first.ee_position_m, second.ee_position_m)
        and np.array_equal(first.joint_positions, second.joint_positions)
        and np.array_equal(first.scene.positions_m, second.scene.positions_m)
        and first.scene.contacts == second.scene.contacts
        and all(np.array_equal(first.images[c], second.images[c]) for c in first.images)
    )
