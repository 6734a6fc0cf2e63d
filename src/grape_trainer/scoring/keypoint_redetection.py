"""Find an object again after it was covered or lost: by its picture, then by depth and colour.

The object's picture from the first frame is searched around where it was last seen, in a few
sizes; every good place is lifted with depth and has to pass the same comparison as a tracked one.
"""

from __future__ import annotations

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint_appearance import Frame, ObjectModel
from grape_trainer.scoring.keypoint_lifting import depth_near
from grape_trainer.scoring.keypoint_rigid import Pose

SIZES = (
    1.0,
    1.2,
    1.45,
    0.85,
)  # of the object's picture: nearer and farther than in the first frame
PLACES = 4  # tried in each size
MIN_SCORE = 0.5  # of the normalised correlation
SEEN_TO_ACCEPT = 0.6  # of the model's points
ABSENT_TO_REFUSE = 0.25
SIZE_TOLERANCE = 1.25  # of the size found, to the one that the depth found asks for
MARGIN_PX = 12  # around the last place, at 224 px
MARGIN_PER_FRAME_PX = 5.0  # a hand moves it by 2 cm a picture


class Redetector:
    """Searches one object; built from the first frame."""

    def __init__(self, model: ObjectModel, first: Frame) -> None:
        """Cut the object's picture out of the first frame."""
        self._first_depth_m = float(np.median(first.depth_m[model.mask]))
        rows, columns = np.nonzero(model.mask)
        self._low = np.array([columns.min(), rows.min()])
        high = np.array([columns.max(), rows.max()]) + 1
        window = (slice(self._low[1], high[1]), slice(self._low[0], high[0]))
        self._template = first.lab[window]
        self._mask = model.mask[window].astype(np.float32)
        self._anchor_px = model.pixels - self._low  # of the model's points in the cut-out
        self._model = model

    def search(
        self, frame: Frame, camera: CameraGeometry, last: Pose, frames_lost: int
    ) -> Pose | None:
        """Return where the object is seen again, or None.

        Args:
            frame: the picture now.
            camera: its geometry.
            last: where the object was when it was last seen.
            frames_lost: how long ago that was; the search grows with it.

        """
        import cv2

        best, best_share = None, SEEN_TO_ACCEPT
        pixels, _ = camera.project(last.apply(self._model.points_m))
        scale = camera.width / 224
        margin = scale * (MARGIN_PX + MARGIN_PER_FRAME_PX * frames_lost)
        low = np.maximum(np.floor(pixels.min(axis=0) - margin), 0).astype(int)
        high = np.minimum(
            np.ceil(pixels.max(axis=0) + margin) + 1, (camera.width, camera.height)
        ).astype(int)
        area = frame.lab[low[1] : high[1], low[0] : high[0]]
        for size in SIZES:
            template = cv2.resize(self._template, None, fx=size, fy=size)
            mask = cv2.resize(self._mask, (template.shape[1], template.shape[0])).round()
            if (np.array(area.shape[:2]) <= template.shape[:2]).any() or not mask.any():
                continue
            weights = np.repeat(mask[..., None], 3, axis=2)
            scores = cv2.matchTemplate(area, template, cv2.TM_CCOEFF_NORMED, mask=weights)
            for place in _peaks(scores, template.shape):
                pose = self._lift(low + place, size, frame, camera, last)
                if pose is None:
                    continue
                fit = self._model.agreement(pose, frame, camera)
                if fit.seen_share > best_share and fit.absent_share < ABSENT_TO_REFUSE:
                    best, best_share = pose, fit.seen_share
        return best

    def _lift(
        self, corner: np.ndarray, size: float, frame: Frame, camera: CameraGeometry, last: Pose
    ) -> Pose | None:
        """Return the pose that puts the model's points on these pixels, turned as last seen."""
        turned = self._model.points_m @ last.rotation.T
        pixels = corner + self._anchor_px * size
        _, depth = camera.project(last.apply(self._model.points_m))
        found = depth_near(frame.depth_m, pixels, depth, radius=0)
        good = np.isfinite(found)
        if good.sum() < len(pixels) / 3:
            return None
        asked = self._first_depth_m / np.median(found[good])
        if not 1 / SIZE_TOLERANCE < size / asked < SIZE_TOLERANCE:
            return None
        moves = camera.back_project(pixels[good], found[good]) - turned[good]
        return Pose(last.rotation, np.median(moves, axis=0))


def _peaks(scores: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return up to PLACES corners (u, v), best first, that do not crowd."""
    scores = np.where(np.isfinite(scores), scores, -1.0)
    places = []
    for _ in range(PLACES):
        row, column = np.unravel_index(int(scores.argmax()), scores.shape)
        if scores[row, column] < MIN_SCORE:
            break
        places.append(np.array([column, row]))
        reach = max(2, min(shape[:2]) // 3)
        scores[
            max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
        ] = -1.0
    return places
