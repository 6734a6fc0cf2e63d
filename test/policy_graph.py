"""The policy node and a stand-in for the bridge in a real ROS graph."""

import threading
import time

from policy_tiny import MILK, picture

SIZE = 224


class Graph:
    """The policy node and a stand-in for the bridge, spun by a thread each.

    parameters None: the node is a process that the test starts.
    """

    def __init__(self, rclpy, parameters):
        from grape.msg import EpisodeEvent, PolicyStep
        from grape.srv import LoadAdapter
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter import Parameter
        from sensor_msgs.msg import Image
        from std_msgs.msg import String

        from grape_episode.contract import load_contract
        from grape_episode.ros_qos import qos_profile
        from grape_policy_node.policy_node import PolicyNode

        self.contract = load_contract('libero')
        qos = {topic.role: qos_profile(topic) for topic in self.contract.topics}
        self.node = None
        if parameters is not None:
            self.node = PolicyNode()
            self.node.set_parameters([Parameter(n, value=v) for n, v in parameters.items()])
        self.bridge = rclpy.create_node('bridge_node')
        self.events, self.steps = [], []
        self.bridge.create_subscription(
            EpisodeEvent, 'episode_event', self.events.append, qos['episode_event']
        )
        self.bridge.create_subscription(
            PolicyStep, 'policy_step', self.steps.append, qos['policy_step']
        )
        self._event_type, self._image_type = EpisodeEvent, Image
        self._events = self.bridge.create_publisher(
            EpisodeEvent, 'episode_event', qos['episode_event']
        )
        camera = self.contract.cameras[self.contract.policy_camera]
        self._images = self.bridge.create_publisher(Image, camera.topic, qos['image'])
        self._instructions = self.bridge.create_publisher(
            String, 'instruction', qos['instruction']
        )
        self._client = self.bridge.create_client(LoadAdapter, 'policy_node/load_adapter')
        self._load_type = LoadAdapter
        self.executors = []
        for node in filter(None, (self.node, self.bridge)):
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            threading.Thread(target=executor.spin, daemon=True).start()
            self.executors.append(executor)

    def close(self):
        for executor in self.executors:
            executor.shutdown()
        if self.node is not None:
            self.node.close()
            self.node.destroy_node()
        self.bridge.destroy_node()

    def bring_up(self, active=True):
        from rclpy.lifecycle import TransitionCallbackReturn

        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if active:
            assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        return self.connected()

    def connected(self):
        """Wait until the two nodes see each other."""
        wait_until(lambda: self._images.get_subscription_count() > 0)
        wait_until(lambda: self._events.get_subscription_count() > 1)
        wait_until(lambda: self.bridge.count_publishers('policy_step') > 0)
        wait_until(lambda: self.bridge.count_publishers('episode_event') > 1)
        return self

    def answers(self, episode_id):
        return [e for e in self.events if e.source == 'policy' and e.episode_id == episode_id]

    def send(self, kind, episode_id, **fields):
        event = self._event_type(kind=kind, episode_id=episode_id, source='bridge', **fields)
        self._events.publish(event)

    def start(self, episode_id, seed=0, temperature=0.0, instruction=MILK, controller='policy'):
        """Send START; return the policy's answer."""
        self.send(
            self._event_type.START, episode_id, seed=seed, temperature=temperature,
            instruction=instruction, controller=controller, task='libero_object/0',
        )  # fmt: skip
        return wait_until(lambda: self.answers(episode_id))[0]

    def image(self, seed, step, size=SIZE, encoding='rgb8'):
        message = self._image_type(height=size, width=size, encoding=encoding, step=3 * size)
        message.data = picture(seed, size).tobytes()
        message.header.stamp.nanosec = step * 50_000_000
        self._images.publish(message)
        return message

    def act(self, seed, step):
        """One control step in lockstep; returns the PolicyStep."""
        count = len(self.steps)
        self.image(seed, step)
        wait_until(lambda: len(self.steps) > count)
        return self.steps[-1]

    def say(self, text):
        from std_msgs.msg import String

        self._instructions.publish(String(data=text))

    def load_adapter(self, path):
        assert self._client.wait_for_service(10.0)
        future = self._client.call_async(self._load_type.Request(path=str(path)))
        return wait_until(future.result)


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, 'nothing came in time'
        time.sleep(0.005)
    return value
