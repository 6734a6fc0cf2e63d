"""`grape calibrate capture`: pictures of the board, each with the pose that the arm had then.

A picture and a pose that do not belong together spoil a calibration without showing it: a picture
is taken only while the arm has stood still, and both are new.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import rclpy
import yaml
from geometry_msgs.msg import PoseStamped
from PIL import Image as Picture
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image

from grape_bringup.robot.charuco import DISTORTION, CalibrationError, CameraMatrix
from grape_bringup.robot.hand_eye import ArmPose, ArmPoses, load_poses

STILL_S = 0.5
STILL_M, STILL_RAD = 0.0005, 0.001
NEW_S = 0.5
WAIT_S = 15.0
PICTURE = 'picture-{:03d}.png'


class CaptureNode(Node):
    """Hears a camera and the arm; `take` is called from another thread."""

    def __init__(self, out: Path, camera: str, pose_topic: str, end_effector: str) -> None:
        """Subscribe to the colour picture, its CameraInfo and the pose ('' for no arm)."""
        super().__init__('calibration_capture')
        self._out, self._end_effector = out, end_effector
        self._topics = {
            'picture': f'{camera}/color/image_raw',
            'camera info': f'{camera}/color/camera_info',
        }
        if pose_topic:
            self._topics['pose'] = pose_topic
        self._came: dict[str, float] = {}
        self._picture: Image | None = None
        self._info: CameraInfo | None = None
        self._poses: deque[tuple[float, PoseStamped]] = deque(maxlen=2000)
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        for kind, name, take in (
            (Image, 'picture', self._take_picture),
            (CameraInfo, 'camera info', self._take_info),
            (PoseStamped, 'pose', self._take_pose),
        ):
            if name in self._topics:
                self.create_subscription(kind, self._topics[name], take, newest)

    def missing(self) -> str:
        """Return what has not come yet, or not lately; empty when all is there."""
        now = time.monotonic()
        parts = [
            f'no {name} on {topic}'
            for name, topic in self._topics.items()
            if now - self._came.get(name, -np.inf) > NEW_S
        ]
        return '; '.join(parts)

    def take(self) -> Path:
        """Save a picture, its pose and the camera's intrinsics; return the picture's place.

        Raises:
            CalibrationError: something is missing, or the arm moves.

        """
        if missing := self.missing():
            raise CalibrationError(missing)
        pose = self._still_pose() if 'pose' in self._topics else None
        pixels = self._pixels()
        self._out.mkdir(parents=True, exist_ok=True)
        taken = len(tuple(self._out.glob(PICTURE.replace('{:03d}', '*'))))
        name = PICTURE.format(1 + taken)
        if pose is not None:
            self._keep_pose(name, pose)
        _write(self._out / 'intrinsics.yaml', self._intrinsics().model_dump(mode='json'))
        Picture.fromarray(pixels).save(self._out / name)
        return self._out / name

    def _pixels(self) -> np.ndarray:
        """Return the newest picture, (H, W, 3) uint8 RGB."""
        picture = self._picture
        if picture.encoding not in ('rgb8', 'bgr8'):
            raise CalibrationError(f"the encoding is '{picture.encoding}'; expected rgb8 or bgr8")
        rows = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.step)
        pixels = rows[:, : 3 * picture.width].reshape(picture.height, picture.width, 3)
        return np.ascontiguousarray(pixels[..., ::-1] if picture.encoding == 'bgr8' else pixels)

    def _keep_pose(self, name: str, pose: PoseStamped) -> None:
        poses = self._known(pose.header.frame_id)
        at = pose.pose.position
        poses[name] = ArmPose(
            position_m=(at.x, at.y, at.z), quaternion_xyzw=tuple(_quaternion(pose).tolist())
        )
        everything = ArmPoses(
            base_frame=pose.header.frame_id, end_effector_frame=self._end_effector, images=poses
        )
        _write(self._out / 'poses.yaml', everything.model_dump(mode='json'))

    def _known(self, frame: str) -> dict[str, ArmPose]:
        path = self._out / 'poses.yaml'
        if not path.is_file():
            return {}
        known = load_poses(path)
        if known.base_frame != frame:
            raise CalibrationError(
                f"'{path}' is of the frame {known.base_frame}, the pose is in {frame}; choose "
                'another folder'
            )
        return dict(known.images)

    def _still_pose(self) -> PoseStamped:
        """Return the newest pose, if the arm stood still."""
        now = time.monotonic()
        lately = [pose for came, pose in tuple(self._poses) if now - came < STILL_S]
        places = np.array([[getattr(p.pose.position, a) for a in 'xyz'] for p in lately])
        moved_m = np.linalg.norm(places - places[-1], axis=1).max()
        turns = Rotation.from_quat(np.array([_quaternion(pose) for pose in lately]))
        turned_rad = (turns[-1].inv() * turns).magnitude().max()
        if moved_m > STILL_M or turned_rad > STILL_RAD:
            raise CalibrationError(
                f'the arm moved by {1000 * moved_m:.1f} mm and {np.degrees(turned_rad):.2f} '
                f'degrees in the last {STILL_S:g} s; let it stand still'
            )
        return lately[-1]

    def _intrinsics(self) -> CameraMatrix:
        info = self._info
        return CameraMatrix(
            width=info.width, height=info.height, fx=info.k[0], fy=info.k[4], cx=info.k[2],
            cy=info.k[5], distortion=tuple(info.d)[:DISTORTION],
        )  # fmt: skip

    def _take_picture(self, message: Image) -> None:
        self._picture, self._came['picture'] = message, time.monotonic()

    def _take_info(self, message: CameraInfo) -> None:
        self._info, self._came['camera info'] = message, time.monotonic()

    def _take_pose(self, message: PoseStamped) -> None:
        self._poses.append((time.monotonic(), message))
        self._came['pose'] = time.monotonic()


def run_capture(out: Path, camera: str, pose_topic: str, end_effector: str) -> None:
    """Take a picture at every line of stdin, until q or its end.

    Raises:
        CalibrationError: the camera or the arm says nothing.

    """
    rclpy.init()
    executor = SingleThreadedExecutor()
    node = CaptureNode(out, camera, pose_topic, end_effector)
    executor.add_node(node)
    thread = threading.Thread(target=_spin, args=(executor,), daemon=True)
    thread.start()
    try:
        _wait_for_topics(node)
        sys.stdout.write('Enter takes a picture, q and Enter ends.\n')
        sys.stdout.flush()
        for line in iter(sys.stdin.readline, ''):
            if line.strip() == 'q':
                break
            try:
                said = f'took {node.take()}'
            except CalibrationError as error:
                said = f'not taken: {error}'
            sys.stdout.write(said + '\n')
            sys.stdout.flush()
    finally:
        executor.shutdown()
        thread.join(1.0)
        rclpy.try_shutdown()


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return


def _wait_for_topics(node: CaptureNode) -> None:
    deadline = time.monotonic() + WAIT_S
    while missing := node.missing():
        if time.monotonic() > deadline:
            raise CalibrationError(f'{missing}; is the driver running, in this ROS domain?')
        time.sleep(0.05)


def _quaternion(pose: PoseStamped) -> np.ndarray:
    q = pose.pose.orientation
    return np.array([q.x, q.y, q.z, q.w])


def _write(path: Path, values: dict[str, object]) -> None:
    """Replace a file as a whole: a kill leaves the old one."""
    partial = path.with_suffix('.partial')
    partial.write_text(yaml.safe_dump(values, sort_keys=False))
    partial.replace(path)
