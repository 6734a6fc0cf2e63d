"""A camera that another node drives (realsense2_camera): its pictures are counted, not touched."""

from __future__ import annotations

import time

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from grape_bringup.robot.camera_config import CameraConfig
from grape_bringup.robot.camera_health import CameraHealth
from grape_bringup.robot.guard_watch import picture_digest, picture_stamp_ns


class TopicWatch:
    """Listens to a camera's colour topic; its callbacks run in the node's executor."""

    def __init__(self, node: Node, camera: CameraConfig) -> None:
        """Subscribe, so that reliable and best-effort publishers are heard."""
        self.health = CameraHealth(camera.fps, camera.frozen_frames)
        self._camera, self._topic = camera, f'{camera.topic}/color/image_raw'
        self._logger = node.get_logger()
        self._node = node
        self._last = time.monotonic()
        self._first_stamp_ns: int | None = None
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(Image, self._topic, self._take, qos, raw=True)
        node.create_timer(camera.timeout_s / 2, self._check)

    def close(self) -> None:
        """Nothing is held."""

    def _take(self, cdr: bytes) -> None:
        self._last = time.monotonic()
        stamp_ns = picture_stamp_ns(cdr)
        if self._first_stamp_ns is None:
            self._first_stamp_ns = stamp_ns
            self.health.opened(f'driven by {self._driver()}')
        # The count that its stamps stand for: the wrapper does not publish the device's own.
        number = round((stamp_ns - self._first_stamp_ns) * 1e-9 * self._camera.fps)
        self.health.take_clock(1e-6 * (time.time_ns() - stamp_ns), 'header stamp')
        if not self.health.take(number, picture_digest(cdr)):
            self._say(
                f'{self._camera.frozen_frames} equal pictures on {self._topic}: it is frozen'
            )

    def _check(self) -> None:
        silent_s = time.monotonic() - self._last
        if silent_s > self._camera.timeout_s:
            self._first_stamp_ns = None
            self._say(f'no picture on {self._topic}; see its driver ({self._driver()})')

    def _driver(self) -> str:
        found = self._node.get_publishers_info_by_topic(self._topic)
        return ', '.join(sorted({p.node_name for p in found})) or 'nobody publishes it'

    def _say(self, problem: str) -> None:
        if self.health.lost(problem):
            self._logger.error(problem)
