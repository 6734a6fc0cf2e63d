"""`grape calibrate capture` over DDS: pictures with the pose that the arm had, or none."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import yaml
from board_pictures import CAMERA, SPEC, picture, views
from test_robot_gripper_modbus import wait_for

from grape_bringup.robot.charuco import find_board
from grape_bringup.robot.hand_eye import load_poses


class Workstation:
    """A camera and an arm on their topics; `moves` lets the arm move."""

    def __init__(self):
        import rclpy
        from geometry_msgs.msg import PoseStamped
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo, Image

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('workstation', context=self.context)
        self.moves, self.is_silent, self.place = False, False, 0.3
        self.seen = np.repeat(picture(views(1)[0])[..., None], 3, axis=2)
        self._image = self.node.create_publisher(Image, '/camera/front/color/image_raw', 5)
        self._info = self.node.create_publisher(CameraInfo, '/camera/front/color/camera_info', 5)
        self._pose = self.node.create_publisher(PoseStamped, 'ee_pose', 5)
        self.node.create_timer(0.05, self._say)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self):
        import rclpy

        self._executor.shutdown()
        self._thread.join(5)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def _say(self):
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import CameraInfo, Image

        self.place += 0.01 if self.moves else 0.0
        pose = PoseStamped()
        pose.header.frame_id = 'base'
        pose.pose.position.x = self.place
        pose.pose.orientation.y = 1.0
        self._pose.publish(pose)
        if self.is_silent:
            return
        height, width = self.seen.shape[:2]
        image = Image(height=height, width=width, encoding='rgb8', step=3 * width)
        image.data = self.seen.tobytes()
        self._image.publish(image)
        k = CAMERA.matrix.ravel().tolist()
        self._info.publish(CameraInfo(height=height, width=width, k=k, d=[0.0] * 5))


@pytest.fixture
def workstation(ros_env):
    station = Workstation()
    yield station
    station.close()


@pytest.fixture
def capture(workstation, tmp_path):
    """Return (process, press): `press(line)` writes a line to it and gives its next answer."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'grape_bringup.cli', 'calibrate', 'capture', str(tmp_path / 'out')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
        text=True,
    )

    def press(line=''):
        process.stdin.write(line + '\n')
        process.stdin.flush()
        return process.stdout.readline()

    assert 'Enter takes a picture' in process.stdout.readline()
    time.sleep(0.6)  # for a stretch of poses in which the arm stood still
    yield process, press
    process.kill()
    process.communicate()


def test_pictures_are_kept_with_their_pose_and_a_moving_arm_or_a_silent_camera_is_refused(
    capture, workstation, tmp_path
):
    process, press = capture
    assert press().startswith('took')
    workstation.moves = True
    time.sleep(0.3)
    said = press()
    assert said.startswith('not taken') and 'stand still' in said
    workstation.moves = False
    wait_for(lambda: press().startswith('took'), 'refused for good')
    workstation.is_silent = True
    time.sleep(1.0)
    assert 'no picture on /camera/front/color/image_raw' in press()
    process.stdin.write('q\n')
    process.stdin.flush()
    assert process.wait(10) == 0
    poses = load_poses(tmp_path / 'out' / 'poses.yaml')
    assert poses.base_frame == 'base' and len(poses.images) == 2
    assert poses.images['picture-001.png'].position_m[0] == pytest.approx(0.3)
    assert poses.images['picture-002.png'].position_m[0] == pytest.approx(workstation.place)
    assert len(find_board(SPEC, tmp_path / 'out').found) == 2
    assert yaml.safe_load((tmp_path / 'out' / 'intrinsics.yaml').read_text())['fx'] == CAMERA.fx
