"""The page's own ROS node: what the robot says, and its buttons."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from grape.msg import GuardState, TrialState
from grape.srv import LabelEpisode
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger

from grape_bringup.label_page.film import jpeg
from grape_bringup.robot.trial_config import load_trial_config
from grape_episode import ros_diagnostics
from grape_episode.contract import load_contract

ANSWER_S = 3.0
SPIN_S = 0.1
JOIN_S = 2.0
GHOST_FRESH_S = 1.0  # a ghost comes at 5 Hz while the scene is put back
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
TRIGGERS = (
    *(f'trial/{name}' for name in (
        'next', 'ready', 'success', 'failure', 'discard', 'pause', 'resume', 'abort',
    )),
    *(f'guard/{name}' for name in ('stop', 'reset', 'recover')),
)  # fmt: skip


class LiveRobot:
    """What the page shows and presses; safe on any thread."""

    def __init__(self, node: Node, camera_topic: str) -> None:
        self.trial: TrialState | None = None
        self.guard: GuardState | None = None
        self._guard_s = -math.inf
        self._node = node
        self._lock = threading.Lock()
        self._camera: bytes | None = None
        self._ghost: bytes | None = None
        self._ghost_s = -math.inf
        self._count = 0  # of pictures
        node.create_subscription(TrialState, 'trial/state', self._take_trial, LATCHED)
        node.create_subscription(GuardState, 'guard/state', self._take_guard, NEWEST)
        node.create_subscription(Image, camera_topic, self._take_camera, NEWEST, raw=True)
        node.create_subscription(Image, 'trial/ghost', self._take_ghost, NEWEST, raw=True)
        self._triggers = {name: node.create_client(Trigger, name) for name in TRIGGERS}
        self._arm = node.create_client(SetBool, 'guard/arm')
        self._label = node.create_client(LabelEpisode, 'trial/label')
        self._diagnostics = ros_diagnostics.publisher(node)
        node.create_timer(ros_diagnostics.PERIOD_S, self._report)

    def guard_age_s(self) -> float:
        """Return how long ago the guard spoke."""
        return time.monotonic() - self._guard_s

    def picture(self, newer_than: int) -> tuple[int, bytes | None]:
        """Return the newest picture's number and JPEG: with the ghost while there is one.

        None where there is no newer one, or none that can be shown.
        """
        with self._lock:
            is_resetting = time.monotonic() - self._ghost_s < GHOST_FRESH_S
            number, cdr = self._count, self._ghost if is_resetting else self._camera
        if cdr is None or number == newer_than:
            return number, None
        image = deserialize_message(cdr, Image)
        if image.encoding != 'rgb8' or image.step != 3 * image.width:
            return number, None
        pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        return number, jpeg(pixels)

    def press(self, service: str) -> tuple[bool, str]:
        """Call a Trigger service; return whether it did it, and what it said."""
        return self._call(self._triggers[service], Trigger.Request(), service)

    def arm(self, on: bool) -> tuple[bool, str]:
        """Arm or disarm the guard."""
        return self._call(self._arm, SetBool.Request(data=on), 'guard/arm')

    def label(self, outcome: str, reason: str, labeller: str) -> tuple[bool, str]:
        """Judge the running or the last trial."""
        request = LabelEpisode.Request(outcome=outcome, reason=reason, labeller=labeller)
        return self._call(self._label, request, 'trial/label')

    def _call(self, client: object, request: object, name: str) -> tuple[bool, str]:
        if not client.service_is_ready():
            return False, f'{name} is not offered: is its node running?'
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(ANSWER_S):
            client.remove_pending_request(future)
            return False, f'{name} did not answer within {ANSWER_S:g} s'
        answer = future.result()
        return answer.success, answer.message

    def _report(self) -> None:
        values = {'pictures': self._count, 'guard_age_s': f'{self.guard_age_s():.2f}'}
        self._diagnostics.publish(ros_diagnostics.diagnostics(self._node, 'page', values))

    def _take_trial(self, state: TrialState) -> None:
        self.trial = state

    def _take_guard(self, state: GuardState) -> None:
        self.guard, self._guard_s = state, time.monotonic()

    def _take_camera(self, cdr: bytes) -> None:
        with self._lock:
            self._camera = cdr
            self._count += 1

    def _take_ghost(self, cdr: bytes) -> None:
        with self._lock:
            self._ghost, self._ghost_s = cdr, time.monotonic()
            self._count += 1


@contextmanager
def live_robot(node: Node, contract: str, config: str) -> Iterator[LiveRobot]:
    """Spin the page's node for as long as the block lasts.

    Raises:
        ValueError: the contract or the trial configuration cannot be used.

    """
    checked = load_contract(contract)
    topic = load_trial_config(config, checked).cameras[checked.policy_camera].image
    robot = LiveRobot(node, topic)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    closing = threading.Event()

    def spin() -> None:
        while not closing.is_set():
            executor.spin_once(timeout_sec=SPIN_S)

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield robot
    finally:
        closing.set()
        thread.join(JOIN_S)
        executor.shutdown(timeout_sec=JOIN_S)
