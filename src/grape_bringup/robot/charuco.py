"""A ChArUco board: drawn to be printed, found in pictures, and what it says of a camera.

Its corners have numbers, so that a board that is partly outside of the picture or turned by any
angle still counts. Board frame: x along the columns, y along the rows, z into the board (OpenCV).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from grape_bringup.robot.checked_yaml import StrictModel

FEWEST_CORNERS = 6  # of a picture; a homography has 8 unknowns, two for each corner
FEWEST_VIEWS = 10
LEAST_TILT_DEG = 15.0  # between two views: flat ones cannot tell focal length from distance
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
INCH_MM = 25.4
DISTORTION = 5  # k1 k2 p1 p2 k3


class CalibrationError(ValueError):
    """Pictures or poses that no calibration can be made of; the text says what to do."""


class BoardSpec(StrictModel):
    """A board as it is printed; measure a square with a ruler, printers scale."""

    columns: int = Field(5, ge=3, le=30)  # squares; 5 x 7 of 38 mm fill A4
    rows: int = Field(7, ge=3, le=30)
    square_m: float = Field(0.038, gt=0, le=1)
    marker_m: float = Field(0.028, gt=0, le=1)
    dictionary: str = 'DICT_5X5_100'
    legacy: bool = False  # boards drawn by OpenCV before 4.6, with an even number of rows

    @model_validator(mode='after')
    def _can_be_made(self) -> BoardSpec:
        if self.marker_m >= self.square_m:
            raise ValueError(f'marker_m {self.marker_m} is not below square_m {self.square_m}')
        known = [name for name in dir(cv2.aruco) if name.startswith('DICT_')]
        if self.dictionary not in known:
            raise ValueError(f"dictionary '{self.dictionary}' is none of: {', '.join(known)}")
        markers = self.columns * self.rows // 2
        available = len(self._dictionary().bytesList)
        if markers > available:
            raise ValueError(
                f'the board needs {markers} markers; {self.dictionary} has {available}'
            )
        return self

    def _dictionary(self) -> cv2.aruco.Dictionary:
        return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))

    def board(self) -> cv2.aruco.CharucoBoard:
        """Return OpenCV's."""
        size = (self.columns, self.rows)
        board = cv2.aruco.CharucoBoard(size, self.square_m, self.marker_m, self._dictionary())
        board.setLegacyPattern(self.legacy)
        return board

    def draw(self, path: Path, dpi: int = 300, margin_mm: float = 5.0) -> None:
        """Write a picture that prints at its real size."""
        per_m = 1000 * dpi / INCH_MM
        margin = round(margin_mm * dpi / INCH_MM)
        size = [round(n * self.square_m * per_m) + 2 * margin for n in (self.columns, self.rows)]
        picture = self.board().generateImage(size, marginSize=margin)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, dpi=(dpi, dpi))


@dataclass(frozen=True)
class View:
    """The board in one picture."""

    points_m: np.ndarray  # (N, 3) float32, board frame
    pixels: np.ndarray  # (N, 2) float32


@dataclass(frozen=True)
class Views:
    """The board in a folder of pictures of one size."""

    found: dict[str, View]  # by the picture's name
    left_out: dict[str, str]  # why
    width: int  # px
    height: int


class CameraMatrix(StrictModel):
    """How a camera maps its optical frame to pixels; intrinsics.yaml."""

    width: int = Field(ge=1)  # px
    height: int = Field(ge=1)
    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    distortion: tuple[float, ...] = Field((0.0,) * DISTORTION, max_length=14)  # OpenCV's order
    reprojection_rms_px: float | None = Field(None, ge=0)  # None: the factory's

    @property
    def matrix(self) -> np.ndarray:
        """Return (3, 3) float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])


@dataclass(frozen=True)
class IntrinsicsResult:
    """A camera's intrinsics and how well they explain the pictures."""

    camera: CameraMatrix
    by_image_px: dict[str, float]  # RMS
    focal_std_px: tuple[float, float]  # of fx, fy, as the fit sees it
    tilt_deg: float  # the largest between two views
    coverage: float  # share of a 6 x 6 grid over the picture that saw a corner


def find_board(spec: BoardSpec, folder: Path) -> Views:
    """Look for the board in all pictures of a folder.

    Raises:
        CalibrationError: no pictures, or pictures of several sizes.

    """
    paths = sorted(p for p in folder.glob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise CalibrationError(
            f"'{folder}' has no pictures; expected {', '.join(IMAGE_SUFFIXES)} "
            '(grape calibrate capture takes them)'
        )
    detector = cv2.aruco.CharucoDetector(spec.board())
    found, left_out, sizes = {}, {}, {}
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            left_out[path.name] = 'it is not a picture that can be read'
            continue
        sizes.setdefault(picture.shape, path.name)
        view = _find(spec, detector, picture)
        if isinstance(view, View):
            found[path.name] = view
        else:
            left_out[path.name] = view
    if len(sizes) != 1:
        examples = ', '.join(f'{name}: {w} x {h}' for (h, w), name in sizes.items())
        raise CalibrationError(
            f"the pictures in '{folder}' have {len(sizes)} sizes ({examples or 'none read'}); "
            'expected those of one camera in one mode'
        )
    height, width = next(iter(sizes))
    return Views(found, left_out, width, height)


def _find(spec: BoardSpec, detector: cv2.aruco.CharucoDetector, picture: np.ndarray) -> View | str:
    """Return the board's corners in a grey picture, or why there are none."""
    pixels, ids, _, marker_ids = detector.detectBoard(picture)
    markers = 0 if marker_ids is None else len(marker_ids)
    if ids is None or len(ids) < FEWEST_CORNERS:
        corners = 0 if ids is None else len(ids)
        return (
            f'{markers} markers and {corners} corners of the board were seen; at least '
            f'{FEWEST_CORNERS} corners are needed'
            + ('' if markers else f' (is it a {spec.dictionary} board, in focus, not mirrored?)')
        )
    points = spec.board().getChessboardCorners()[ids.ravel()]
    return View(np.float32(points), np.float32(pixels).reshape(-1, 2))


def board_pose(view: View, camera: CameraMatrix) -> np.ndarray:
    """Return (4, 4) camera <- board.

    Raises:
        CalibrationError: the corners lie on a line or the like.

    """
    distortion = np.array(camera.distortion)
    # A flat board has two poses that look nearly alike: IPPE gives both, the better one first.
    is_found, turn, place = cv2.solvePnP(
        view.points_m, view.pixels, camera.matrix, distortion, flags=cv2.SOLVEPNP_IPPE
    )
    if not is_found:
        raise CalibrationError('the seen corners give no pose of the board')
    turn, place = cv2.solvePnPRefineLM(
        view.points_m, view.pixels, camera.matrix, distortion, turn, place
    )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], place.ravel()
    return pose


def calibrate_intrinsics(views: Views) -> IntrinsicsResult:
    """Fit a pinhole camera with four distortion coefficients (Zhang 2000, as OpenCV has it).

    Raises:
        CalibrationError: too few pictures, or all from the same direction.

    """
    found = views.found
    if len(found) < FEWEST_VIEWS:
        raise CalibrationError(
            f'{len(found)} pictures show the board; expected at least {FEWEST_VIEWS}. Left out: '
            + (say_left_out(views.left_out) or 'none')
        )
    # k3 stays 0: a board's corners do not tell it from k2 (without distortion it came out as -2).
    rms, matrix, distortion, turns, _, std, _, per_view = cv2.calibrateCameraExtended(
        [view.points_m for view in found.values()],
        [view.pixels for view in found.values()],
        (views.width, views.height),
        None,
        None,
        flags=cv2.CALIB_FIX_K3,
    )
    normals = np.array([cv2.Rodrigues(turn)[0][:, 2] for turn in turns])
    tilt_deg = float(np.degrees(np.arccos(np.clip(normals @ normals.T, -1, 1))).max())
    if tilt_deg < LEAST_TILT_DEG:
        raise CalibrationError(
            f'the views of the board differ by {tilt_deg:.1f} degrees of tilt; expected at least '
            f'{LEAST_TILT_DEG:g}. Hold the board, or the camera, at 20 to 45 degrees in several '
            'directions: from flat views, focal length and distance cannot be told apart'
        )
    camera = CameraMatrix(
        width=views.width,
        height=views.height,
        fx=matrix[0, 0],
        fy=matrix[1, 1],
        cx=matrix[0, 2],
        cy=matrix[1, 2],
        distortion=tuple(distortion.ravel()[:DISTORTION].tolist()),
        reprojection_rms_px=rms,
    )
    by_image = dict(zip(found, per_view.ravel().tolist(), strict=True))
    focal_std = (float(std[0, 0]), float(std[1, 0]))
    return IntrinsicsResult(camera, by_image, focal_std, tilt_deg, _coverage(views))


def say_left_out(left_out: Mapping[str, str]) -> str:
    """Return the pictures that were left out and why, for people."""
    return '; '.join(f'{name}: {why}' for name, why in left_out.items())


def _coverage(views: Views, cells: int = 6) -> float:
    """Return the share of a grid over the picture that saw a corner."""
    seen = np.zeros((cells, cells), bool)
    pixels = np.concatenate([view.pixels for view in views.found.values()])
    place = (pixels / (views.width, views.height) * cells).astype(int).clip(0, cells - 1)
    seen[place[:, 1], place[:, 0]] = True
    return float(seen.mean())
