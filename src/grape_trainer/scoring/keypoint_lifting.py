"""From pixels with depth to points in the robot base frame, and from a surface to its object.

A depth camera sees surfaces; SceneState, the stages and the costs mean the object itself. What
lies between the two is half the object, 3 cm for a soup can. `extent_centre` bridges it by
symmetry: the middle of the box, along the base frame's axes, around all points that the mask has.
It needs a view that sees an object's top and foot, as a camera that looks down on a table does.
What it gets wrong (a side that no pixel sees) stays with the object as a constant offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint import KeypointError

SURFACE_GAP_M = 0.02  # neighbouring pixels farther apart lie on two surfaces
OWN_GAP_M = 0.03  # a part of a mask farther from its largest part is background
FEWEST_POINTS = 12


@dataclass(frozen=True)
class DepthNoise:
    """Standard deviation of a depth pixel: constant + quadratic z^2, and of a pixel's place.

    quadratic is sub-pixel / (focal length * baseline) of a stereo camera (Intel, "Tuning D400
    depth cameras"): 0.08 px / (425 px * 0.05 m) = 0.004 / m for a RealSense D435.
    """

    constant_m: float = 0.001
    quadratic_per_m: float = 0.004
    pixel_px: float = 0.5


def is_measured(depth_m: np.ndarray) -> np.ndarray:
    """Return where a depth picture holds a measurement: finite and above 0 (REP 118)."""
    return np.isfinite(depth_m) & (depth_m > 0)


def point_map(camera: CameraGeometry, depth_m: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) points in the base frame, NaN without depth, of a depth picture (H, W)."""
    rows, columns = np.mgrid[: camera.height, : camera.width]
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
    depth = np.where(is_measured(depth_m), depth_m, np.nan).astype(np.float64)
    return camera.back_project(pixels, depth.ravel()).reshape(*depth_m.shape, 3)


def surface_labels(points_m: np.ndarray, mask: np.ndarray, gap_m: float) -> np.ndarray:
    """Label the connected surfaces of a mask.

    Args:
        points_m: (H, W, 3), from `point_map`.
        mask: (H, W) bool.
        gap_m: two neighbouring pixels farther apart than this are not connected.

    Returns:
        (H, W) int: -1 outside of the mask or without depth, else a surface's number from 0, the
        largest first.

    """
    mask = mask & np.isfinite(points_m[..., 2])
    labels = np.full(mask.shape, -1)
    if not mask.any():
        return labels
    index = np.arange(mask.size).reshape(mask.shape)
    edges = []
    for axis in (0, 1):
        here = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        there = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        apart = np.linalg.norm(points_m[here] - points_m[there], axis=-1)
        joined = mask[here] & mask[there] & (apart < gap_m)
        edges.append(np.stack([index[here][joined], index[there][joined]]))
    pairs = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1]), pairs), shape=(mask.size, mask.size))
    found = connected_components(graph, directed=False)[1].reshape(mask.shape)[mask]
    _, compact, counts = np.unique(found, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind='stable')] = np.arange(len(counts))
    labels[mask] = rank[compact]
    return labels


def object_points(
    camera: CameraGeometry, depth_m: np.ndarray, mask: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a mask holds of its object: points (N, 3) m and their pixels (N, 2) as u, v.

    Pixels of the background that the mask took in lie on another surface: they are dropped.

    Raises:
        KeypointError: the mask has another size than the picture, or too few pixels with depth.

    """
    if mask.shape != depth_m.shape:
        raise KeypointError(
            f"the mask of '{name}' has the shape {mask.shape}; the depth picture has "
            f'{depth_m.shape}. Make the mask on the first picture of this recording.'
        )
    points_m = point_map(camera, depth_m)
    labels = surface_labels(points_m, mask, SURFACE_GAP_M)
    own = labels == 0
    if own.any():
        to_own, _ = cKDTree(points_m[own]).query(points_m[labels > 0])
        own[labels > 0] = to_own < OWN_GAP_M
    if own.sum() < FEWEST_POINTS:
        raise KeypointError(
            f"'{name}' has {int(own.sum())} pixels with depth in its mask of {int(mask.sum())}; "
            f'expected {FEWEST_POINTS} or more. Choose another mask, or a camera that is closer.'
        )
    rows, columns = np.nonzero(own)
    return points_m[own], np.stack([columns, rows], axis=1)


def extent_centre(points_m: np.ndarray) -> np.ndarray:
    """Return the middle (3,) of the box around points (N, 3), along the base frame's axes."""
    return (points_m.min(axis=0) + points_m.max(axis=0)) / 2


def depth_near(
    depth_m: np.ndarray, pixels: np.ndarray, expected_m: np.ndarray, radius: int = 1
) -> np.ndarray:
    """Return the depth (N,) around pixels (N, 2) that is closest to the expected one (N,).

    At an object's edge half of a window is background: the median of the window would be neither.
    NaN where the window leaves the picture or holds no depth.
    """
    windows, inside = depth_windows(depth_m, pixels, radius)
    off = np.abs(windows - expected_m[:, None])
    off = np.where(np.isfinite(off), off, np.inf)
    best = off.argmin(axis=1)
    found = windows[np.arange(len(windows)), best]
    return np.where(inside & np.isfinite(off.min(axis=1)), found, np.nan)


def depth_windows(
    depth_m: np.ndarray, pixels: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows (N, (2 radius + 1)^2), NaN without depth, and which pixels are inside."""
    height, width = depth_m.shape
    with np.errstate(invalid='ignore'):
        centre = np.nan_to_num(np.rint(pixels), nan=-1.0, posinf=-1.0, neginf=-1.0)
    inside = ((centre >= 0) & (centre < (width, height))).all(axis=1)
    centre = np.where(inside[:, None], centre, 0).astype(np.int64)
    offsets = np.arange(-radius, radius + 1)
    rows = np.clip(centre[:, 1, None, None] + offsets[:, None], 0, height - 1)
    columns = np.clip(centre[:, 0, None, None] + offsets[None, :], 0, width - 1)
    windows = depth_m[rows, columns].reshape(len(pixels), offsets.size**2).astype(np.float64)
    return np.where(is_measured(windows), windows, np.nan), inside


def point_covariance(
    camera: CameraGeometry, points_m: np.ndarray, noise: DepthNoise
) -> np.ndarray:
    """Return the covariance (N, 3, 3) m^2, in the base frame, of points (N, 3) seen by a camera.

    Along the ray's axis it is the depth's noise, across it half a pixel's width at that depth; a
    point off the axis also moves across when its depth is wrong.
    """
    turn = camera.base_from_camera[:3, :3]
    local = (points_m - camera.position_m) @ turn
    depth = local[:, 2]
    sigma_m = noise.constant_m + noise.quadratic_per_m * depth**2
    ray = local / depth[:, None]
    covariance = (sigma_m**2)[:, None, None] * ray[:, :, None] * ray[:, None, :]
    for axis in (0, 1):
        across_m = depth * noise.pixel_px / camera.intrinsics[axis, axis]
        covariance[:, axis, axis] += across_m**2
    return turn @ covariance @ turn.T
