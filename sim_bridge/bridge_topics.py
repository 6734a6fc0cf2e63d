"""The bridge's side of the wire: what it publishes and what it has heard, as two queues."""

from __future__ import annotations

import queue

import numpy as np
from builtin_interfaces.msg import Time
from grape.action import RunEpisode
from grape.msg import EpisodeEvent, PolicyStep
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import String

from grape_episode.camera import CameraGeometry
from grape_episode.contract import Contract
from grape_episode.ros_qos import qos_profile
from sim_bridge import ros_messages
from sim_bridge.environment import Observation

SOURCE = 'bridge'


class BridgeTopics:
    """Publishers and subscribers of one contract; any thread may publish and take."""

    def __init__(self, node: Node, contract: Contract) -> None:
        """Open the topics.

        Raises:
            ContractError: a role that the bridge needs has no topic.

        """
        self.contract = contract
        self.events: queue.Queue[EpisodeEvent] = queue.Queue()
        self.steps: queue.Queue[PolicyStep] = queue.Queue()
        self._node = node
        kinds = {
            'joint_state': ros_messages.JointState,
            'ee_pose': ros_messages.PoseStamped,
            'scene_state': ros_messages.SceneState,
            'episode_event': EpisodeEvent,
            'instruction': String,
            'policy_step': PolicyStep,
        }
        self._publishers: dict[str, Publisher] = {}
        for role, kind in kinds.items():
            topic = contract.topic(role)
            self._publishers[role] = node.create_publisher(kind, topic.name, qos_profile(topic))
        camera = contract.cameras[contract.policy_camera]
        of_camera = {'image': (ros_messages.Image, camera.topic)}
        if camera.depth is not None:
            of_camera['depth'] = (ros_messages.Image, camera.depth.topic)
            of_camera['camera_info'] = (ros_messages.CameraInfo, camera.depth.camera_info)
            of_camera['camera_pose'] = (ros_messages.TransformStamped, camera.depth.camera_pose)
        topics = {topic.name: topic for topic in contract.topics}
        for role, (kind, name) in of_camera.items():
            self._publishers[role] = node.create_publisher(kind, name, qos_profile(topics[name]))
        self._events = contract.topic('episode_event')
        steps = contract.topic('policy_step')
        node.create_subscription(
            EpisodeEvent, self._events.name, self.events.put, qos_profile(self._events)
        )
        node.create_subscription(PolicyStep, steps.name, self.steps.put, qos_profile(steps))

    def forget(self) -> None:
        """Drop what is left over from the episode before."""
        for heard in (self.events, self.steps):
            while not heard.empty():
                heard.get_nowait()

    def stamp(self, step: int) -> Time:
        """Return the simulation time of a control step."""
        return ros_messages.stamp_of(step, self.contract.control_rate_hz)

    def observe(self, episode_id: str, step: int, seen: Observation, with_image: bool) -> None:
        """Publish an observation, the picture last: it is what the policy acts on."""
        stamp, frame = self.stamp(step), self.contract.base_frame
        self._publishers['joint_state'].publish(ros_messages.joint_state(seen, stamp))
        self._publishers['ee_pose'].publish(ros_messages.ee_pose(seen, stamp, frame))
        self._publishers['scene_state'].publish(
            ros_messages.scene_state(seen, stamp, frame, episode_id, step)
        )
        if with_image:
            camera = self.contract.policy_camera
            if 'depth' in self._publishers:
                depth = ros_messages.depth_image(seen.depths_m[camera], stamp, camera)
                self._publishers['depth'].publish(depth)
            picture = ros_messages.image(seen.images[camera], stamp, camera)
            self._publishers['image'].publish(picture)

    def describe_camera(self, geometry: CameraGeometry) -> None:
        """Publish where the depth camera stands and how it sees; both are latched."""
        stamp, frame = self.stamp(0), self.contract.base_frame
        camera = self.contract.policy_camera
        self._publishers['camera_info'].publish(ros_messages.camera_info(geometry, stamp, camera))
        self._publishers['camera_pose'].publish(
            ros_messages.camera_pose(geometry, stamp, frame, camera)
        )

    def expert_step(self, episode_id: str, step: int, action: np.ndarray) -> None:
        """Publish the scripted expert's (7,) action in policy units."""
        self._publishers['policy_step'].publish(
            ros_messages.expert_step(action, self.contract, self.stamp(step), episode_id, step)
        )

    def instruct(self, text: str) -> None:
        """Publish the instruction; it is latched."""
        self._publishers['instruction'].publish(String(data=text))

    def event(self, goal: RunEpisode.Goal, kind: int, **fields: object) -> None:
        """Publish an EpisodeEvent about a goal."""
        event = EpisodeEvent(
            kind=kind,
            source=SOURCE,
            episode_id=goal.episode_id,
            task=goal.task,
            init_state=goal.init_state,
            seed=goal.seed,
            temperature=goal.temperature,
            controller=goal.controller,
            **fields,
        )
        event.header.stamp = self._node.get_clock().now().to_msg()
        self._publishers['episode_event'].publish(event)

    def present(self) -> set[str]:
        """Return the names of the nodes that can publish episode events."""
        found = self._node.get_publishers_info_by_topic(self._events.name)
        return {publisher.node_name for publisher in found}
