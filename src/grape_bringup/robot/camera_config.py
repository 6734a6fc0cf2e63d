"""The cameras of a workstation: config/robot/camera.yaml, camera_realsense2.yaml.

Topics have the names that realsense2_camera gives them, so that whoever listens need not know
whether the wrapper or `camera_node` drives a camera.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from grape_bringup.robot.checked_yaml import StrictModel, load_checked


class CameraConfig(StrictModel):
    """One camera, and what counts as its loss."""

    # device: a RealSense of this machine; playback: a recording (.db3); topic: realsense2_camera
    # drives it, and its pictures are only watched here
    source: Literal['device', 'playback', 'topic'] = 'device'
    serial: str = ''  # of a device; empty: the only one that is connected
    file: str = ''  # of a playback
    repeat: bool = True  # a playback begins anew at its end
    topic: str = Field(min_length=1)  # before /color/image_raw and the others
    frame: str = ''  # optical frame; empty: <camera>_color_optical_frame
    hand_eye: str = ''  # YAML of `grape calibrate hand-eye`; empty: no camera_pose
    width: int = Field(640, ge=1)  # px; depth is aligned to the colour picture
    height: int = Field(480, ge=1)
    fps: int = Field(30, ge=1, le=90)
    depth: bool = True
    timeout_s: float = Field(1.0, gt=0, le=10)  # without a picture, the camera counts as lost
    frozen_frames: int = Field(30, ge=0)  # equal pictures that mean a frozen camera; 0: never
    reconnect_s: float = Field(0.5, gt=0)  # before a lost camera is opened again; doubles
    reconnect_max_s: float = Field(5.0, gt=0)

    @model_validator(mode='after')
    def _fits_its_source(self) -> CameraConfig:
        if (self.source == 'playback') != bool(self.file):
            raise ValueError('`file` goes with source: playback, and that with `file`')
        if self.serial and self.source != 'device':
            raise ValueError(f'`serial` goes with source: device, not with {self.source}')
        return self


class CamerasConfig(StrictModel):
    """The cameras by name."""

    cameras: dict[str, CameraConfig] = Field(min_length=1)

    @model_validator(mode='after')
    def _can_be_told_apart(self) -> CamerasConfig:
        topics = Counter(camera.topic.strip('/') for camera in self.cameras.values())
        serials = Counter(c.serial for c in self.cameras.values() if c.source == 'device')
        twice = [name for name, count in (topics | serials).items() if name and count > 1]
        if twice:
            raise ValueError(f'two cameras have the same topic or serial: {", ".join(twice)}')
        if serials[''] and serials.total() > 1:
            raise ValueError(
                'a camera without `serial` takes whichever is connected; with several cameras, '
                'give each its serial number (rs-enumerate-devices -s shows them)'
            )
        return self

    def frame_of(self, name: str) -> str:
        """Return a camera's optical frame."""
        return self.cameras[name].frame or f'{name}_color_optical_frame'


def load_cameras(name_or_path: Path | str) -> CamerasConfig:
    """Read the cameras' YAML.

    Raises:
        RobotConfigError: no such file, or one that does not fit.

    """
    return load_checked(name_or_path, CamerasConfig)
