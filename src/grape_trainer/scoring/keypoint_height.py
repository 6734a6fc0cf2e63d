"""Things that stand on a flat support, found by their height above it. Needs depth, no weights.

The support is the most common height within reach of the robot. What rises above it is cut into
surfaces where depth jumps, so that a carton and the can behind it are two. What stands on
something flat (a bowl on a cabinet) is found in the same way, above that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_lifting import SURFACE_GAP_M, point_map, surface_labels
from grape_trainer.scoring.keypoint_proposal import Proposal, filled, ordered

BIN_M = 0.005
SLOPE_BAND_M = 0.015  # around the most common height: points that the support is fitted to
TOP_SHARE = 0.2  # of a thing's points at one height: a flat top
TOP_FOOTPRINT = 0.6  # what stands on a top covers less of the thing's footprint than this
PART_SIZE = 0.3  # a surface smaller than this share of another one may be a part of it
PART_GAP_M = 0.01  # ... where their footprints are closer than this: a bowl's outer wall


@dataclass(frozen=True)
class HeightContour:
    """What rises above a flat, roughly horizontal support within reach.

    Attributes:
        rise_m: above the support; 2 or 3 standard deviations of the depth are a good choice.
        nearest_m: horizontal distance from the robot's base, which is left out.
        reach_m: horizontal distance from the robot's base.
        hover_m: what begins higher than this above the support is the robot's hand.
        least_area: of the picture; smaller is noise.
        largest_area: of the picture.

    """

    rise_m: float = 0.006
    nearest_m: float = 0.2
    reach_m: float = 1.1
    hover_m: float = 0.07
    least_area: float = 0.0008
    largest_area: float = 0.25

    def propose(
        self,
        image: np.ndarray,
        depth_m: np.ndarray | None = None,
        camera: CameraGeometry | None = None,
    ) -> tuple[Proposal, ...]:
        """Return what stands on the support, from the top of the picture down."""
        if depth_m is None or camera is None:
            raise KeypointError(
                'HeightContour needs a depth picture and the camera; there is none. Record with a '
                'contract that has depth (libero_rgbd), or take ColourContour.'
            )
        points_m = point_map(camera, depth_m)
        distance_m = np.linalg.norm(points_m[..., :2], axis=-1)
        within = (distance_m > self.nearest_m) & (distance_m < self.reach_m)
        height_m = points_m[..., 2] - _support(points_m, within)
        within &= height_m > self.rise_m
        masks = self._things(points_m, height_m, within, self.hover_m)
        for mask in list(masks):
            masks += self._on_top(points_m, mask)
        return ordered([filled(mask) & ~_others(mask, masks) for mask in masks])

    def _things(
        self, points_m: np.ndarray, height_m: np.ndarray, mask: np.ndarray, hover_m: float
    ) -> list[np.ndarray]:
        """Cut a mask into things; what hovers above hover_m rests on nothing."""
        labels = surface_labels(points_m, mask, SURFACE_GAP_M)
        sizes = np.bincount(labels[labels >= 0], minlength=1)
        small = self.least_area * mask.size
        parts = [labels == n for n in np.flatnonzero(sizes >= small / 4)]
        things = _joined(points_m, parts)
        return [
            thing
            for thing in things
            if small <= thing.sum() <= self.largest_area * mask.size
            and height_m[thing].min() < hover_m
        ]

    def _on_top(self, points_m: np.ndarray, thing: np.ndarray) -> list[np.ndarray]:
        """Return what stands on a thing's flat top; the thing's own rim covers all of it."""
        heights = points_m[..., 2][thing]
        top_m, count = _most_common(heights)
        if count < TOP_SHARE * len(heights):
            return []
        above = thing & (points_m[..., 2] > top_m + self.rise_m)
        found = self._things(points_m, points_m[..., 2] - top_m, above, self.hover_m)
        footprint = _area_m2(_footprint(points_m, thing))
        return [
            mask
            for mask in found
            if _area_m2(_footprint(points_m, mask)) < TOP_FOOTPRINT * footprint
        ]


def _support(points_m: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Return the height (H, W) of a plane fitted to the most common height.

    Raises:
        KeypointError: no depth within reach.

    """
    here = points_m[within & np.isfinite(points_m[..., 2])]
    if len(here) < 3:
        raise KeypointError(
            f'{len(here)} pixels have depth within reach of the robot; expected a support with '
            'things on it. Check base_from_camera and the depth topic of the contract.'
        )
    level_m, _ = _most_common(here[:, 2])
    flat = here[np.abs(here[:, 2] - level_m) < SLOPE_BAND_M]
    columns = np.concatenate([flat[:, :2], np.ones((len(flat), 1))], axis=1)
    slope, *_ = np.linalg.lstsq(columns, flat[:, 2], rcond=None)
    # Things' feet pull the plane up: fit once more to what lies on it.
    near = np.abs(columns @ slope - flat[:, 2]) < BIN_M
    if near.sum() >= 3:
        slope, *_ = np.linalg.lstsq(columns[near], flat[near, 2], rcond=None)
    return points_m[..., :2] @ slope[:2] + slope[2]


def _most_common(heights_m: np.ndarray) -> tuple[float, int]:
    """Return the median of the fullest bin of heights (N,), and how many are in it."""
    bins = np.floor((heights_m - heights_m.min()) / BIN_M).astype(np.int64)
    counts = np.bincount(bins)
    fullest = int(counts.argmax())
    return float(np.median(heights_m[bins == fullest])), int(counts[fullest])


def _joined(points_m: np.ndarray, parts: list[np.ndarray]) -> list[np.ndarray]:
    """Join small surfaces to the larger one that they are a part of."""
    things: list[np.ndarray] = []
    for part in parts:  # the largest first
        for index, thing in enumerate(things):
            is_small = part.sum() < PART_SIZE * thing.sum()
            if is_small and _touch(part, thing) and _gap_m(points_m, part, thing) < PART_GAP_M:
                things[index] = thing | part
                break
        else:
            things.append(part)
    return things


def _gap_m(points_m: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the smallest horizontal distance of two masks."""
    away, _ = cKDTree(points_m[second][:, :2]).query(points_m[first][:, :2])
    return float(away.min())


def _touch(first: np.ndarray, second: np.ndarray) -> bool:
    """Say whether two masks are neighbours in the picture."""
    import cv2

    wider = cv2.dilate(first.astype(np.uint8), np.ones((5, 5), np.uint8))
    return bool((wider.astype(bool) & second).any())


def _footprint(points_m: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the lowest and highest x, y (2, 2) m of a mask."""
    here = points_m[mask][:, :2]
    return np.array([here.min(axis=0), here.max(axis=0)])


def _area_m2(box: np.ndarray) -> float:
    return float(np.prod(np.maximum(box[1] - box[0], 0)))


def _others(mask: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Return where smaller masks lie: a bowl is no part of the cabinet that it stands on."""
    found = np.zeros(mask.shape, bool)
    for other in masks:
        if other is not mask and other.sum() < mask.sum():
            found |= other
    return found
