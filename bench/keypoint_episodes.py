"""Episodes of the scripted expert with depth and truth, in process, for bench_keypoints.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from grape_episode.camera import CameraGeometry
from sim_bridge.expert import Expert
from sim_bridge.libero import CAMERA, LiberoEnvironment

VISIBLE_SHARE = 0.25  # of an object's pixels in the first picture: it counts as visible
FEWEST_PIXELS = 40  # in the first picture, or nobody could point at it
CLICK_MISS_PX = 2  # how far a click falls beside the middle of what is visible


@dataclass(frozen=True)
class TruthEpisode:
    """T pictures, turned as the contract turns them, and what the simulator knows of them."""

    task: str
    init_state: int
    images: np.ndarray  # (T, H, W, 3) uint8
    depths_m: np.ndarray  # (T, H, W) float32
    camera: CameraGeometry
    names: tuple[str, ...]
    positions_m: np.ndarray  # (T, K, 3) SceneState's
    pixels: np.ndarray  # (T, K) how many pixels each object has
    first_owner: np.ndarray  # (H, W) index of the object that the first picture shows, or -1
    target: str
    fixtures: frozenset[str]
    success: bool

    def clicks(self) -> dict[str, tuple[float, float]]:
        """Return where a person would click: on the visible part, nearly in its middle.

        This is the simulator's segmentation of the first picture; nothing else of it is used.
        """
        generator = np.random.default_rng(self.init_state)
        found = {}
        for index, name in enumerate(self.names):
            rows, columns = np.nonzero(self.first_owner == index)
            if len(rows) < FEWEST_PIXELS:
                continue
            away = np.hypot(rows - rows.mean(), columns - columns.mean())
            middle = np.array([columns[away.argmin()], rows[away.argmin()]])
            click = middle + generator.integers(-CLICK_MISS_PX, CLICK_MISS_PX + 1, 2)
            limit = (self.camera.width - 1, self.camera.height - 1)
            u, v = np.clip(click, 0, limit)
            found[name] = (float(u), float(v))
        return found

    def visible(self) -> np.ndarray:
        """Return (T, K) bool: enough of the object is in the picture."""
        return self.pixels >= VISIBLE_SHARE * np.maximum(self.pixels[0], FEWEST_PIXELS)


def episodes(
    task: str, init_states: list[int], pixels: int, rendering: str
) -> Iterator[TruthEpisode]:
    """Play a task's initial states with the expert, its first attempt each."""
    env = LiberoEnvironment(pixels, rendering, depth=True)
    try:
        for init_state in init_states:
            yield _episode(env, task, init_state)
    finally:
        env.close()


def _episode(env: LiberoEnvironment, task: str, init_state: int) -> TruthEpisode:
    seen = env.reset(task, init_state, 0)
    expert, camera, info = Expert(env), env.camera_geometry(), env.task_info()
    names = tuple(env.scene.bodies)
    images, depths, positions, counts, first = [], [], [], [], None
    done = False
    for _ in range(info.max_steps):
        owner = _owners(env, names)
        first = owner if first is None else first
        images.append(seen.images[CAMERA])
        depths.append(seen.depths_m[CAMERA])
        positions.append(seen.scene.positions_m[: len(names)])
        counts.append([(owner == index).sum() for index in range(len(names))])
        action = expert.action()
        if done or action is None:
            break
        seen = env.step(action)
        done = seen.scene.success
    return TruthEpisode(
        task=task,
        init_state=init_state,
        images=np.ascontiguousarray(np.array(images)[:, ::-1, ::-1]),
        depths_m=np.ascontiguousarray(np.array(depths)[:, ::-1, ::-1]),
        camera=camera.turned(180),
        names=names,
        positions_m=np.array(positions),
        pixels=np.array(counts),
        first_owner=first[::-1, ::-1],
        target=info.target,
        fixtures=frozenset(env.simulation.env.fixtures_dict),
        success=done,
    )


def _owners(env: LiberoEnvironment, names: tuple[str, ...]) -> np.ndarray:
    """Return which object each pixel (H, W) shows, upside down like the pictures; -1: none."""
    model = env.scene.model
    env._make_current()
    segments = env.simulation.sim.render(
        env.pixels, env.pixels, camera_name=CAMERA, segmentation=True
    )
    is_geom = segments[..., 0] == int(mujoco.mjtObj.mjOBJ_GEOM)
    of_geom = np.full(model.ngeom + 1, -1)  # the last one stands for what is no geom
    for geom in range(model.ngeom):
        entity = env.scene._entity[model.geom_bodyid[geom]]
        of_geom[geom] = names.index(entity) if entity in names else -1
    return of_geom[np.where(is_geom, segments[..., 1], model.ngeom)]
