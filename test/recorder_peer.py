"""A stand-in for the bridge: real topics, made-up observations of a 28 px camera.

    python test/recorder_peer.py CONTRACT EPISODE_ID

plays steps of one episode every 10 ms until it is killed; it writes one line a step.
"""

import sys
import threading
import time

import numpy as np
import yaml
from episode_bags import CONTRACT

from grape_episode.contract import load_contract
from sim_bridge.environment import Observation, SceneSnapshot


def write_contract(path):
    """Write the contract of the made-up episodes to a file."""
    path.write_text(yaml.safe_dump(CONTRACT.to_dict()))
    return path


def observation(step):
    """Return an observation that tells its step."""
    size = CONTRACT.cameras['agentview'].height
    return Observation(
        images={'agentview': np.full((size, size, 3), step % 256, np.uint8)},
        joint_names=('joint_1',),
        joint_positions=np.array([float(step)]),
        ee_position_m=np.array([0.0, 0.0, step / 1000]),
        ee_quaternion_xyzw=np.array([0.0, 0.0, 0.0, 1.0]),
        scene=SceneSnapshot(
            names=('milk_1',),
            positions_m=np.array([[0.5, 0.0, step / 1000]]),
            quaternions_xyzw=np.array([[0.0, 0.0, 0.0, 1.0]]),
            gripper_opening=1.0,
            grasped=(),
            contacts=(),
            collisions=(),
            success=False,
        ),
    )


class Peer:
    """Plays the environment's (and an expert's) part towards a recorder."""

    def __init__(self, rclpy, name='bridge_node', contract=CONTRACT):
        from grape.action import RunEpisode
        from grape.msg import EpisodeEvent
        from grape.srv import LabelEpisode
        from rclpy.executors import SingleThreadedExecutor

        from grape_episode.ros_qos import qos_profile
        from sim_bridge.bridge_topics import BridgeTopics

        self.kinds, self._goal = EpisodeEvent, RunEpisode.Goal
        self._label = LabelEpisode
        self.node = rclpy.create_node(name)
        self.contract = contract
        self.topics = BridgeTopics(self.node, contract)
        self.heard = []
        topic = contract.topic('episode_event')
        self.node.create_subscription(
            EpisodeEvent, topic.name, self.heard.append, qos_profile(topic)
        )
        self._client = self.node.create_client(LabelEpisode, 'recorder_node/label_episode')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def close(self):
        self._executor.shutdown()
        self.node.destroy_node()

    def wait_for_recorder(self):
        """Wait until every topic has its subscriber, and the recorder's events come back."""
        names = [topic.name for topic in self.contract.topics]
        own = {'policy_step', 'episode_event'}  # that the peer itself subscribes to
        wait_until(lambda: all(self.node.count_subscribers(n) > (n in own) for n in names), 20.0)
        wait_until(lambda: 'recorder_node' in self.topics.present())

    def event(self, kind, name, **fields):
        fields = {'config_json': '{"roles": {}}'} | fields
        self.topics.event(self._goal(episode_id=name, controller='expert'), kind, **fields)

    def answers(self, name, kind):
        said = list(self.heard)
        return [
            e for e in said if e.source == 'recorder' and (e.episode_id, e.kind) == (name, kind)
        ]

    def wait_for(self, name, kind, timeout_s=15.0):
        """Return the detail of the recorder's answer."""
        return wait_until(lambda: self.answers(name, kind), timeout_s)[0].detail

    def start(self, name):
        self.event(self.kinds.START, name)
        self.wait_for(name, self.kinds.READY)

    def step(self, name, step):
        self.topics.observe(name, step, observation(step), True)
        self.topics.expert_step(name, step, np.full(7, step / 1000))

    def stop(self, name, steps, outcome='success'):
        """Send the last state and STOP; returns the bag."""
        self.topics.observe(name, steps, observation(steps), False)
        self.event(self.kinds.STOP, name, outcome=outcome, steps=steps)
        return self.wait_for(name, self.kinds.RECORDED)

    def play(self, name, steps, outcome='success', pause_s=0.002):
        self.start(name)
        for step in range(steps):
            self.step(name, step)
            time.sleep(pause_s)
        return self.stop(name, steps, outcome)

    def label(self, name, outcome):
        assert self._client.wait_for_service(10.0)
        future = self._client.call_async(
            self._label.Request(episode_id=name, outcome=outcome, labeller='me')
        )
        return wait_until(future.result)


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, 'nothing came in time'
        time.sleep(0.01)
    return value


def main():
    import rclpy

    assert load_contract(sys.argv[1]) == CONTRACT
    rclpy.init()
    peer = Peer(rclpy)
    peer.wait_for_recorder()
    peer.start(sys.argv[2])
    for step in range(10**6):
        peer.step(sys.argv[2], step)
        sys.stdout.write(f'{step}\n')
        sys.stdout.flush()
        time.sleep(0.01)


if __name__ == '__main__':
    main()
