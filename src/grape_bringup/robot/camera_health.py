"""What a camera does, counted: rate, losses, its clock, and whether its picture still changes."""

from __future__ import annotations

import threading
import zlib

import numpy as np

from grape_episode.measured import Measured, Rate

LEAST_RATE = 0.8  # of the expected one
SLOW_USB = '(USB 2'  # as realsense.describe says it
SAMPLED = 16  # of the rows and columns of a picture that are compared, one in so many


class CameraHealth:
    """Written by the camera's thread, read by the diagnostics'."""

    def __init__(self, fps: int, frozen_frames: int) -> None:
        """Take the rate that is expected, and how many equal pictures mean a frozen camera."""
        self._fps, self._frozen_frames = fps, frozen_frames
        self._lock = threading.Lock()
        self._rate, self._offset = Rate(), Measured('device_clock_offset_ms')
        self._problem = 'not opened yet'
        self._device = self._clock = ''
        self._number: int | None = None
        self._digest: int | None = None
        self._repeats = 0
        self._counts = {'frames': 0, 'dropped': 0, 'incomplete': 0, 'opened': 0, 'lost': 0}

    def opened(self, device: str) -> None:
        """Take note that it streams."""
        with self._lock:
            self._device, self._number = device, None
            self._counts['opened'] += 1

    def lost(self, problem: str) -> bool:
        """Take note of why it does not stream; say whether that is news."""
        with self._lock:
            is_news, self._problem = problem != self._problem, problem
            self._counts['lost'] += is_news
        return is_news

    def incomplete(self) -> None:
        """Count a frameset without its colour or depth."""
        with self._lock:
            self._counts['incomplete'] += 1

    def take(self, number: int, digest: int) -> bool:
        """Count a picture; say whether it may be used, that is, whether the camera is not frozen.

        Args:
            number: the device's count of pictures.
            digest: of its content.

        """
        with self._lock:
            if self._number is not None and number > self._number:  # a playback begins anew
                self._counts['dropped'] += number - self._number - 1
            self._number = number
            self._repeats = self._repeats + 1 if digest == self._digest else 0
            self._digest = digest
            if self._frozen_frames and self._repeats >= self._frozen_frames:
                return False
            self._counts['frames'] += 1
            self._rate.take()
            self._problem = ''
        return True

    def take_clock(self, offset_ms: float, clock: str) -> None:
        """Take the arrival's time on this machine less the device's own stamp."""
        self._offset.take(offset_ms)
        self._clock = clock

    def look(self) -> tuple[dict[str, object], str, str]:
        """Return values, warning and error for the diagnostics, and begin a new rate."""
        with self._lock:
            rate, problem = self._rate.look(), self._problem
            values = {'device': self._device, 'rate_hz': f'{rate:.1f}', **self._counts}
        values |= {'device_clock': self._clock, **self._offset.values()}
        warning = ''
        if rate < LEAST_RATE * self._fps:
            warning = f'{rate:.1f} pictures a second; expected {self._fps}'
        elif SLOW_USB in self._device:
            warning = 'it is on a USB 2 port, which carries less; use a USB 3 port and cable'
        return values, warning, problem


def digest_of(colour: np.ndarray) -> int:
    """Return a number that differs for different pictures (H, W, 3), from a part of them."""
    return zlib.crc32(colour[::SAMPLED, ::SAMPLED].tobytes())
