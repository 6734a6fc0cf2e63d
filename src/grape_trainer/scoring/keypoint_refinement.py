"""Push a moved object sideways until the picture shows most of it.

Features slide along what has no texture: on a black bottle they go anywhere along its length, and
agree with each other while they do. The bottle's ends do not slide: where the pose is off, the
camera looks through one of them.
"""

from __future__ import annotations

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint_appearance import Frame, ObjectModel
from grape_trainer.scoring.keypoint_rigid import Pose

PUSH_M = 0.006
PUSHES = 2  # a picture
MUST_GAIN = 0.02  # of the object's points, seen minus looked through


def pushed(model: ObjectModel, pose: Pose, frame: Frame, camera: CameraGeometry) -> Pose:
    """Return the pose after up to PUSHES steps to the left, right, up or down in the picture."""
    across = camera.base_from_camera[:3, :2].T
    pushes = [sign * PUSH_M * axis for axis in across for sign in (-1, 1)]
    best = _score(model, pose, frame, camera)
    for _ in range(PUSHES):
        poses = [Pose(pose.rotation, pose.translation_m + push) for push in pushes]
        scores = [_score(model, other, frame, camera) for other in poses]
        chosen = int(np.argmax(scores))
        if scores[chosen] < best + MUST_GAIN:
            break
        pose, best = poses[chosen], scores[chosen]
    return pose


def _score(model: ObjectModel, pose: Pose, frame: Frame, camera: CameraGeometry) -> float:
    fit = model.agreement(pose, frame, camera)
    return fit.seen_share - fit.absent_share
