"""What an object looks like, and whether it is where a tracker believes it to be.

The pixels of an object's mask become a small coloured point cloud. Moved to a believed pose it
predicts depth and colour: where both fit, the object is seen; where something is nearer, it is
covered; where the camera looks through it, it is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint_lifting import depth_windows, extent_centre, object_points
from grape_trainer.scoring.keypoint_rigid import Pose

MODEL_POINTS = 160
DEPTH_TOLERANCE_M = 0.015
COLOUR_TOLERANCE = 30.0  # of 8-bit CIELAB, after the common change of brightness is taken off
BRIGHTNESS_CHANGE = 40.0  # of 8-bit L; more is another object, not another light


@dataclass(frozen=True)
class Frame:
    """One picture, prepared once for all objects."""

    grey: np.ndarray  # (H, W) uint8
    lab: np.ndarray  # (H, W, 3) float32, 8-bit CIELAB, smoothed over 3 x 3
    depth_m: np.ndarray  # (H, W) float32, 0 or NaN where there is no measurement


@dataclass(frozen=True)
class Agreement:
    """How a pose fits a picture, over the N model points."""

    seen: np.ndarray  # (N,) bool, depth and colour fit
    covered: np.ndarray  # (N,) bool, something nearer is there, or another colour
    absent: np.ndarray  # (N,) bool, the camera looks through the point
    pixels: np.ndarray  # (N, 2) float64 u, v
    depth_m: np.ndarray  # (N,) predicted

    @property
    def seen_share(self) -> float:
        """Return the share of the points that is seen."""
        return float(self.seen.mean())

    @property
    def absent_share(self) -> float:
        """Return the share of the points that the camera looks through."""
        return float(self.absent.mean())


@dataclass(frozen=True)
class ObjectModel:
    """An object as the first picture shows it."""

    name: str
    points_m: np.ndarray  # (N, 3) base frame
    lab: np.ndarray  # (N, 3) float32
    pixels: np.ndarray  # (N, 2) u, v
    centre_m: np.ndarray  # (3,) of the box around all of the mask's points
    radius_m: float  # half of that box's longest side
    mask: np.ndarray  # (H, W) bool, the object's own pixels

    def agreement(self, pose: Pose, frame: Frame, camera: CameraGeometry) -> Agreement:
        """Compare a picture with what this pose predicts."""
        pixels, depth = camera.project(pose.apply(self.points_m))
        windows, inside = depth_windows(frame.depth_m, pixels, 1)
        off = windows - depth[:, None]
        measured = np.isfinite(off)
        near = (np.abs(np.where(measured, off, np.inf)) < DEPTH_TOLERANCE_M).any(axis=1)
        behind = (np.where(measured, off, np.inf) > DEPTH_TOLERANCE_M).all(axis=1)
        behind &= measured.any(axis=1)
        near &= inside & (depth > 0)
        columns, rows = np.rint(np.where(near[:, None], pixels, 0)).astype(np.int64).T
        change = frame.lab[rows, columns] - self.lab
        if near.any():
            brighter = np.median(change[near, 0])
            change[:, 0] -= np.clip(brighter, -BRIGHTNESS_CHANGE, BRIGHTNESS_CHANGE)
        seen = near & (np.linalg.norm(change, axis=1) < COLOUR_TOLERANCE)
        absent = inside & behind
        return Agreement(seen, ~seen & ~absent, absent, pixels, depth)


def prepare(image: np.ndarray, depth_m: np.ndarray) -> Frame:
    """Return the Frame of a picture (H, W, 3) uint8 RGB and its depth (H, W) m."""
    import cv2

    image = np.ascontiguousarray(image)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return Frame(grey, cv2.GaussianBlur(lab, (3, 3), 0), np.asarray(depth_m, np.float32))


def build_model(name: str, mask: np.ndarray, frame: Frame, camera: CameraGeometry) -> ObjectModel:
    """Make an object's model of its mask (H, W) bool in the first picture.

    Raises:
        KeypointError: the mask has another size, or too few pixels with depth.

    """
    points_m, pixels = object_points(camera, frame.depth_m, mask, name)
    own = np.zeros(mask.shape, bool)
    own[pixels[:, 1], pixels[:, 0]] = True
    chosen = np.unique(np.linspace(0, len(points_m) - 1, MODEL_POINTS).round().astype(np.int64))
    columns, rows = pixels[chosen].T
    return ObjectModel(
        name=name,
        points_m=points_m[chosen],
        lab=frame.lab[rows, columns],
        pixels=pixels[chosen].astype(np.float64),
        centre_m=extent_centre(points_m),
        radius_m=float(np.ptp(points_m, axis=0).max()) / 2,
        mask=own,
    )
