"""Rendering LIBERO fast on machines without a GPU; the physics stays untouched.

Software OpenGL is bound by vertices (about 300,000 triangles), and the reflective floor draws
the scene twice. `fast` therefore turns off reflection, shadows and multisampling, makes the
framebuffer as large as the picture, and thins the display meshes that take part in no collision.
Pixels differ a little from the benchmark's; `stock` keeps them.

A broken off-screen context can return whatever lies in memory without an error (seen once here,
with robosuite 1.5): `check_drawing` proves that what is drawn is what is read.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import fast_simplification
import mujoco
import numpy as np
from scipy.spatial import cKDTree

from sim_bridge.environment import SimulatorError

MODES = ('auto', 'fast', 'stock')
KEEP_FACES = 0.3
MIN_FACES = 800
TEST_COLOURS = ((255, 0, 255), (0, 255, 0))
NEAREST = 8  # candidates when a thinned corner is snapped to an original one

log = logging.getLogger(__name__)
_thinned: dict[tuple, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}


def choose(mode: str) -> str:
    """Return 'fast' or 'stock'; 'auto' is stock where there is a GPU."""
    if mode not in MODES:
        raise ValueError(f"rendering '{mode}' is not one of: {', '.join(MODES)}.")
    if mode != 'auto':
        return mode
    return 'stock' if has_gpu() else 'fast'


def has_gpu() -> bool:
    """Say whether an NVIDIA device is present."""
    return Path('/dev/nvidia0').exists()


def set_default_backend() -> None:
    """Choose MuJoCo's OpenGL backend where the environment leaves it open."""
    backend = 'egl' if has_gpu() else 'osmesa'
    os.environ.setdefault('MUJOCO_GL', backend)
    os.environ.setdefault('PYOPENGL_PLATFORM', os.environ['MUJOCO_GL'])


def make_fast(sim: Any, pixels: int, thin_meshes: bool = True) -> None:
    """Speed up a robosuite simulation's off-screen rendering, in place.

    Args:
        sim: robosuite's MjSim.
        pixels: side of the square picture.
        thin_meshes: also thin the display meshes; False keeps every triangle.

    """
    model = sim.model._model
    context = sim._render_context_offscreen
    context.gl_ctx.make_current()
    for mesh in _display_only_meshes(model) if thin_meshes else ():
        _thin(model, mesh)
    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = pixels
    model.vis.global_.offheight = pixels
    context.con.free()
    context.con = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context.con)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        context.scn.flags[flag] = 0


def check_drawing(sim: Any, pixels: int) -> None:
    """Fill the off-screen picture with two colours in turn and read them back.

    Raises:
        SimulatorError: what was read is not what was drawn.

    """
    context = sim._render_context_offscreen
    context.gl_ctx.make_current()
    area = mujoco.MjrRect(0, 0, pixels, pixels)
    picture = np.zeros((pixels, pixels, 3), np.uint8)
    for colour in TEST_COLOURS:
        mujoco.mjr_rectangle(area, *(channel / 255 for channel in colour), 1.0)
        mujoco.mjr_readPixels(rgb=picture, depth=None, viewport=area, con=context.con)
        if (picture != colour).any():
            mean = tuple(picture.mean((0, 1)).round().astype(int).tolist())
            raise SimulatorError(
                f'the off-screen picture was filled with {colour} and reads {mean} on average: '
                f'rendering with MUJOCO_GL={os.environ.get("MUJOCO_GL")} is broken. '
                'Run: grape doctor'
            )


def _display_only_meshes(model: mujoco.MjModel) -> list[int]:
    shown, colliding = set(), set()
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        takes_part = model.geom_contype[geom] or model.geom_conaffinity[geom]
        (colliding if takes_part else shown).add(int(model.geom_dataid[geom]))
    return sorted(shown - colliding)


def _thin(model: mujoco.MjModel, mesh: int) -> None:
    """Replace a mesh's faces by fewer ones that use the original vertices."""
    first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    target = max(MIN_FACES, int(count * KEEP_FACES))
    if count <= target:
        return
    start, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    points = np.array(model.mesh_vert[start : start + vertices], np.float32)
    key = (vertices, count, float(points.sum()))
    if key not in _thinned:
        rows = slice(first, first + count)
        normal_start = int(model.mesh_normaladr[mesh])
        normals = model.mesh_normal[normal_start : normal_start + int(model.mesh_normalnum[mesh])]
        _thinned[key] = _thinned_faces(
            points,
            np.array(model.mesh_face[rows]),
            np.array(model.mesh_facenormal[rows]),
            np.array(model.mesh_facetexcoord[rows]),
            np.array(normals),
            target,
        )
    faces, face_normals, face_texcoords = _thinned[key]
    rows = slice(first, first + len(faces))
    model.mesh_face[rows] = faces
    model.mesh_facenormal[rows] = face_normals
    model.mesh_facetexcoord[rows] = face_texcoords
    model.mesh_facenum[mesh] = len(faces)


def _thinned_faces(
    points: np.ndarray,
    faces: np.ndarray,
    face_normals: np.ndarray,
    face_texcoords: np.ndarray,
    normals: np.ndarray,
    target: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Collapse edges, then give every new corner the ids of the best original corner.

    Quadric collapse needs welded vertices; texture and normal ids exist per original corner only,
    so a new corner takes those of the nearest one, preferring a normal that fits its face.
    """
    welded, inverse = np.unique(np.round(points, 6), axis=0, return_inverse=True)
    joined = inverse.reshape(-1)[faces].astype(np.int32)
    a, b, c = joined.T
    joined = joined[(a != b) & (b != c) & (a != c)]
    new_points, new_faces = fast_simplification.simplify(
        welded.astype(np.float32), joined, target_count=target
    )
    corners = new_points[new_faces]  # (F, 3, 3)
    face_direction = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    face_direction /= np.linalg.norm(face_direction, axis=1, keepdims=True) + 1e-12
    original = points[faces.reshape(-1)]
    distance, nearest = cKDTree(original).query(corners.reshape(-1, 3), k=NEAREST)
    shape = (len(new_faces), 3, NEAREST)
    distance, nearest = distance.reshape(shape), nearest.reshape(shape)
    fits = (normals[face_normals.reshape(-1)[nearest]] * face_direction[:, None, None]).sum(-1)
    score = fits - 1e3 * (distance - distance.min(-1, keepdims=True))
    best = np.take_along_axis(nearest, score.argmax(-1)[..., None], -1)[..., 0]
    return (
        faces.reshape(-1)[best],
        face_normals.reshape(-1)[best],
        face_texcoords.reshape(-1)[best],
    )
