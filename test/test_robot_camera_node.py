"""The camera node over DDS: librealsense's software device, its recordings, and what breaks."""

import threading
import time

import numpy as np
import pytest
import yaml
from test_robot_gripper_modbus import wait_for

PREFIX = '/camera/front'


@pytest.fixture(scope='module')
def rs(ros_env):
    return pytest.importorskip(
        'pyrealsense2',
        reason='needs libusb-1.0-0 and pyrealsense2: make setup',
        exc_type=ImportError,
    )


class Listener:
    """A node of its own that hears a camera's topics, as a trial node would."""

    def __init__(self, context, reliability):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import TransformStamped
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import CameraInfo, Image

        self.node = rclpy.create_node('listener', context=context)
        self.colour, self.depth, self.info, self.poses, self.said = [], [], [], [], []
        newest = QoSProfile(depth=1, reliability=reliability)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for kind, name, heard, qos in (
            (Image, f'{PREFIX}/color/image_raw', self.colour, newest),
            (Image, f'{PREFIX}/aligned_depth_to_color/image_raw', self.depth, newest),
            (CameraInfo, f'{PREFIX}/color/camera_info', self.info, newest),
            (TransformStamped, f'{PREFIX}/camera_pose', self.poses, latched),
            (DiagnosticArray, '/diagnostics', self.said, 10),
        ):
            self.node.create_subscription(kind, name, heard.append, qos)

    def health(self):
        """What the camera last said of itself: level, message, values."""
        found = [s for array in self.said for s in array.status if 'camera front' in s.name]
        if not found:
            return 0, '', {}
        values = {pair.key: pair.value for pair in found[-1].values}
        return found[-1].level[0], found[-1].message, values

    def wait_for_pictures(self, count=5):
        """Wait for so many new ones."""
        had = len(self.colour)
        wait_for(lambda: len(self.colour) >= had + count, lambda: f'no pictures: {self.health()}')

    def wait_for_error(self, words):
        wait_for(
            lambda: self.health()[0] == 2 and words in self.health()[1],
            lambda: f'{words!r} is not said: {self.health()}',
        )


@pytest.fixture
def graph(ros_env):
    """Return start(node or None): spin it beside a listener, and return the listener."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import ReliabilityPolicy

    context = rclpy.Context()
    rclpy.init(context=context)
    running = []

    def spin(node):
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()
        running.append((node, executor, thread))

    def start(make=None):
        listener = Listener(context, ReliabilityPolicy.BEST_EFFORT)
        spin(listener.node)
        if make is not None:
            spin(make(context))
        return listener

    yield start
    for node, executor, thread in reversed(running):
        if hasattr(node, 'close'):
            node.close()
        executor.shutdown()
        thread.join(5)
        node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def camera(rs, graph, tmp_path):
    """Return start(source, **settings) -> a listener to a camera node with that source."""

    def start(source, **settings):
        from rclpy.parameter import Parameter

        from grape_bringup.robot.camera_node import CameraNode

        quick = {'topic': PREFIX, 'timeout_s': 0.8, 'reconnect_s': 0.1, 'reconnect_max_s': 0.2}
        path = write(tmp_path, **quick | settings)
        return graph(
            lambda context: CameraNode(
                lambda _: source,
                context=context,
                parameter_overrides=[Parameter('config', value=str(path))],
            )
        )

    return start


@pytest.fixture
def soft(rs):
    from soft_camera import SoftCamera

    return SoftCamera()


def write(folder, **settings):
    path = folder / 'cameras.yaml'
    path.write_text(yaml.safe_dump({'cameras': {'front': settings}}))
    return path


def stamp_s(message):
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


def test_colour_depth_and_intrinsics_arrive_aligned_with_one_stamp_and_the_pose(
    camera, soft, tmp_path
):
    from grape_bringup.robot.hand_eye_file import HandEye

    placed = tmp_path / 'hand_eye.yaml'
    calibration = HandEye(
        setup='eye_to_hand', parent_frame='base', translation_m=(1.0, 0.2, 0.6),
        quaternion_xyzw=(0.0, 1.0, 0.0, 0.0), reprojection_rms_px=0.3, spread_m=0.001,
        spread_deg=0.1, images=20,
    )  # fmt: skip
    placed.write_text(yaml.safe_dump(calibration.model_dump(mode='json')))
    heard = camera(soft, hand_eye=str(placed))
    began = time.time()
    heard.wait_for_pictures(30)
    by_stamp = {stamp_s(d): d for d in heard.depth}
    pairs = [(c, by_stamp[stamp_s(c)]) for c in heard.colour if stamp_s(c) in by_stamp]
    assert len(pairs) > 20
    colour, depth = pairs[-1]
    assert (colour.encoding, colour.width, colour.height) == ('rgb8', 640, 480)
    assert began < stamp_s(colour) < time.time()
    pixels = np.frombuffer(colour.data, np.uint8).reshape(480, 640, 3)
    assert tuple(pixels[0, 0]) == (20, 40, 60) and 250 in pixels[240, :, 0]
    millimetres = np.frombuffer(depth.data, np.uint16).reshape(480, 640)
    assert depth.encoding == '16UC1' and set(np.unique(millimetres)) <= {0, 500, 1000}
    # The near wall begins at the depth camera's column 320, and in the colour picture at
    # 615 * ((320 - 321.5) / 380 + 15 mm / 500 mm) + 321.5 = 337.5.
    assert np.flatnonzero(millimetres[240] == 500)[0] == pytest.approx(337.5, abs=2)
    info = heard.info[-1]
    assert list(info.k) == pytest.approx([615, 0, 321.5, 0, 615, 241.5, 0, 0, 1], abs=1e-3)
    assert info.header.frame_id == colour.header.frame_id == 'front_color_optical_frame'
    pose = wait_for(lambda: heard.poses, 'no pose')[-1]
    assert (pose.header.frame_id, pose.child_frame_id) == ('base', 'front_color_optical_frame')
    assert pose.transform.translation.z == 0.6 and pose.transform.rotation.y == 1.0


def test_depth_in_other_units_is_published_in_millimetres(camera, rs):
    from soft_camera import SoftCamera

    heard = camera(SoftCamera(depth_unit_m=0.0001))  # a D405's
    heard.wait_for_pictures()
    wait_for(lambda: heard.depth, 'no depth')
    assert {500, 1000} <= set(np.frombuffer(heard.depth[-1].data, np.uint16))


def test_an_unplugged_camera_falls_silent_says_so_and_comes_back_when_plugged_in(camera, soft):
    heard = camera(soft)
    heard.wait_for_pictures()
    soft.is_plugged = False
    heard.wait_for_error('unplugged')
    quiet = len(heard.colour)
    time.sleep(0.3)
    assert len(heard.colour) == quiet
    soft.is_plugged = True
    heard.wait_for_pictures()
    wait_for(lambda: heard.health()[0] < 2, lambda: f'still lost: {heard.health()}')
    assert soft.opened >= 2 and int(heard.health()[2]['lost']) >= 1


def test_a_frozen_camera_falls_silent_is_named_and_opened_again(camera, soft):
    heard = camera(soft, frozen_frames=8)
    heard.wait_for_pictures()
    soft.is_frozen = True
    heard.wait_for_error('frozen')
    wait_for(lambda: soft.opened > 2, 'never opened again')
    quiet = len(heard.colour)
    time.sleep(0.5)
    assert len(heard.colour) == quiet  # not one old picture after each opening
    soft.is_frozen = False
    heard.wait_for_pictures()


def test_frames_that_the_device_dropped_are_counted(camera, soft):
    heard = camera(soft)
    heard.wait_for_pictures()
    soft.skip = 7
    wait_for(
        lambda: int(heard.health()[2].get('dropped', 0)) >= 7,
        lambda: f'not counted: {heard.health()}',
    )
    values = heard.health()[2]
    assert values['device_clock'] == 'system_time'
    assert 0 <= float(values['device_clock_offset_ms_p50']) < 1000


def test_a_wrong_serial_number_is_named_with_what_is_connected_and_looked_for_again(
    rs, ros_process, graph, tmp_path
):
    path = write(tmp_path, topic=PREFIX, serial='no-such-serial', reconnect_s=0.1)
    heard = graph()
    process = ros_process('grape_bringup.robot.camera_node', {'config': str(path)})
    heard.wait_for_error('no-such-serial')
    assert 'connected: ' in heard.health()[1]
    assert process.stop() == 0
    assert process.output().count('was looked for') == 1  # said once, not every 0.1 s


def test_a_recording_plays_as_a_camera_again_and_again(rs, ros_process, graph, tmp_path):
    from soft_camera import record

    record(tmp_path / 'table.db3', 30)
    path = write(
        tmp_path, topic=PREFIX, source='playback', file=str(tmp_path / 'table.db3'), depth=False
    )
    heard = graph()
    ros_process('grape_bringup.robot.camera_node', {'config': str(path)})
    wait_for(lambda: len(heard.colour) > 45, lambda: f'played {len(heard.colour)}')
    values = [message.data[0] for message in heard.colour]
    assert len(set(values)) > 20 and heard.colour[-1].width == 320


def test_the_wrappers_camera_is_watched_and_its_silence_and_freeze_are_named(graph, tmp_path):
    from rclpy.parameter import Parameter
    from sensor_msgs.msg import Image

    from grape_bringup.robot.camera_node import CameraNode

    path = write(tmp_path, topic=PREFIX, source='topic', timeout_s=0.8, frozen_frames=8)
    heard = graph(
        lambda context: CameraNode(
            context=context, parameter_overrides=[Parameter('config', value=str(path))]
        )
    )
    heard.wait_for_error(f'no picture on {PREFIX}/color/image_raw')
    wrapper = heard.node.create_publisher(Image, f'{PREFIX}/color/image_raw', 5)

    def play(seconds, is_frozen):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            image = Image(height=48, width=64, encoding='rgb8', step=192)
            image.header.stamp = heard.node.get_clock().now().to_msg()
            value = 7 if is_frozen else time.monotonic_ns() % 251
            image.data = bytes([value]) * (48 * 192)
            wrapper.publish(image)
            time.sleep(1 / 30)

    play(2.2, is_frozen=False)
    wait_for(lambda: heard.health()[0] < 2, lambda: f'{heard.health()}')
    assert 'listener' in heard.health()[2]['device']  # who drives it
    play(2.2, is_frozen=True)
    heard.wait_for_error('frozen')


@pytest.mark.parametrize(
    ('settings', 'word'),
    [
        ({'topic': '/a', 'sorce': 'device'}, 'sorce'),
        ({'topic': '/a', 'source': 'playback'}, 'file'),
        ({'topic': '/a', 'hand_eye': 'nowhere.yaml'}, 'nowhere.yaml'),
    ],
)
def test_wrong_settings_end_the_node_with_the_reason(ros_process, tmp_path, settings, word):
    path = write(tmp_path, **settings)
    process = ros_process('grape_bringup.robot.camera_node', {'config': str(path)})
    assert process.popen.wait(60) == 1
    assert word in process.output() and 'Traceback' not in process.output()
