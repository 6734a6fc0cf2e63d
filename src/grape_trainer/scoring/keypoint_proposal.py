"""Which things are in the first picture: masks, their keypoints, and the numbered picture.

A proposer gives masks without names. A person, or a vision-language model, looks at the picture
that `draw_numbered` makes of them and says which number is what.

| proposer | needs | |
|---|---|---|
| HeightContour (keypoint_height.py) | depth | what stands on a flat support; the default |
| ColourContour (here) | the picture | what differs from the colour around it; a plain background |
| SegmentAnything (keypoint_segment_anything.py) | the picture, weights | anything |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_lifting import SURFACE_GAP_M, point_map, surface_labels

POINTS = 4  # of a proposal: the centre and the farthest from it and from each other
LEGIBLE_PX = 640  # a narrower picture is enlarged before numbers are written into it
NUMBER_COLOURS = ((255, 225, 25), (0, 255, 255), (255, 120, 255), (120, 255, 120), (255, 160, 60))


@dataclass(frozen=True)
class Proposal:
    """One thing in the first picture, without a name."""

    mask: np.ndarray  # (H, W) bool
    points: np.ndarray  # (P, 2) int u, v on the mask: the centre first, then farthest points

    @property
    def centre(self) -> np.ndarray:
        """Return the pixel (2,) u, v of the mask that is closest to its mean."""
        return self.points[0]


class Proposer(Protocol):
    """Finds things in a picture."""

    def propose(
        self,
        image: np.ndarray,
        depth_m: np.ndarray | None = None,
        camera: CameraGeometry | None = None,
    ) -> tuple[Proposal, ...]:
        """Return what is in the picture, the same for the same picture.

        Args:
            image: (H, W, 3) uint8 RGB.
            depth_m: (H, W) float32, for those that need it.
            camera: of the picture, for those that need it.

        Raises:
            KeypointError: something that this proposer needs is not there.

        """


@dataclass(frozen=True)
class ColourContour:
    """What differs from the colour of its wider surroundings. No weights, no depth.

    It wants a background of slowly changing colour (a table top, a floor); a thing of the
    background's own colour is not found. Two things that touch in the picture are one, unless
    depth is given and jumps between them.

    Attributes:
        surroundings: side of the neighbourhood whose median is the background, of the width.
        least_distance: in 8-bit CIELAB.
        least_area: of the picture; smaller is noise.
        largest_area: of the picture; larger is background.

    """

    surroundings: float = 0.36
    least_distance: float = 18.0
    least_area: float = 0.0008
    largest_area: float = 0.2

    def propose(
        self,
        image: np.ndarray,
        depth_m: np.ndarray | None = None,
        camera: CameraGeometry | None = None,
    ) -> tuple[Proposal, ...]:
        """Return the contours of what differs, from the top of the picture down."""
        import cv2

        image = np.ascontiguousarray(image)
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        side = max(3, round(self.surroundings * image.shape[1]) // 2 * 2 + 1)
        channels = [cv2.medianBlur(np.ascontiguousarray(lab[..., c]), side) for c in range(3)]
        away = np.linalg.norm(lab.astype(np.float32) - np.stack(channels, axis=-1), axis=-1)
        different = (away >= self.least_distance).astype(np.uint8)
        reach = max(3, image.shape[1] // 75 // 2 * 2 + 1)
        joined = cv2.morphologyEx(different, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
        joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        masks = [filled(part) for part in components(joined)]
        if depth_m is not None and camera is not None:
            points_m = point_map(camera, depth_m)
            masks = [part for mask in masks for part in _surfaces(points_m, mask)]
        area = image.shape[0] * image.shape[1]
        fits = [m for m in masks if self.least_area <= m.sum() / area <= self.largest_area]
        return ordered(fits)


def ordered(masks: list[np.ndarray]) -> tuple[Proposal, ...]:
    """Return proposals of masks (H, W) bool, by their centres: top to bottom, left to right."""
    proposals = [Proposal(mask, spread_points(mask)) for mask in masks]
    return tuple(sorted(proposals, key=lambda p: (p.centre[1], p.centre[0], p.mask.sum())))


def components(binary: np.ndarray) -> list[np.ndarray]:
    """Return the 8-connected parts of (H, W) uint8 as masks (H, W) bool."""
    import cv2

    count, labels = cv2.connectedComponents(binary, connectivity=8)
    return [labels == label for label in range(1, count)]


def _surfaces(points_m: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Cut a mask where depth jumps."""
    labels = surface_labels(points_m, mask, SURFACE_GAP_M)
    return [labels == label for label in range(labels.max() + 1)]


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) bool with its holes filled."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros(mask.shape, np.uint8)
    return cv2.drawContours(drawn, contours, -1, 1, cv2.FILLED).astype(bool)


def spread_points(mask: np.ndarray, count: int = POINTS) -> np.ndarray:
    """Return the pixel closest to the mask's mean, then farthest points, (count, 2) as u, v.

    Each next point is the one farthest from all before it (farthest point sampling); where
    several are, the first in reading order. A mask of fewer pixels gives fewer points.

    Raises:
        KeypointError: the mask is empty.

    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise KeypointError('the mask is empty; expected one pixel or more.')
    pixels = np.stack([columns, rows], axis=1)
    chosen = [int(np.linalg.norm(pixels - pixels.mean(axis=0), axis=1).argmin())]
    nearest = np.linalg.norm(pixels - pixels[chosen[0]], axis=1)
    for _ in range(min(count, len(pixels)) - 1):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(pixels - pixels[chosen[-1]], axis=1))
    return pixels[chosen]


def draw_numbered(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Write the numbers 1 .. N at points (N, 2) u, v into a copy of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        points: (N, 2) u, v; for proposals their centres.

    Returns:
        (s H, s W, 3) uint8 RGB, enlarged by the whole number s that makes it legible.

    Raises:
        KeypointError: a point outside of the picture.

    """
    import cv2

    points = np.asarray(points, np.float64).reshape(-1, 2)
    height, width = image.shape[:2]
    outside = ~((points >= 0) & (points <= (width - 1, height - 1))).all(axis=1)
    if outside.any():
        raise KeypointError(
            f'point {int(outside.argmax()) + 1} is at {points[outside][0].tolist()}; the picture '
            f'has {width} x {height} pixels.'
        )
    scale = max(1, -(-LEGIBLE_PX // width))
    drawn = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    for number, (u, v) in enumerate((points + 0.5) * scale, start=1):
        colour = NUMBER_COLOURS[(number - 1) % len(NUMBER_COLOURS)]
        at = (round(u), round(v))
        cv2.circle(drawn, at, 4, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(drawn, at, 3, colour, -1, cv2.LINE_AA)
        text = str(number)
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 2)
        left = min(at[0] + 6, drawn.shape[1] - text_width - 1)
        low = max(at[1] - 4, text_height + 1)
        for thickness, ink in ((4, (0, 0, 0)), (2, colour)):
            cv2.putText(
                drawn, text, (left, low), cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, thickness,
                cv2.LINE_AA,
            )  # fmt: skip
    return drawn
