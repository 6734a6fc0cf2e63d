"""Cameras that fall silent, lag behind or show the same picture again and again."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from grape_bringup.robot.guard_config import GuardConfig
from grape_bringup.robot.guard_inputs import Finding, Now

HEAD_BYTES = 256  # of a serialised Image: header and format, which change while pixels do not
SAMPLES = 4096


@dataclass(frozen=True)
class _Picture:
    arrived_s: float
    stamp_ns: int
    digest: int
    repeats: int  # equal pictures before this one
    since_s: float  # when the first of them came


@dataclass(frozen=True)
class CameraProblem:
    """What is wrong with a camera, and for how long already."""

    finding: Finding
    lasts_s: float


class CameraWatch:
    """One camera; `see` may be called from another thread than `problem`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pictures = 0
        self._last: _Picture | None = None

    def see(self, arrived_s: float, stamp_ns: int, digest: int) -> None:
        """Take note of a picture."""
        last = self._last
        if last is not None and last.digest == digest:
            seen = _Picture(arrived_s, stamp_ns, digest, last.repeats + 1, last.since_s)
        else:
            seen = _Picture(arrived_s, stamp_ns, digest, 0, arrived_s)
        self._last = seen
        self.pictures += 1

    def problem(self, now: Now, since_s: float, config: GuardConfig) -> CameraProblem | None:
        """Return what is wrong, None where nothing is.

        Args:
            now: both clocks.
            since_s: from when on pictures are expected, monotonic.
            config: camera_hold_s, frozen_frames; stamps count where max_step_age_s is not 0.

        """
        last = self._last
        arrived_s = since_s if last is None else max(last.arrived_s, since_s)
        silent_s = now.monotonic_s - arrived_s
        if config.camera_hold_s and silent_s > config.camera_hold_s:
            text = f'{self.name}: no picture for {silent_s:.2f} s'
            return CameraProblem(Finding('camera_stale', text), silent_s)
        if last is None or last.arrived_s < since_s:
            return None
        age_s = (now.clock_ns - last.stamp_ns) * 1e-9
        if config.camera_hold_s and config.max_step_age_s and age_s > config.camera_hold_s:
            text = f'{self.name}: the newest picture is {age_s:.2f} s old by its stamp'
            return CameraProblem(Finding('camera_old', text), age_s)
        if config.frozen_frames and last.repeats + 1 >= config.frozen_frames:
            text = f'{self.name}: {last.repeats + 1} equal pictures, it is frozen'
            return CameraProblem(
                Finding('camera_frozen', text), now.monotonic_s - max(last.since_s, since_s)
            )
        return None


def picture_digest(cdr: bytes) -> int:
    """Return a number that differs for different pictures, from a few thousand of their bytes."""
    body = np.frombuffer(cdr, np.uint8)[min(HEAD_BYTES, len(cdr) // 2) :]
    return zlib.crc32(body[:: max(1, body.size // SAMPLES)].tobytes())


def picture_stamp_ns(cdr: bytes) -> int:
    """Return the stamp of a serialised message that begins with a std_msgs/Header."""
    order = '<' if cdr[1] & 1 else '>'
    seconds = np.frombuffer(cdr, f'{order}i4', 1, 4)[0]
    nanoseconds = np.frombuffer(cdr, f'{order}u4', 1, 8)[0]
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
