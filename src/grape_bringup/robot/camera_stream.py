"""One camera in a thread of its own: read, count, hand on; open it again when it is lost.

A camera that is lost or frozen gives no pictures at all: whoever listens sees them grow old and
holds. A frozen one is closed and opened again, which is what helps with a RealSense.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.impl.rcutils_logger import RcutilsLogger

from grape_bringup.robot.camera_config import CameraConfig
from grape_bringup.robot.camera_health import CameraHealth, digest_of
from grape_bringup.robot.realsense import (
    CameraFrame,
    CameraLostError,
    FrameReader,
    FrameSource,
    RecordingEndedError,
)

CLOSE_S = 3.0
WAIT_S = 0.2  # for one frameset; the time-out is several of these, so that close() is heard


class CameraStream:
    """Reads a source until it is closed."""

    def __init__(
        self,
        name: str,
        config: CameraConfig,
        source: FrameSource,
        take: Callable[[CameraFrame], None],
        logger: RcutilsLogger,
    ) -> None:
        """Begin to read; `take` is called in the camera's thread, for every picture."""
        self.health = CameraHealth(config.fps, config.frozen_frames)
        self._name, self._config, self._source = name, config, source
        self._take, self._logger = take, logger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f'camera {name}', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and let go of the camera."""
        self._stop.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        wait_s = self._config.reconnect_s
        while not self._stop.is_set():
            try:
                self.health.opened(device := self._source.open())
                self._logger.info(f"camera '{self._name}': {device} is open")
                wait_s = self._config.reconnect_s
                self._read()
            except RecordingEndedError as error:
                self._say_lost(error)
                return
            except (
                RuntimeError
            ) as error:  # librealsense's own too: nothing ends this thread unsaid
                self._say_lost(error)
            finally:
                self._source.close()
            self._stop.wait(wait_s)
            wait_s = min(2 * wait_s, self._config.reconnect_max_s)

    def _say_lost(self, error: RuntimeError) -> None:
        if self.health.lost(str(error)):
            self._logger.error(f"camera '{self._name}': {error}")

    def _read(self) -> None:
        reader = FrameReader(self._config.depth)
        last = time.monotonic()
        while not self._stop.is_set():
            frames = self._source.wait(min(WAIT_S, self._config.timeout_s))
            now = time.monotonic()
            if frames is not None:
                if self._hand_on(reader.read(frames)):
                    last = now
            if now - last > self._config.timeout_s:
                raise CameraLostError(
                    f'no whole picture for {now - last:.1f} s: the camera was unplugged, has no '
                    'power or lacks bandwidth; it is opened again'
                )

    def _hand_on(self, frame: CameraFrame | None) -> bool:
        """Give a picture to who takes it; say whether there was one."""
        if frame is None:
            self.health.incomplete()
            return False
        self.health.take_clock(1000 * time.time() - frame.device_ms, frame.clock)
        if not self.health.take(frame.number, digest_of(frame.colour)):
            raise CameraLostError(
                f'{self._config.frozen_frames} equal pictures: the camera is frozen; it is '
                'opened again'
            )
        self._take(frame)
        return True
