"""The trial node's side of the wire: it samples the robot's topics and publishes the contract's.

What a driver publishes is subscribed to as bytes with BEST_EFFORT, which fits whatever the driver
offers; what a control step needs is published again with one stamp for all, as the bridge of a
simulator does. Nothing here publishes on `policy_step`: the guard faults on a second publisher.
"""

from __future__ import annotations

import importlib
import math
import queue
import time
from functools import partial

import numpy as np
from geometry_msgs.msg import PoseStamped
from grape.msg import EpisodeEvent, GuardState, PolicyStep
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32, String

from grape_bringup.robot.sampler import Sampler, Source, restamped, stamp_ns_of
from grape_bringup.robot.trial_config import TrialConfig
from grape_bringup.robot.trial_flow import Trial
from grape_episode.contract import Contract, TopicSpec
from grape_episode.ros_qos import qos_profile

SOURCE = 'trial'
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
# Said once a trial, for a camera stands still in it. Drivers repeat the one and latch the other.
ONCE = {'camera_info': NEWEST, 'camera_pose': LATCHED}
EE_POSE, JOINTS, OPENING = 'the arm (ee_pose)', 'the arm (joint states)', 'the gripper'


class TrialTopics:
    """Publishers and subscribers of one contract; any thread may publish and look."""

    def __init__(self, node: Node, contract: Contract, config: TrialConfig) -> None:
        self.contract = contract
        self.events: queue.Queue[EpisodeEvent] = queue.Queue()
        self.steps: queue.Queue[PolicyStep] = queue.Queue()  # the policy's
        self.executed: queue.Queue[PolicyStep] = queue.Queue()  # the guard's
        self.guard: GuardState | None = None
        self.guard_came_s = -math.inf  # monotonic
        self._node = node
        self._config = config
        self._once: dict[str, bytes] = {}  # contract topic -> the newest of its source
        self._specs = {topic.name: topic for topic in contract.topics}
        self._publishers: dict[str, Publisher] = {}
        self._pictures: dict[str, str] = {}  # source -> contract topic, the policy's camera last
        sources = {
            EE_POSE: Source(config.ee_pose, config.max_state_age_s),
            JOINTS: Source(config.joint_states, config.max_state_age_s),
        }
        if config.gripper_opening:
            sources[OPENING] = Source(config.gripper_opening, config.max_state_age_s)
        sources |= self._cameras()
        self.sampler = Sampler(sources)
        self._listen_to(EE_POSE, PoseStamped)
        self._listen_to(JOINTS, JointState)
        if config.gripper_opening:
            self._listen_to(OPENING, Float32, has_stamp=False)
        for source in self._pictures:
            self._listen_to(source, Image)
        for role in ('joint_state', 'ee_pose', 'episode_event', 'instruction'):
            self._publish_on(contract.topic(role))
        self._listen_to_the_others()

    def forget(self) -> None:
        """Drop what is left over from the trial before."""
        for heard in (self.events, self.steps, self.executed):
            while not heard.empty():
                heard.get_nowait()

    # What a control step is made of

    def stale(self) -> list[str]:
        """Return what is missing or too old."""
        return self.sampler.problems(time.monotonic())

    def problems(self) -> list[str]:
        """Return what is missing, too old, or not as the contract says."""
        found = self.stale()
        for camera, topics in self._config.cameras.items():
            has_depth = self.contract.cameras[camera].depth is not None
            for role in ONCE if has_depth and self._config.needs_calibration else ():
                topic = getattr(topics, role)
                if self._contract_topic(camera, role) not in self._once:
                    found.append(
                        f'camera {camera}: no {role} came on {topic}; run grape calibrate, or '
                        'set needs_calibration: false'
                    )
        return found or self._wrong_pictures()

    def observe(self, stamp_ns: int, with_images: bool) -> None:
        """Publish the newest of everything, with one stamp; the policy's picture goes last."""
        contract, sampler = self.contract, self.sampler
        self._send(contract.topic('joint_state').name, self._joints(stamp_ns))
        pose = restamped(sampler.newest(EE_POSE), stamp_ns)
        self._send(contract.topic('ee_pose').name, pose)
        for source, topic in self._pictures.items() if with_images else ():
            self._send(topic, restamped(sampler.newest(source), stamp_ns))

    def has_state(self) -> bool:
        """Say whether the arm's own state is there and new."""
        lost = self.sampler.problems(time.monotonic(), (EE_POSE, JOINTS))
        return not lost

    def pose(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return where the arm is: (3,) m and (4,) xyzw; None before it said so."""
        cdr = self.sampler.newest(EE_POSE)
        if cdr is None:
            return None
        pose = deserialize_message(cdr, PoseStamped).pose
        at, turn = pose.position, pose.orientation
        return np.array([at.x, at.y, at.z]), np.array([turn.x, turn.y, turn.z, turn.w])

    def picture(self) -> np.ndarray | None:
        """Return the newest picture (H, W, 3) of the policy's camera, if it is RGB."""
        cdr = self.sampler.newest(_image_source(self.contract.policy_camera))
        if cdr is None:
            return None
        image = deserialize_message(cdr, Image)
        if image.encoding != 'rgb8' or image.step != 3 * image.width:
            return None
        pixels = np.frombuffer(image.data, np.uint8)
        return pixels.reshape(image.height, image.width, 3)

    # What is said around it

    def now_ns(self) -> int:
        """Return the node's clock."""
        return self._node.get_clock().now().nanoseconds

    def instruct(self, text: str) -> None:
        """Publish the instruction; it is latched."""
        self._publishers[self.contract.topic('instruction').name].publish(String(data=text))

    def describe_cameras(self) -> None:
        """Publish where the depth cameras stand and how they see, as they last said."""
        for topic, cdr in self._once.items():
            self._send(topic, cdr)

    def event(self, trial: Trial, kind: int, **fields: object) -> None:
        """Publish an EpisodeEvent about a trial."""
        event = EpisodeEvent(
            **{
                'kind': kind,
                'source': SOURCE,
                'episode_id': trial.episode_id,
                'task': trial.task,
                'init_state': trial.init_state,
                'controller': trial.controller,
            }
            | fields
        )
        event.header.stamp = self._node.get_clock().now().to_msg()
        self._publishers[self.contract.topic('episode_event').name].publish(event)

    def present(self) -> set[str]:
        """Return the names of the nodes that can publish episode events."""
        topic = self.contract.topic('episode_event').name
        found = self._node.get_publishers_info_by_topic(topic)
        return {publisher.node_name for publisher in found}

    # Opening the topics

    def _cameras(self) -> dict[str, Source]:
        """Open what the cameras need; returns the sources of pictures."""
        config, sources = self._config, {}
        policy_camera = self.contract.policy_camera
        for camera in sorted(config.cameras, key=lambda name: name == policy_camera):
            topics = config.cameras[camera]
            wanted = {'image': _image_source(camera)}
            if self.contract.cameras[camera].depth is not None:
                wanted = {'depth': f'camera {camera} (depth)'} | wanted
                for role in ONCE:
                    self._keep_newest(getattr(topics, role), self._contract_topic(camera, role))
            for role, source in wanted.items():
                sources[source] = Source(getattr(topics, role), config.max_image_age_s)
                self._pictures[source] = self._contract_topic(camera, role)
                self._publish_on(self._specs[self._pictures[source]])
        return sources

    def _contract_topic(self, camera: str, role: str) -> str:
        spec = self.contract.cameras[camera]
        if role == 'image':
            return spec.topic
        return spec.depth.topic if role == 'depth' else getattr(spec.depth, role)

    def _keep_newest(self, source: str, topic: str) -> None:
        spec = self._specs[topic]
        self._publish_on(spec)
        self._node.create_subscription(
            _kind(spec), source, partial(self._once.__setitem__, topic), ONCE[spec.role], raw=True
        )

    def _listen_to(self, name: str, kind: type, has_stamp: bool = True) -> None:
        def take(cdr: bytes) -> None:
            stamp_ns = stamp_ns_of(cdr) if has_stamp else None
            self.sampler.put(name, cdr, stamp_ns, time.monotonic())

        topic = self.sampler.sources[name].topic
        self._node.create_subscription(kind, topic, take, NEWEST, raw=True)

    def _listen_to_the_others(self) -> None:
        events = self.contract.topic('episode_event')
        self._node.create_subscription(
            EpisodeEvent, events.name, self.events.put, qos_profile(events)
        )
        steps = self.contract.topic('policy_step')
        self._node.create_subscription(PolicyStep, steps.name, self.steps.put, qos_profile(steps))
        executed = [topic for topic in self.contract.topics if topic.role == 'executed_step']
        if executed:
            self._node.create_subscription(
                PolicyStep, executed[0].name, self.executed.put, qos_profile(executed[0])
            )
        self._node.create_subscription(GuardState, 'guard/state', self._take_guard, NEWEST)

    def _take_guard(self, state: GuardState) -> None:
        self.guard, self.guard_came_s = state, time.monotonic()

    def _publish_on(self, spec: TopicSpec) -> None:
        self._publishers[spec.name] = self._node.create_publisher(
            _kind(spec), spec.name, qos_profile(spec)
        )

    # Messages

    def _send(self, topic: str, message: bytes | JointState) -> None:
        self._publishers[topic].publish(message)

    def _joints(self, stamp_ns: int) -> bytes | JointState:
        """Return the joint states, with the gripper's opening as two fingers where asked."""
        cdr, fingers = self.sampler.newest(JOINTS), self._config.fingers
        opening = self.sampler.newest(OPENING) if self._config.gripper_opening else None
        if fingers is None or opening is None:
            return restamped(cdr, stamp_ns)
        joints = deserialize_message(cdr, JointState)
        finger_m = deserialize_message(opening, Float32).data * fingers.open_m
        joints.name = [*joints.name, *fingers.names]
        joints.position = [*joints.position, *([finger_m] * len(fingers.names))]
        joints.velocity, joints.effort = [], []  # of as many joints as there are names, or none
        # Not through serialize_message: it leaves garbage behind the message, which ends up in
        # the bag, where rosbags refuses it.
        joints.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        return joints

    def _wrong_pictures(self) -> list[str]:
        found = []
        for camera, spec in self.contract.cameras.items():
            image = deserialize_message(self.sampler.newest(_image_source(camera)), Image)
            has = (image.encoding, image.width, image.height)
            expected = (spec.encoding, spec.width, spec.height)
            if has != expected:
                found.append(
                    f'camera {camera} gives {has[0]} {has[1]}x{has[2]}; contract '
                    f"'{self.contract.name}' expects {expected[0]} {expected[1]}x{expected[2]}"
                )
        return found


def _image_source(camera: str) -> str:
    return f'camera {camera}'


def _kind(spec: TopicSpec) -> type:
    package, _, name = spec.type.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)
