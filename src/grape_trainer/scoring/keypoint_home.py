"""Objects lie where they lie until they are taken: proof that one has left its place.

A hand that passes in front of an object drags its features along, and a second bowl that is
carried by looks just like the first. Colour and depth cannot tell then; the place that the object
had can. Once it has left, the camera looks through that place. Until then a pose away from it is
believed only where most of the object is seen, and where no other object is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint_appearance import Agreement, Frame, ObjectModel
from grape_trainer.scoring.keypoint_rigid import UNMOVED, Pose

AWAY_M = 0.04  # farther than this from its place an object has left it
LEFT_ABSENT_SHARE = 0.08  # of the object's points at its place: the camera looks through it
SEEN_WITHOUT_PROOF = 0.6  # of the object's points somewhere else
SAME_PLACE = 0.5  # of the smaller radius: two objects cannot be as close as this
REST_FRAMES = 10
REST_M = 0.01  # an object that moves less than this over REST_FRAMES has a new place


@dataclass(frozen=True)
class Place:
    """Where an object is: centre (3,) m and half of its longest side."""

    centre_m: np.ndarray
    radius_m: float


class Home:
    """The place where an object rests, and whether it has left it."""

    def __init__(self, model: ObjectModel, camera: CameraGeometry) -> None:
        """Begin with the place in the first picture."""
        self._model = model
        self._camera = camera
        self._pose = UNMOVED
        self.has_left = False  # proved
        self._recent: list[np.ndarray] = []  # centres of the last pictures

    @property
    def pose(self) -> Pose | None:
        """Return the pose at its place; None once it has left."""
        return None if self.has_left else self._pose

    def look(self, frame: Frame) -> None:
        """Look for proof, in a new picture, that the object has left."""
        if not self.has_left:
            fit = self._model.agreement(self._pose, frame, self._camera)
            self.has_left = fit.absent_share >= LEFT_ABSENT_SHARE
            self._recent = [] if self.has_left else self._recent

    def allows(self, pose: Pose, fit: Agreement, others: list[Place], followed: bool) -> bool:
        """Say whether the object may be there.

        Args:
            pose: where it may be.
            fit: what the picture shows of it there.
            others: where the other objects are.
            followed: False where it was found again, after it was lost.

        """
        if self._away_m(pose) < AWAY_M or (self.has_left and followed):
            return True
        is_proved = self.has_left or fit.seen_share >= SEEN_WITHOUT_PROOF
        return is_proved and not self._is_taken(pose, others)

    def fallback(self, last: Pose) -> Pose:
        """Return where a hidden object is: at its place if nothing proves that it has left."""
        return last if self.has_left else self._pose

    def settle(self, pose: Pose) -> None:
        """Take the pose of a picture in which the object is seen."""
        self._recent = [*self._recent[-REST_FRAMES:], pose.apply(self._model.centre_m)]
        moved_m = np.linalg.norm(self._recent[0] - self._recent[-1])
        if self.has_left and len(self._recent) > REST_FRAMES and moved_m < REST_M:
            self._pose, self.has_left = pose, False

    def _is_taken(self, pose: Pose, others: list[Place]) -> bool:
        centre, radius = pose.apply(self._model.centre_m), self._model.radius_m
        return any(
            np.linalg.norm(centre - other.centre_m) < SAME_PLACE * min(other.radius_m, radius)
            for other in others
        )

    def _away_m(self, pose: Pose) -> float:
        centre = self._model.centre_m
        return float(np.linalg.norm(pose.apply(centre) - self._pose.apply(centre)))
