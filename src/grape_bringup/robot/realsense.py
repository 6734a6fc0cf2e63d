"""RealSense cameras by librealsense: a device by its serial number, or a recording.

A source gives synchronised framesets; `read_frame` aligns depth to colour and gives arrays. A test
puts librealsense's software device in the place of the pipeline: all else is the same.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from grape_bringup.robot.camera_config import CameraConfig

try:
    import pyrealsense2 as rs
except ImportError as error:
    raise ImportError(
        f'pyrealsense2 cannot be imported ({error}). Install it with what it links to: '
        "apt-get install libusb-1.0-0; pip install 'grape-ros2[robot]'. Or let realsense2_camera "
        'drive the cameras (source: topic)'
    ) from error

MILLIMETRE_M = 0.001


class CameraLostError(RuntimeError):
    """A camera that is not there, or not any more; the text says what was found."""


class RecordingEndedError(CameraLostError):
    """A playback that shall not be repeated is at its end."""


@dataclass(frozen=True)
class Intrinsics:
    """How a camera maps its optical frame to pixels, as librealsense says."""

    width: int  # px
    height: int
    matrix: np.ndarray  # (3, 3) float64 px
    distortion: tuple[float, ...]  # k1 k2 p1 p2 k3


@dataclass(frozen=True)
class CameraFrame:
    """One picture with its depth."""

    colour: np.ndarray  # (H, W, 3) uint8 RGB
    depth_mm: np.ndarray | None  # (H, W) uint16, pixel for pixel with colour; 0: not measured
    intrinsics: Intrinsics
    number: int  # the device's count: a gap is a loss
    device_ms: float  # by the device's clock
    clock: str  # which clock that is: hardware_clock, system_time, global_time


class FrameSource(Protocol):
    """Where framesets come from."""

    def open(self) -> str:
        """Start to stream; return what it is, for people.

        Raises:
            CameraLostError: it is not there.

        """
        ...

    def wait(self, timeout_s: float) -> rs.composite_frame | None:
        """Return the next synchronised frameset; None when none came.

        Raises:
            CameraLostError: it is gone.

        """
        ...

    def close(self) -> None:
        """Stop to stream; a source that is not open takes it too."""
        ...


class PipelineSource:
    """A device that is plugged in, or a recording of one."""

    def __init__(self, config: CameraConfig) -> None:
        """Take a camera with the source device or playback; nothing is opened yet."""
        self._config = config
        self._pipeline: rs.pipeline | None = None
        self._is_removed = threading.Event()
        self._context = rs.context()

    def open(self) -> str:
        """Start the pipeline.

        Raises:
            CameraLostError: no such device or file, or one that does not stream so.

        """
        self._is_removed.clear()
        wanted = rs.config()
        if self._config.source == 'playback':
            self._check_file()
            rs.config.enable_device_from_file(wanted, self._config.file, self._config.repeat)
        else:
            self._choose_device(wanted)
        pipeline = rs.pipeline(self._context)
        try:
            device = pipeline.start(wanted).get_device()
        except RuntimeError as error:
            raise CameraLostError(
                f'the camera does not stream {self._streams()}: {error}. Another program may '
                'have it open, or its USB port is not a fast one'
            ) from error
        self._pipeline = pipeline
        self._watch(device)
        return describe(device)

    def wait(self, timeout_s: float) -> rs.composite_frame | None:
        """Return the next frameset.

        Raises:
            CameraLostError: it was unplugged, or the recording has ended.

        """
        try:
            has_come, frames = self._pipeline.try_wait_for_frames(round(1000 * timeout_s))
        except RuntimeError as error:
            raise CameraLostError(f'the camera stopped: {error}') from error
        if self._is_removed.is_set():
            raise CameraLostError('the camera was unplugged')
        if not has_come and self._config.source == 'playback' and not self._config.repeat:
            raise RecordingEndedError(f'{self._config.file} is at its end')
        return frames if has_come else None

    def close(self) -> None:
        """Stop the pipeline."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                pipeline.stop()
            except RuntimeError:  # it was unplugged; there is nothing left to stop
                self._is_removed.set()

    def _streams(self) -> str:
        config = self._config
        return f'{config.width} x {config.height} at {config.fps} Hz'

    def _check_file(self) -> None:
        if not Path(self._config.file).is_file():
            raise CameraLostError(f"there is no recording '{self._config.file}'")

    def _choose_device(self, wanted: rs.config) -> None:
        config = self._config
        connected = {
            device.get_info(rs.camera_info.serial_number): device
            for device in self._context.query_devices()
        }
        serial = config.serial or next(iter(connected), '')
        if serial not in connected or (not config.serial and len(connected) > 1):
            found = ', '.join(describe(device) for device in connected.values()) or 'none'
            looked_for = f'with the serial number {config.serial}' if config.serial else '(one)'
            raise CameraLostError(
                f'a RealSense {looked_for} was looked for; connected: {found}. See the cable and '
                "the USB port, or change `serial` in the cameras' YAML"
            )
        wanted.enable_device(serial)
        size = (config.width, config.height)
        wanted.enable_stream(rs.stream.color, *size, rs.format.rgb8, config.fps)
        if config.depth:
            wanted.enable_stream(rs.stream.depth, *size, rs.format.z16, config.fps)

    def _watch(self, device: rs.device) -> None:
        if self._config.source != 'device':
            return

        def changed(information: rs.event_information) -> None:
            if information.was_removed(device):
                self._is_removed.set()

        self._context.set_devices_changed_callback(changed)


def describe(device: rs.device) -> str:
    """Return such as 'Intel RealSense D435 123456 (USB 3.2)'."""
    parts = [
        device.get_info(key)
        for key in (rs.camera_info.name, rs.camera_info.serial_number)
        if device.supports(key)
    ]
    if device.supports(rs.camera_info.usb_type_descriptor):
        parts.append(f'(USB {device.get_info(rs.camera_info.usb_type_descriptor)})')
    return ' '.join(parts) or 'a camera without a name'


class FrameReader:
    """Turns framesets into arrays, with depth aligned to colour."""

    def __init__(self, with_depth: bool) -> None:
        """Begin; with_depth False leaves depth out."""
        self._align = rs.align(rs.stream.color) if with_depth else None

    def read(self, frames: rs.composite_frame) -> CameraFrame | None:
        """Return the picture and its depth; None when one of them is missing."""
        if self._align is not None:
            if not (frames.get_color_frame() and frames.get_depth_frame()):
                return None
            frames = self._align.process(frames)
        colour = frames.get_color_frame()
        if not colour:
            return None
        depth = frames.get_depth_frame() if self._align is not None else None
        return CameraFrame(
            colour=np.asanyarray(colour.get_data()),
            depth_mm=None if depth is None else _millimetres(depth),
            intrinsics=_intrinsics(colour),
            number=colour.get_frame_number(),
            device_ms=colour.get_timestamp(),
            clock=colour.get_frame_timestamp_domain().name,
        )


def _millimetres(depth: rs.depth_frame) -> np.ndarray:
    values = np.asanyarray(depth.get_data())
    unit_m = depth.get_units()
    if abs(unit_m - MILLIMETRE_M) < 1e-7:
        return values
    scaled = np.rint(values * (unit_m / MILLIMETRE_M))  # D405: 0.1 mm
    return np.clip(scaled, 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _intrinsics(colour: rs.video_frame) -> Intrinsics:
    found = colour.profile.as_video_stream_profile().get_intrinsics()
    matrix = np.array([[found.fx, 0, found.ppx], [0, found.fy, found.ppy], [0, 0, 1.0]])
    return Intrinsics(found.width, found.height, matrix, tuple(found.coeffs))
