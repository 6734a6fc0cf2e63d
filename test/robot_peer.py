"""Stand-ins around the trial node: a robot's drivers and guard, and a policy that always answers.

    python test/robot_peer.py CONTRACT

runs the policy alone, until it is killed.
"""

import sys
import threading
import time
from functools import partial

import numpy as np
import yaml

from grape_episode.contract import Contract, load_contract
from grape_episode.ros_qos import qos_profile

RATE_HZ = 20
CAMERAS = ('front', 'wrist')
HOME = (0.4, 0.0, 0.3)


def robot_contract():
    """The shipped robot's contract with cameras of 32 x 24 px, at 20 Hz."""
    data = load_contract('franka_openvla').to_dict() | {'control_rate_hz': RATE_HZ}
    for camera in data['cameras'].values():
        camera.update(height=24, width=32)
        camera['transform']['crop'] = None
    return Contract.from_dict(data)


def write_contract(path):
    path.write_text(yaml.safe_dump(robot_contract().to_dict()))
    return path


def wait_until(condition, timeout_s=15.0, what='nothing came in time'):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


class _Spun:
    """A node that spins in a thread of its own."""

    def __init__(self, rclpy, name):
        from rclpy.executors import SingleThreadedExecutor

        self.node = rclpy.create_node(name)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)

    def spin(self):
        self._thread.start()

    def close(self):
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(2.0)
        self.node.destroy_node()


class RobotPeer(_Spun):
    """Drivers of two cameras, an arm and a gripper, and a guard that lets all pass.

    has_guard=False leaves arm and guard to a real guard_node.
    """

    def __init__(self, rclpy, has_guard=True):
        from geometry_msgs.msg import PoseStamped, TransformStamped
        from grape.msg import GuardState, PolicyStep
        from rclpy.qos import qos_profile_sensor_data as sensor
        from sensor_msgs.msg import CameraInfo, Image, JointState
        from std_msgs.msg import Float32
        from std_srvs.srv import SetBool

        super().__init__(rclpy, 'robot_peer')
        node = self.node
        self.kinds = GuardState
        self.mode, self.reason = GuardState.ARMED, ''
        self.obeys = True  # the guard's pause service does what it says
        self.at = np.array(HOME)
        self.silent = set()  # of: 'front', 'wrist', 'depth', 'arm', 'guard'
        self.repeats = set()  # cameras that send their last picture again, stamp and all
        self.colour = 100
        self.executes_as = 'policy'
        self._kinds = (Image, PoseStamped, JointState, Float32, CameraInfo, TransformStamped)
        self._last = {}
        self._count = 0
        self._images = {
            c: node.create_publisher(Image, f'/camera/{c}/color/image_raw', sensor)
            for c in CAMERAS
        }
        depth = '/camera/front/aligned_depth_to_color/image_raw'
        self._depth = node.create_publisher(Image, depth, sensor)
        self._info = node.create_publisher(CameraInfo, '/camera/front/color/camera_info', sensor)
        contract = robot_contract()
        latched = qos_profile(
            next(t for t in contract.topics if t.name == 'observation/front/camera_pose')
        )
        self._place = node.create_publisher(TransformStamped, '/camera/front/camera_pose', latched)
        if has_guard:
            self._be_guard(contract, PoseStamped, JointState, Float32, PolicyStep, SetBool)
        for camera in CAMERAS:
            node.create_timer(1 / 30, partial(self._picture, camera))
        self.spin()

    def _be_guard(self, contract, PoseStamped, JointState, Float32, PolicyStep, SetBool):
        node = self.node
        self._pose = node.create_publisher(PoseStamped, 'ee_pose', 10)
        self._joints = node.create_publisher(JointState, 'joint_states', 10)
        self._opening = node.create_publisher(Float32, 'gripper_opening', 10)
        self._guard = node.create_publisher(self.kinds, 'guard/state', 10)
        executed = contract.topic('executed_step')
        self._executed = node.create_publisher(PolicyStep, executed.name, qos_profile(executed))
        steps = contract.topic('policy_step')
        node.create_subscription(PolicyStep, steps.name, self._execute, qos_profile(steps))
        node.create_service(SetBool, 'guard/pause', self._pause)
        node.create_timer(1 / 50, self._state)
        node.create_timer(1 / 20, self._guard_state)

    def calibrate(self):
        """Say where the front camera stands, once; it is latched."""
        self._place.publish(self._kinds[5](child_frame_id='front'))

    def reset(self):
        """Be well again."""
        self.mode, self.reason, self.obeys = self.kinds.ARMED, '', True
        self.at = np.array(HOME)
        self.silent.clear()
        self.repeats.clear()

    def _picture(self, camera):
        if camera in self.silent:
            return
        image = self._last.get(camera)
        if image is None or camera not in self.repeats:
            Image = self._kinds[0]
            pixels = np.full((24, 32, 3), self.colour, np.uint8)
            self._count += 1
            pixels[12:] += np.uint8(self._count % 4)  # a sensor's noise: no two are equal
            image = Image(height=24, width=32, encoding='rgb8', step=96, data=pixels.tobytes())
            image.header.stamp = self.node.get_clock().now().to_msg()
            image.header.frame_id = f'{camera}_color_optical_frame'
            self._last[camera] = image
        self._images[camera].publish(image)
        if camera == 'front' and 'depth' not in self.silent:
            self._depth.publish(self._depth_of(image))
            info = self._kinds[4](height=24, width=32)
            info.header = image.header
            self._info.publish(info)

    def _depth_of(self, image):
        millimetres = np.full((24, 32), 700, np.uint16)
        depth = self._kinds[0](height=24, width=32, encoding='16UC1', step=64)
        depth.data, depth.header = millimetres.tobytes(), image.header
        return depth

    def _state(self):
        if 'arm' in self.silent:
            return
        _, PoseStamped, JointState, Float32, *_ = self._kinds
        pose, joints = PoseStamped(), JointState(name=['fr3_joint1'], position=[0.5])
        pose.header.frame_id = 'base'
        pose.header.stamp = joints.header.stamp = self.node.get_clock().now().to_msg()
        at = pose.pose.position
        at.x, at.y, at.z = (float(v) for v in self.at)
        pose.pose.orientation.w = 1.0
        self._pose.publish(pose)
        self._joints.publish(joints)
        self._opening.publish(Float32(data=0.5))

    def _guard_state(self):
        if 'guard' not in self.silent:
            self._guard.publish(self.kinds(mode=self.mode, reason=self.reason))

    def _pause(self, request, response):
        if self.obeys:
            self.mode = self.kinds.PAUSED if request.data else self.kinds.ARMED
        response.success = self.obeys
        return response

    def _execute(self, step):
        step.source = self.executes_as
        self._executed.publish(step)


class PolicyPeer(_Spun):
    """Answers START with READY and each picture with a step, as policy_node does."""

    def __init__(self, rclpy, contract, name='policy_node'):
        from grape.msg import EpisodeEvent, PolicyStep
        from sensor_msgs.msg import Image

        super().__init__(rclpy, name)
        self.is_mute = False
        self._kinds, self._step_kind = EpisodeEvent, PolicyStep
        self.episode, self.step = '', 0
        self.starts, self.stops = [], []
        self.stamps = []
        events, steps = contract.topic('episode_event'), contract.topic('policy_step')
        self._events = self.node.create_publisher(EpisodeEvent, events.name, qos_profile(events))
        self._steps = self.node.create_publisher(PolicyStep, steps.name, qos_profile(steps))
        self.node.create_subscription(
            EpisodeEvent, events.name, self._on_event, qos_profile(events)
        )
        image = contract.cameras[contract.policy_camera].topic
        spec = next(topic for topic in contract.topics if topic.name == image)
        self.node.create_subscription(Image, image, self._on_image, qos_profile(spec))
        self.spin()

    def _on_event(self, event):
        if event.source == 'policy':
            return
        if event.kind == event.START:
            self.starts.append(event)
            if event.controller == 'policy':
                self.episode, self.step = event.episode_id, 0
                ready = self._kinds(
                    kind=event.READY, source='policy', episode_id=event.episode_id,
                    config_json='{}', adapter_id='base',
                )  # fmt: skip
                self._events.publish(ready)
        elif event.kind == event.STOP:
            self.stops.append(event)
            self.episode = ''

    def _on_image(self, image):
        if not self.episode or self.is_mute:
            return
        step = self._step_kind(
            episode_id=self.episode, step=self.step, source='policy', gripper_opening=1.0
        )
        step.header.stamp, step.header.frame_id = image.header.stamp, 'base'
        stamp = image.header.stamp
        self.stamps.append(stamp.sec * 10**9 + stamp.nanosec)
        step.delta_translation.x = 0.001
        self._steps.publish(step)
        self.step += 1


def main():
    import rclpy

    rclpy.init()
    PolicyPeer(rclpy, load_contract(sys.argv[1]))
    threading.Event().wait()


if __name__ == '__main__':
    main()
