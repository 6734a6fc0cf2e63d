"""The camera node: RealSense cameras without the ROS wrapper, or a watch over the wrapper's.

For each camera of its configuration it publishes what realsense2_camera would, under the same
names: colour, depth aligned to it and CameraInfo, with one stamp: this machine's clock when the
pair arrived. `camera_pose` (latched) is where the hand-eye calibration says that it stands. How a
camera does is on /diagnostics; a lost or frozen one publishes nothing, and is opened again.

    python -m grape_bringup.robot.camera_node --ros-args -p config:=camera
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from grape_bringup.robot.camera_config import CameraConfig, CamerasConfig, load_cameras
from grape_bringup.robot.camera_watch import TopicWatch
from grape_bringup.robot.hand_eye_file import HandEye, load_hand_eye
from grape_episode import ros_diagnostics
from grape_episode.ros_main import made
from grape_episode.ros_signals import stop_on_signal

if TYPE_CHECKING:  # needs pyrealsense2, which a watch over the wrapper's cameras does without
    from grape_bringup.robot.camera_stream import CameraStream
    from grape_bringup.robot.realsense import FrameSource

POLL_S = 0.1
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class CameraNode(Node):
    """Publishes what the cameras see and how they do."""

    def __init__(
        self, make_source: Callable[[CameraConfig], FrameSource] | None = None, **options: object
    ) -> None:
        """Open the cameras; `options` are rclpy's own.

        Args:
            make_source: config -> FrameSource, in the place of librealsense's pipeline.
            options: rclpy's own.

        Raises:
            ValueError: the configuration cannot be used.
            ImportError: a camera needs pyrealsense2, which is not installed.

        """
        super().__init__('camera_node', **options)
        config = load_cameras(self.declare_parameter('config', 'camera').value)
        poses = {
            name: load_hand_eye(camera.hand_eye)
            for name, camera in config.cameras.items()
            if camera.hand_eye
        }
        self._diagnostics = ros_diagnostics.publisher(self)
        self._pose_publishers = [self._place(config, name, pose) for name, pose in poses.items()]
        self._cameras = {name: self._start(config, name, make_source) for name in config.cameras}
        self.create_timer(ros_diagnostics.PERIOD_S, self._diagnose)

    def close(self) -> None:
        """Let go of the cameras."""
        for camera in self._cameras.values():
            camera.close()

    def _start(
        self, config: CamerasConfig, name: str, make_source: Callable | None
    ) -> CameraStream | TopicWatch:
        camera = config.cameras[name]
        if camera.source == 'topic':
            return TopicWatch(self, camera)
        from grape_bringup.robot.camera_output import CameraOutput
        from grape_bringup.robot.camera_stream import CameraStream
        from grape_bringup.robot.realsense import PipelineSource

        output = CameraOutput(self, camera, config.frame_of(name))
        source = (make_source or PipelineSource)(camera)
        return CameraStream(name, camera, source, output.publish, self.get_logger())

    def _place(self, config: CamerasConfig, name: str, pose: HandEye) -> object:
        """Publish where a camera stands; return the publisher, which must live."""
        x, y, z = pose.translation_m
        qx, qy, qz, qw = pose.quaternion_xyzw
        message = TransformStamped(
            child_frame_id=config.frame_of(name),
            transform=Transform(
                translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=qx, y=qy, z=qz, w=qw)
            ),
        )
        message.header.frame_id = pose.parent_frame
        message.header.stamp = self.get_clock().now().to_msg()
        publisher = self.create_publisher(
            TransformStamped, f'{config.cameras[name].topic}/camera_pose', LATCHED
        )
        publisher.publish(message)
        return publisher

    def _diagnose(self) -> None:
        for name, camera in self._cameras.items():
            values, warning, error = camera.health.look()
            self._diagnostics.publish(
                ros_diagnostics.diagnostics(self, f'camera {name}', values, warning, error)
            )


def main() -> None:
    """Run the node until it is told to stop."""
    stop = stop_on_signal()
    with made(CameraNode, 'camera_node') as (node, executor):
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=POLL_S)
        finally:
            node.close()


if __name__ == '__main__':
    main()
