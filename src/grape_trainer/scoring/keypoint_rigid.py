"""The motion that most of an object's points agree on, found in spite of those that do not.

RANSAC over rigid motions, and beside it the plainer one that keeps the rotation as it was: a few
noisy points on a small object always find some rotation that suits them better. Which of the two
the whole object shows is for the tracker to see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLES = 64
FEWEST_TO_TURN = 4  # points; three fit any rotation exactly
LEVER_M = 1e-4  # a sample with less area spans no plane


@dataclass(frozen=True)
class Pose:
    """Where an object is, relative to where it was in the first picture: R p + t."""

    rotation: np.ndarray  # (3, 3)
    translation_m: np.ndarray  # (3,)

    def apply(self, points_m: np.ndarray) -> np.ndarray:
        """Return points (N, 3) or (3,) moved from the first picture to now."""
        return points_m @ self.rotation.T + self.translation_m

    def undo(self, points_m: np.ndarray) -> np.ndarray:
        """Return points (N, 3) or (3,) moved from now to the first picture."""
        return (points_m - self.translation_m) @ self.rotation


UNMOVED = Pose(np.eye(3), np.zeros(3))


def fit_poses(
    first_m: np.ndarray,
    now_m: np.ndarray,
    before: Pose,
    tolerance_m: float,
    generator: np.random.Generator,
) -> list[tuple[Pose, np.ndarray]]:
    """Return the poses that most points agree on, the plainer one first.

    Args:
        first_m: (N, 3) where the points were in the first picture.
        now_m: (N, 3) where they are.
        before: the pose of the picture before; the plainer pose keeps its rotation.
        tolerance_m: a point within it agrees.
        generator: draws the samples.

    Returns:
        Pose and (N,) bool, which points agree. The turned one is there if it has as many.

    """
    if len(first_m) == 0:
        return []
    poses = [_translation(first_m, now_m, before.rotation, tolerance_m)]
    if len(first_m) >= FEWEST_TO_TURN:
        turned = _rigid(first_m, now_m, tolerance_m, generator)
        if turned[1].sum() >= poses[0][1].sum():
            poses.append(turned)
    return poses


def kabsch(first_m: np.ndarray, now_m: np.ndarray) -> Pose:
    """Return the least-squares rigid motion between (N, 3) and (N, 3) (Kabsch 1976)."""
    rotations, translations = _kabsch(first_m[None], now_m[None])
    return Pose(rotations[0], translations[0])


def _translation(
    first_m: np.ndarray, now_m: np.ndarray, rotation: np.ndarray, tolerance_m: float
) -> tuple[Pose, np.ndarray]:
    """Every point proposes its own displacement; the one with most others wins, then the mean."""
    moves = now_m - first_m @ rotation.T
    apart = np.linalg.norm(moves[:, None] - moves[None], axis=2)
    inliers = apart[(apart < tolerance_m).sum(axis=1).argmax()] < tolerance_m
    centre = np.median(moves[inliers], axis=0)
    inliers = np.linalg.norm(moves - centre, axis=1) < tolerance_m
    if inliers.any():
        centre = moves[inliers].mean(axis=0)
    return Pose(rotation, centre), inliers


def _rigid(
    first_m: np.ndarray, now_m: np.ndarray, tolerance_m: float, generator: np.random.Generator
) -> tuple[Pose, np.ndarray]:
    samples = generator.random((SAMPLES, len(first_m))).argsort(axis=1)[:, :3]
    corners = first_m[samples]
    sides = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    rotations, translations = _kabsch(corners, now_m[samples])
    moved = np.einsum('sij,nj->sni', rotations, first_m) + translations[:, None]
    counts = (np.linalg.norm(moved - now_m, axis=2) < tolerance_m).sum(axis=1)
    best = np.where(area > LEVER_M, counts, -1).argmax()
    inliers = np.linalg.norm(moved[best] - now_m, axis=1) < tolerance_m
    if inliers.sum() < 3:
        return Pose(rotations[best], translations[best]), inliers
    pose = kabsch(first_m[inliers], now_m[inliers])
    return pose, np.linalg.norm(pose.apply(first_m) - now_m, axis=1) < tolerance_m


def _kabsch(first_m: np.ndarray, now_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rotations (S, 3, 3) and translations (S, 3) between (S, N, 3) and (S, N, 3)."""
    first_mean, now_mean = first_m.mean(axis=1), now_m.mean(axis=1)
    spread = np.einsum('sni,snj->sij', now_m - now_mean[:, None], first_m - first_mean[:, None])
    left, _, right = np.linalg.svd(spread)
    sign = np.sign(np.linalg.det(left @ right))
    left[:, :, 2] *= np.where(sign == 0, 1.0, sign)[:, None]
    rotations = left @ right
    return rotations, now_mean - np.einsum('sij,sj->si', rotations, first_mean)
