"""Depth and camera geometry out of MuJoCo: a depth buffer in metres, a pinhole in the base frame.

Thinned display meshes (rendering `fast`) move the surface a little; docs/reference/keypoints.md
states by how much.
"""

from __future__ import annotations

import mujoco
import numpy as np

from grape_episode.camera import CameraGeometry
from sim_bridge.environment import SimulatorError
from sim_bridge.libero_scene import BASE_BODY

OPTICAL_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])  # MuJoCo's cameras look along -z, y up


def metric_depth(buffer: np.ndarray, model: mujoco.MjModel) -> np.ndarray:
    """Return depth along the optical axis (H, W) float32 m of a depth buffer in [0, 1].

    Raises:
        SimulatorError: the buffer is no depth buffer: off-screen rendering is broken.

    """
    near = model.vis.map.znear * model.stat.extent
    far = model.vis.map.zfar * model.stat.extent
    buffer = np.asarray(buffer, np.float64).reshape(buffer.shape[:2])
    if not (np.isfinite(buffer).all() and buffer.min() >= 0 and buffer.max() <= 1):
        raise SimulatorError(
            f'the depth buffer reads {buffer.min():.3g} .. {buffer.max():.3g}; expected 0 .. 1: '
            'off-screen rendering is broken. Run: grape doctor'
        )
    return (near / (1.0 - buffer * (1.0 - near / far))).astype(np.float32)


def camera_geometry(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, pixels: int
) -> CameraGeometry:
    """Return the geometry of a camera's square pictures as robosuite gives them: upside down."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
    if index < 0:
        raise SimulatorError(f"there is no camera '{camera}' in this scene.")
    focal = 0.5 * pixels / np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
    middle = (pixels - 1) / 2
    base = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, BASE_BODY)
    base_turn = data.xmat[base].reshape(3, 3)
    transform = np.eye(4)
    turn = data.cam_xmat[index].reshape(3, 3) @ OPTICAL_FROM_OPENGL
    transform[:3, :3] = base_turn.T @ turn
    transform[:3, 3] = base_turn.T @ (data.cam_xpos[index] - data.xpos[base])
    upside_down = np.array([[focal, 0, middle], [0, -focal, middle], [0, 0, 1.0]])
    return CameraGeometry(upside_down, transform, pixels, pixels)
