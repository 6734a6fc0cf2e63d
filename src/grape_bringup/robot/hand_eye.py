"""Where a camera stands on the robot, from pictures of a board and the arm's pose at each.

With X = parent <- camera (parent: the base for a fixed camera, the end effector for one at the
wrist), B_i = camera <- board and P_i = base <- end effector (its inverse for a fixed camera), the
board is rigidly fixed to the rest of the chain: P_i X B_i = Y for all i. Closed-form methods (Tsai
and Lenz 1989, Park and Martin 1994, Daniilidis 1999) solve that for X. From there X, Y and a small
correction of each P_i are fitted together so that the board's corners fall where they were seen;
without the corrections, the arm's own error of a millimetre would be taken for a turn of the
camera (measured: three to five times as far off). How far the closed-form methods lie from the
fit says how well the poses determine it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydantic import Field
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from grape_bringup.robot.charuco import (
    CalibrationError,
    CameraMatrix,
    View,
    Views,
    board_pose,
    say_left_out,
)
from grape_bringup.robot.checked_yaml import StrictModel, load_checked

Setup = Literal['eye_to_hand', 'eye_in_hand']
METHODS = {
    'TSAI': cv2.CALIB_HAND_EYE_TSAI,
    'PARK': cv2.CALIB_HAND_EYE_PARK,
    'DANIILIDIS': cv2.CALIB_HAND_EYE_DANIILIDIS,
}
FEWEST_POSES = 8
# How well corners are seen and arms know where they are; only their ratio matters.
CORNER_PX, ARM_M, ARM_RAD = 0.2, 0.001, np.radians(0.1)
FIT_ROUNDS = 50
STEP = 1e-6  # of a difference, rad and m
LEAST_TURN_DEG = 10.0  # RMS about the second of the axes that the poses turn about


class ArmPose(StrictModel):
    """Base <- end effector when a picture was taken."""

    position_m: tuple[float, float, float]
    quaternion_xyzw: tuple[float, float, float, float]

    def matrix(self) -> np.ndarray:
        """Return (4, 4)."""
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_quat(self.quaternion_xyzw).as_matrix()
        pose[:3, 3] = self.position_m
        return pose


class ArmPoses(StrictModel):
    """poses.yaml: the arm's pose at each picture."""

    base_frame: str = Field(min_length=1)
    end_effector_frame: str = 'end_effector'
    images: dict[str, ArmPose] = Field(min_length=1)


@dataclass(frozen=True)
class HandEyeResult:
    """The camera's place, and how well it explains the pictures."""

    parent_from_camera: np.ndarray  # (4, 4)
    board: np.ndarray  # (4, 4) Y: end effector <- board, or base <- board for a wrist camera
    rms_px: float
    by_image_px: dict[str, float]
    spread: dict[str, tuple[float, float]]  # method -> m, degrees from the fit
    left_out: dict[str, str]


def load_poses(path: Path) -> ArmPoses:
    """Read poses.yaml.

    Raises:
        RobotConfigError: no such file, or one of another form.

    """
    return load_checked(path, ArmPoses)


def solve(
    views: Views, poses: Mapping[str, ArmPose], camera: CameraMatrix, setup: Setup
) -> HandEyeResult:
    """Find the camera's place.

    Args:
        views: the board in the pictures.
        poses: the arm's pose by the picture's name.
        camera: its intrinsics.
        setup: eye_to_hand (fixed camera, board at the end effector) or eye_in_hand (camera at the
            wrist, board on the table).

    Raises:
        CalibrationError: too few pictures with a pose, poses that turn too little, or intrinsics
            of another picture size.

    """
    if (views.width, views.height) != (camera.width, camera.height):
        raise CalibrationError(
            f'the pictures have {views.width} x {views.height} px, the intrinsics are for '
            f'{camera.width} x {camera.height}; give those of the mode the pictures were taken in'
        )
    left_out = views.left_out | {n: 'it has no pose' for n in views.found if n not in poses}
    missing = [n for n in poses if n not in views.found and n not in views.left_out]
    left_out |= {name: 'the poses name it, and there is no such picture' for name in missing}
    names = [name for name in views.found if name in poses]
    if len(names) < FEWEST_POSES:
        raise CalibrationError(
            f'{len(names)} pictures have the board and a pose; expected at least {FEWEST_POSES}. '
            f'Left out: {say_left_out(left_out) or "none"}'
        )
    chain = np.array([poses[name].matrix() for name in names])
    _check_turns(chain[:, :3, :3])
    if setup == 'eye_to_hand':
        chain = np.linalg.inv(chain)
    seen = [views.found[name] for name in names]
    boards = np.array([board_pose(view, camera) for view in seen])
    guesses = {name: _closed_form(chain, boards, method) for name, method in METHODS.items()}
    place, board = _fit(chain, boards, seen, camera, guesses)
    errors = _by_image(chain, seen, camera, place, board)
    return HandEyeResult(
        parent_from_camera=place,
        board=board,
        rms_px=_rms(np.concatenate([error.ravel() for error in errors])),
        by_image_px={name: _rms(error) for name, error in zip(names, errors, strict=True)},
        spread={name: _apart(place, guess) for name, guess in guesses.items()},
        left_out=left_out,
    )


def _check_turns(turns: np.ndarray) -> None:
    """Refuse poses that turn about one axis only: the camera's place along it stays unknown."""
    first, second = np.triu_indices(len(turns), 1)
    between = Rotation.from_matrix(turns[first]).inv() * Rotation.from_matrix(turns[second])
    vectors = between.as_rotvec()
    scatter = vectors.T @ vectors / len(vectors)
    by_axis_deg = np.degrees(np.sqrt(np.linalg.eigvalsh(scatter).clip(0)))[::-1]
    if by_axis_deg[1] < LEAST_TURN_DEG:
        raise CalibrationError(
            f'the arm turns by {by_axis_deg[0]:.1f} degrees (RMS between two poses) about one '
            f'axis and by {by_axis_deg[1]:.1f} about the next; expected at least '
            f'{LEAST_TURN_DEG:g} about two axes. Tilt the end effector by 20 to 40 degrees in '
            'several directions; moving it without turning it says nothing'
        )


def _closed_form(chain: np.ndarray, boards: np.ndarray, method: int) -> np.ndarray:
    """Return X by one of OpenCV's methods; NaN where it gives no pose."""
    turn, place = cv2.calibrateHandEye(
        chain[:, :3, :3], chain[:, :3, 3], boards[:, :3, :3], boards[:, :3, 3], method=method
    )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, np.ravel(place)
    # From poses that contradict each other, Park's comes out as a mirror.
    is_pose = np.isfinite(pose).all() and np.linalg.det(turn) > 0
    return pose if is_pose else np.full((4, 4), np.nan)


def _fit(
    chain: np.ndarray,
    boards: np.ndarray,
    seen: list[View],
    camera: CameraMatrix,
    guesses: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return X and Y that bring the corners where they were seen, from the best of the guesses."""
    weight = np.repeat([ARM_RAD, ARM_M], 3)

    def errors_px(parameters: np.ndarray) -> list[np.ndarray]:
        corrected = chain @ _poses(parameters[12:].reshape(-1, 6))
        place, board = _poses(parameters[:12].reshape(2, 6))
        return _by_image(corrected, seen, camera, place, board)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        pixels = np.concatenate([error.ravel() for error in errors_px(parameters)]) / CORNER_PX
        return np.concatenate([pixels, (parameters[12:].reshape(-1, 6) / weight).ravel()])

    def slopes(parameters: np.ndarray) -> np.ndarray:
        """Differences; a correction moves its own picture, so that all are moved at once."""
        matrix = np.zeros((ends[-1] + parameters.size - 12, parameters.size))
        matrix[ends[-1] :, 12:] = np.diag(np.tile(1 / weight, len(chain)))
        before = errors_px(parameters)
        for i in range(18):
            moved = parameters.copy()
            moved[[i] if i < 12 else slice(i, None, 6)] += STEP
            for k, (after, error) in enumerate(zip(errors_px(moved), before, strict=True)):
                column = i if i < 12 else i + 6 * k
                slope = (after - error).ravel() / (STEP * CORNER_PX)
                matrix[ends[k] : ends[k + 1], column] = slope
        return matrix

    ends = np.cumsum([0, *(2 * len(view.pixels) for view in seen)])
    none = np.zeros(6 * len(chain))
    starts = [
        np.concatenate([_parameters(guess), _parameters(_mean(chain @ guess @ boards)), none])
        for guess in guesses.values()
        if np.isfinite(guess).all()
    ]
    if not starts:
        raise CalibrationError('no method found a place of the camera; take other poses')
    start = min(starts, key=lambda p: _rms(residuals(p)))
    best = least_squares(
        residuals, start, slopes, method='lm', x_scale='jac', max_nfev=FIT_ROUNDS
    ).x
    place, board = _poses(best[:12].reshape(2, 6))
    return place, board


def _by_image(
    chain: np.ndarray, seen: list[View], camera: CameraMatrix, place: np.ndarray, board: np.ndarray
) -> list[np.ndarray]:
    """Return (N, 2) px for each picture: where the corners should be, less where they were."""
    camera_from_board = np.linalg.inv(chain @ place) @ board
    distortion = np.array(camera.distortion)
    errors = []
    for pose, view in zip(camera_from_board, seen, strict=True):
        turn = cv2.Rodrigues(pose[:3, :3])[0]
        pixels = cv2.projectPoints(view.points_m, turn, pose[:3, 3], camera.matrix, distortion)[0]
        errors.append(pixels.reshape(-1, 2) - view.pixels)
    return errors


def _apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the distance of two poses, m and degrees; infinite for one that is no pose."""
    if not np.isfinite(other).all():
        return float('inf'), float('inf')
    turn = Rotation.from_matrix(one[:3, :3].T @ other[:3, :3])
    return float(np.linalg.norm(one[:3, 3] - other[:3, 3])), float(np.degrees(turn.magnitude()))


def _mean(poses: np.ndarray) -> np.ndarray:
    mean = np.eye(4)
    mean[:3, :3] = Rotation.from_matrix(poses[:, :3, :3]).mean().as_matrix()
    mean[:3, 3] = poses[:, :3, 3].mean(axis=0)
    return mean


def _parameters(pose: np.ndarray) -> np.ndarray:
    """Return (6,): rotation vector, translation."""
    return np.concatenate([Rotation.from_matrix(pose[:3, :3]).as_rotvec(), pose[:3, 3]])


def _poses(parameters: np.ndarray) -> np.ndarray:
    """Return (N, 4, 4) of (N, 6)."""
    poses = np.tile(np.eye(4), (len(parameters), 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(parameters[:, :3]).as_matrix()
    poses[:, :3, 3] = parameters[:, 3:]
    return poses


def _rms(errors: np.ndarray) -> float:
    """Return the RMS distance, px, of errors with two numbers a corner."""
    return float(np.sqrt(2 * np.mean(np.square(errors))))
