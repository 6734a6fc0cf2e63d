"""The hands behind LIBERO's scene: moves, places and repaints what is in a running simulation.

Places are in the robot's base frame, whose axes are the world's in every LIBERO scene. Whatever
is changed in the model itself is kept as it was built and put back by `restore`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from sim_bridge.environment import SimulatorError
from sim_bridge.libero_objects import upright_quaternion
from sim_bridge.libero_scene import BASE_BODY, CORNERS, FINGERS, ROBOT, LiberoScene
from sim_bridge.perturbation_layout import Box

ARM_JOINTS = 7
ON_SURFACE_M = 0.02  # a bottom this close to the lowest one is on the table
DROP_M = 0.003  # above the table, where a thing is put
RGB_ROLE = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)


class LiberoStage:
    """One built simulation; nothing here draws random numbers."""

    def __init__(self, env: Any, scene: LiberoScene) -> None:
        """Take a simulation that is as it was built (`env`: LIBERO's wrapper)."""
        self.scene = scene
        self._env, self._model, self._data = env, scene.model, scene.data
        objects = env.env.objects_dict
        self.objects = {name: objects[name] for name in scene.bodies if name in objects}
        self._light = {
            name: getattr(self._model, name).copy()
            for name in ('light_diffuse', 'light_ambient', 'light_specular', 'light_dir')
        }
        headlight = self._model.vis.headlight
        self._headlight = {
            name: getattr(headlight, name).copy() for name in ('diffuse', 'ambient', 'specular')
        }
        self._painted: dict[int, np.ndarray] = {}  # texture -> its own pixels
        body = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_BODY, BASE_BODY)
        self._base_m = self._data.xpos[body].copy()

    def restore(self) -> None:
        """Put the model's lights and textures back."""
        for name, values in self._light.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values
        for texture, pixels in self._painted.items():
            self._upload(texture, pixels)
        self._painted.clear()

    def bounds(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners (3,), (3,) of the upright box around what collides of a thing."""
        model, data = self._model, self._data
        collides = (model.geom_contype | model.geom_conaffinity) != 0
        mine = model.body_rootid[model.geom_bodyid] == self.scene.bodies[name]
        geoms = np.flatnonzero(collides & mine)
        turns = data.geom_xmat[geoms].reshape(-1, 1, 3, 3)
        centres, halves = np.split(model.geom_aabb[geoms], 2, axis=1)
        local = centres[:, None] + CORNERS * halves[:, None]
        corners = (turns @ local[..., None])[..., 0] + data.geom_xpos[geoms, None] - self._base_m
        return corners.min((0, 1)), corners.max((0, 1))

    def boxes(self) -> dict[str, Box]:
        """Return what each thing covers."""
        bounds = {name: self.bounds(name) for name in self.scene.bodies}
        return {name: Box(low[:2], high[:2]) for name, (low, high) in bounds.items()}

    def surface_z(self, names: Iterable[str]) -> float:
        """Return the height of what these objects stand on, m in the base frame."""
        return min(self.bounds(name)[0][2] for name in names)

    def on_surface(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the objects that stand on the table or floor itself."""
        names = list(names)
        limit = self.surface_z(names) + ON_SURFACE_M
        return tuple(name for name in names if self.bounds(name)[0][2] < limit)

    def shift(self, names: Iterable[str], offset_m: np.ndarray) -> None:
        """Move objects over the table by (2,)."""
        for name in names:
            self._data.qpos[self._position(name)][:2] += offset_m
            self._data.qvel[self._velocity(name)] = 0
        mujoco.mj_forward(self._model, self._data)

    def put(self, name: str, place_m: np.ndarray, surface_z: float, yaw_rad: float) -> None:
        """Stand an object upright with the middle of its footprint at (2,)."""
        pose = self._data.qpos[self._position(name)]
        pose[:3] = (*(self._base_m[:2] + place_m), self._base_m[2] + surface_z)
        pose[3:] = upright_quaternion(self.objects[name], yaw_rad)
        self._data.qvel[self._velocity(name)] = 0
        mujoco.mj_forward(self._model, self._data)
        low, high = self.bounds(name)
        pose[:2] += place_m - (low[:2] + high[:2]) / 2
        pose[2] += surface_z + DROP_M - low[2]
        mujoco.mj_forward(self._model, self._data)

    def size(self, name: str, yaw_rad: float) -> Box:
        """Return what an object would cover if it stood upright in the middle of the frame."""
        kept = self._data.qpos.copy(), self._data.qvel.copy()
        self.put(name, np.zeros(2), 0.0, yaw_rad)
        low, high = self.bounds(name)
        self._data.qpos[:], self._data.qvel[:] = kept
        mujoco.mj_forward(self._model, self._data)
        return Box(low[:2], high[:2])

    def set_mass(self, name: str, mass_kg: float) -> None:
        """Make an object heavier or lighter, for good; its inertia goes with it."""
        body = self.scene.bodies[name]
        factor = mass_kg / self._model.body_subtreemass[body]
        inside = self._model.body_rootid == body
        self._model.body_mass[inside] *= factor
        self._model.body_inertia[inside] *= factor
        mujoco.mj_setConst(self._model, self._data)

    def turn_joints(self, offsets_rad: np.ndarray) -> None:
        """Turn the arm's joints by (7,)."""
        self._data.qpos[self._env.robots[0]._ref_joint_pos_indexes] += offsets_rad
        mujoco.mj_forward(self._model, self._data)

    def light(self, factor: float, turn_rad: float) -> None:
        """Make all lights stronger by a factor and turn them about the vertical."""
        for name in ('light_diffuse', 'light_ambient', 'light_specular'):
            getattr(self._model, name)[:] = self._light[name] * factor
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values * factor
        turn = Rotation.from_euler('z', turn_rad)
        self._model.light_dir[:] = turn.apply(self._light['light_dir'])

    def paint_surface(self, picture: Path) -> None:
        """Cover what the objects stand on with a picture."""
        textures = self._surface_textures()
        if not textures:
            raise SimulatorError('what the objects stand on has no texture that can be replaced.')
        for texture in textures:
            self._painted.setdefault(texture, self._pixels(texture).copy())
            height, width, _ = self._pixels(texture).shape
            with Image.open(picture) as opened:
                pixels = np.asarray(opened.convert('RGB').resize((width, height)))
            self._upload(texture, pixels)

    def tilt_rad(self, name: str) -> float:
        """Return by how much an object leans from standing upright."""
        upright = Rotation.from_quat(np.roll(upright_quaternion(self.objects[name], 0.0), -1))
        body = self.scene.bodies[name]
        now = Rotation.from_matrix(self._data.xmat[body].reshape(3, 3))
        up = (now * upright.inv()).apply([0.0, 0.0, 1.0])
        return float(np.arccos(np.clip(up[2], -1.0, 1.0)))

    def touched_by_robot(self) -> set[str]:
        """Return what the robot is in contact with, besides itself."""
        return self._touching({ROBOT, *FINGERS})

    def hand_m(self) -> np.ndarray:
        """Return where over the table the hand is, (2,)."""
        return self.scene.end_effector()[0][:2]

    def _touching(self, names: set[str]) -> set[str]:
        """Return what is in contact with one of these and is none of them."""
        pairs = [set(pair.split('|')) for pair in self.scene.snapshot(1.0, False).contacts]
        return {name for pair in pairs if len(pair & names) == 1 for name in pair - names}

    def _surface_textures(self) -> list[int]:
        """Return the textures of what the objects rest on."""
        surfaces = self._touching(set(self.objects)) - set(self.scene.bodies)
        model, found = self._model, set()
        for geom in range(model.ngeom):
            root = model.body_rootid[model.geom_bodyid[geom]]
            owner = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, root)
            material = model.geom_matid[geom]
            if owner in surfaces and material >= 0:
                found.add(int(model.mat_texid[material, RGB_ROLE]))
        return sorted(found - {-1})

    def _pixels(self, texture: int) -> np.ndarray:
        """Return a view (H, W, C) of a texture's pixels."""
        model = self._model
        height, width = int(model.tex_height[texture]), int(model.tex_width[texture])
        channels, start = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
        count = height * width * channels
        return model.tex_data[start : start + count].reshape(height, width, channels)

    def _upload(self, texture: int, pixels: np.ndarray) -> None:
        self._pixels(texture)[..., :3] = pixels[..., :3]
        context = self._env.sim._render_context_offscreen
        if context is not None:
            mujoco.mjr_uploadTexture(self._model, context.con, texture)

    def _position(self, name: str) -> slice:
        start = int(self._model.jnt_qposadr[self._joint(name)])
        return slice(start, start + 7)

    def _velocity(self, name: str) -> slice:
        start = int(self._model.jnt_dofadr[self._joint(name)])
        return slice(start, start + 6)

    def _joint(self, name: str) -> int:
        joint = self.objects[name].joints[-1]
        return mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_JOINT, joint)
