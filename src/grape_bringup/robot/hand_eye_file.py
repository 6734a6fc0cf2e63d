"""Where a camera stands: the file that `grape calibrate hand-eye` writes and camera_node reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from grape_bringup.robot.checked_yaml import StrictModel, load_checked

NORM_TOLERANCE = 1e-3


class HandEye(StrictModel):
    """The transform parent <- optical frame of the camera, and how good it is."""

    setup: Literal['eye_to_hand', 'eye_in_hand']  # a fixed camera, a camera at the wrist
    parent_frame: str = Field(min_length=1)  # the robot's base; the end effector
    translation_m: tuple[float, float, float]
    quaternion_xyzw: tuple[float, float, float, float]
    reprojection_rms_px: float = Field(ge=0)
    spread_m: float = Field(ge=0)  # the largest distance of a closed-form method from this
    spread_deg: float = Field(ge=0)
    images: int = Field(ge=1)
    calibrated_at: str = ''

    @model_validator(mode='after')
    def _is_a_rotation(self) -> HandEye:
        norm = float(np.linalg.norm(self.quaternion_xyzw))
        if not abs(norm - 1) < NORM_TOLERANCE:
            raise ValueError(f'the norm of quaternion_xyzw is {norm:.4g}; expected 1')
        if not np.isfinite(self.translation_m).all():
            raise ValueError(f'translation_m is {self.translation_m}; expected finite numbers')
        return self


def load_hand_eye(path: Path | str) -> HandEye:
    """Read a calibration.

    Raises:
        RobotConfigError: no such file, or one that is no calibration.

    """
    return load_checked(path, HandEye)
