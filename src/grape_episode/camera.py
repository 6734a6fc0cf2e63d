"""Where a camera stands and how it maps the world to pixels.

Pixels are integers at their centres, u to the right and v down, in the picture as it is stored.
A picture that is stored upside down or mirrored keeps its pixels: its intrinsics say so, with a
negative focal length (LIBERO's pictures are upside down, which no turn of the camera undoes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ORTHONORMAL_TOLERANCE = 1e-4


class CameraError(ValueError):
    """A camera that cannot be used; the text says what was found and what was expected."""


@dataclass(frozen=True)
class CameraGeometry:
    """A pinhole camera without distortion, in the robot base frame."""

    intrinsics: np.ndarray  # (3, 3) float64, px: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    base_from_camera: np.ndarray  # (4, 4) float64; optical frame: x right, y down, z forward
    height: int  # px
    width: int

    def __post_init__(self) -> None:
        """Check shapes, focal lengths and that the rotation is one."""
        shapes = (np.shape(self.intrinsics), np.shape(self.base_from_camera))
        if shapes != ((3, 3), (4, 4)):
            raise CameraError(
                f'intrinsics and extrinsics have the shapes {shapes[0]} and {shapes[1]}; expected '
                '(3, 3) and (4, 4).'
            )
        fx, fy = self.intrinsics[0, 0], self.intrinsics[1, 1]
        if not (np.isfinite(self.intrinsics).all() and fx and fy):
            raise CameraError(
                f'focal lengths are {fx} and {fy} px; expected numbers other than 0. An '
                'uncalibrated camera publishes zeros: calibrate it.'
            )
        turn = self.base_from_camera[:3, :3]
        error = np.abs(turn @ turn.T - np.eye(3)).max()
        if not error <= ORTHONORMAL_TOLERANCE or np.linalg.det(turn) < 0:
            raise CameraError(
                f'the rotation of base_from_camera is off by {error:.2g} from an orthonormal one, '
                f'its determinant is {np.linalg.det(turn):.3g}; expected a rotation.'
            )

    @property
    def position_m(self) -> np.ndarray:
        """Return the optical centre (3,) in the base frame."""
        return self.base_from_camera[:3, 3]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back."""
        return {
            'intrinsics': self.intrinsics.tolist(),
            'base_from_camera': self.base_from_camera.tolist(),
            'height': self.height,
            'width': self.width,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CameraGeometry:
        """Check plain data.

        Raises:
            CameraError: keys or numbers that are missing or of another form.

        """
        try:
            return cls(
                np.array(data['intrinsics'], np.float64),
                np.array(data['base_from_camera'], np.float64),
                int(data['height']),
                int(data['width']),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CameraError):
                raise
            raise CameraError(
                f'the camera is {str(data)[:120]} ({error!r}); expected intrinsics (3 x 3), '
                'base_from_camera (4 x 4), height and width.'
            ) from error

    def turned(self, rotate_deg: int) -> CameraGeometry:
        """Return the camera of the same pictures turned by 0 or 180 degrees."""
        if rotate_deg == 0:
            return self
        if rotate_deg != 180:
            raise CameraError(f'a picture cannot be turned by {rotate_deg}; expected 0 or 180.')
        flip = np.array([[-1.0, 0, self.width - 1], [0, -1.0, self.height - 1], [0, 0, 1.0]])
        return CameraGeometry(
            flip @ self.intrinsics, self.base_from_camera, self.height, self.width
        )

    def project(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (N, 2) as u, v and depths (N,) m of points (N, 3) in the base frame.

        Points behind the camera have a depth of 0 or less; their pixels mean nothing.
        """
        camera_m = (points_m - self.position_m) @ self.base_from_camera[:3, :3]
        depth_m = camera_m[:, 2]
        safe = np.where(np.abs(depth_m) < 1e-9, 1e-9, depth_m)
        pixels = (camera_m / safe[:, None]) @ self.intrinsics.T
        return pixels[:, :2], depth_m

    def back_project(self, pixels: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """Return points (N, 3) m in the base frame of pixels (N, 2) at depths (N,) m."""
        homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
        rays = homogeneous @ np.linalg.inv(self.intrinsics).T
        camera_m = rays * np.asarray(depth_m, np.float64)[:, None]
        return camera_m @ self.base_from_camera[:3, :3].T + self.position_m
