"""A camera's pictures as messages: the topics that realsense2_camera would publish."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from grape_bringup.robot.camera_config import CameraConfig
from grape_bringup.robot.realsense import CameraFrame

QUEUE = 5  # pictures, for reliable listeners that are late


class CameraOutput:
    """The topics of one camera."""

    def __init__(self, node: Node, camera: CameraConfig, frame_id: str) -> None:
        """Open the publishers."""
        self._clock, self._frame_id = node.get_clock(), frame_id
        publisher = node.create_publisher
        self._colour = publisher(Image, f'{camera.topic}/color/image_raw', QUEUE)
        self._info = publisher(CameraInfo, f'{camera.topic}/color/camera_info', QUEUE)
        depth = f'{camera.topic}/aligned_depth_to_color/image_raw'
        self._depth = publisher(Image, depth, QUEUE) if camera.depth else None

    def publish(self, frame: CameraFrame) -> None:
        """Publish a picture; runs in the camera's thread."""
        stamp = self._clock.now().to_msg()
        found = frame.intrinsics
        info = CameraInfo(
            height=found.height,
            width=found.width,
            distortion_model='plumb_bob',
            d=list(found.distortion),
            k=found.matrix.ravel().tolist(),
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[v for row in found.matrix.tolist() for v in (*row, 0.0)],
        )
        info.header.stamp, info.header.frame_id = stamp, self._frame_id
        if self._depth is not None:
            self._depth.publish(self._image(frame.depth_mm, '16UC1', 2, stamp))
        self._info.publish(info)
        self._colour.publish(self._image(frame.colour, 'rgb8', 3, stamp))

    def _image(self, pixels: np.ndarray, encoding: str, bytes_each: int, stamp: Time) -> Image:
        height, width = pixels.shape[:2]
        image = Image(height=height, width=width, encoding=encoding, step=width * bytes_each)
        image.header.stamp, image.header.frame_id = stamp, self._frame_id
        image.data = pixels.tobytes()  # an ndarray here would take a thousand times longer
        return image
