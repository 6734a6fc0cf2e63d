"""A robot's side of a recording: streams at their own rate, executed steps, and a bad disk."""

import struct
import subprocess
from pathlib import Path

import numpy as np
from episode_bags import CONTRACT
from recorder_peer import wait_until
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from grape_episode.contract import Contract

IMAGES, JOINTS = 'stream/image', 'stream/joints'
EXTRA = (
    {'name': 'executed_step', 'type': 'grape/msg/PolicyStep', 'role': 'executed_step'},
    {'name': IMAGES, 'type': 'sensor_msgs/msg/Image', 'role': 'raw', 'per_step': False},
    {'name': JOINTS, 'type': 'sensor_msgs/msg/JointState', 'role': 'raw', 'per_step': False},
)
ROBOT = Contract.from_dict(
    CONTRACT.to_dict() | {'topics': [*CONTRACT.to_dict()['topics'], *EXTRA]}, 'robot'
)


class Stream:
    """One publisher of numbered messages, in a node of its own."""

    def __init__(self, rclpy, topic, reliable=True, size=0, name='driver'):
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image, JointState

        kind = {IMAGES: Image, JOINTS: JointState}[topic]
        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self.node = rclpy.create_node(name)
        self.topic, self.sent = topic, 0
        self._publisher = self.node.create_publisher(
            kind, topic, QoSProfile(depth=50, reliability=policy)
        )
        self._message = kind()
        if size:
            noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            self._message.height, self._message.width = 1, size
            self._message.data = noise.tobytes()

    def wait_matched(self):
        wait_until(lambda: self._publisher.get_subscription_count() > 0, 30.0)

    def send(self, count=1):
        for _ in range(count):
            self._message.header.stamp.sec = self.sent
            self._publisher.publish(self._message)
            self.sent += 1

    def close(self):
        self.node.destroy_node()


def streamed(bag, topic):
    """Return the numbers of a stream's messages in a bag, and their log times."""
    store = get_typestore(Stores.ROS2_KILTED)
    with Reader(bag) as reader:
        chosen = [c for c in reader.connections if c.topic == topic]
        found = [
            (store.deserialize_cdr(cdr, c.msgtype).header.stamp.sec, at)
            for c, at, cdr in reader.messages(connections=chosen)
        ]
    return [number for number, _ in found], [at for _, at in found]


def offered(bag, topic):
    """Return the reliability that a bag's metadata has for a topic."""
    with Reader(bag) as reader:
        (connection,) = [c for c in reader.connections if c.topic == topic]
    return connection.ext.offered_qos_profiles[0].reliability.name.lower()


class Diagnostics:
    """What the recorder says of itself."""

    def __init__(self, node):
        from diagnostic_msgs.msg import DiagnosticArray

        self.said = []
        node.create_subscription(DiagnosticArray, '/diagnostics', self._take, 50)

    def _take(self, array):
        self.said += [s for s in array.status if s.name.startswith('recorder_node:')]

    def wait_for(self, test, timeout_s=30.0):
        """Wait for a status that passes the test."""
        return wait_until(lambda: next((s for s in list(self.said) if test(s)), None), timeout_s)


def value(status, key):
    return next((v.value for v in status.values if v.key == key), '')


class Faults:
    """slow_disk.c in a process that is started with `environment`."""

    def __init__(self, folder):
        library = folder / 'slow_disk.so'
        source = Path(__file__).with_name('slow_disk.c')
        command = ['gcc', '-shared', '-fPIC', '-O1', '-o', library, source, '-ldl']
        subprocess.run(command, check=True)
        self._path = folder / 'faults'
        self._path.write_bytes(struct.pack('3d', 0, 0, 0))
        self.environment = {'LD_PRELOAD': str(library), 'FAULTS': str(self._path)}

    def set(self, seconds_a_megabyte=0.0, errno=0, clock_s=0.0):
        with self._path.open('r+b') as file:
            file.write(struct.pack('3d', seconds_a_megabyte, errno, clock_s))
