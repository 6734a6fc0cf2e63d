"""Everybody around the guard, over DDS: policy, cameras, a person, the operator, the controller.

    python test/guard_peer.py CONTRACT EPISODE_ID

is the policy alone: a step every control period, until it is killed.
"""

import sys
import threading
import time

import numpy as np
import yaml
from guard_world import contract as robot_contract

from grape_episode.contract import load_contract
from grape_episode.ros_qos import qos_profile

EPISODE = 'trial'
GUARD = 'grape_bringup.robot.guard_node'
# Test machines are busy: what is not under test must not act by itself.
PATIENT = {
    'hold_after_periods': 20.0, 'camera_hold_s': 2.0, 'camera_fault_s': 20.0,
    'max_state_age_s': 2.0, 'max_step_age_s': 5.0, 'teleop_timeout_s': 1.0,
}  # fmt: skip


def wait_until(condition, timeout_s=15.0, what='nothing came in time'):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
    return value


def write_contract(path):
    """Write the contract of the tests: 10 Hz, one camera of 28 px."""
    contract = robot_contract().with_camera_size(28)
    path.write_text(yaml.safe_dump(contract.to_dict()))
    return path


class Peer:
    """A node that spins in a thread of its own, and remembers what it heard."""

    def __init__(self, rclpy, contract, name='policy_node', may_step=True):
        from grape.msg import EpisodeEvent, GuardState, PolicyStep, TeleopCommand
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image
        from std_msgs.msg import Bool, String

        self.rclpy, self.contract = rclpy, contract
        self.kinds, self.modes = EpisodeEvent, GuardState
        self._types = PolicyStep, TeleopCommand, Image, Bool, String
        self.node = node = rclpy.create_node(name)
        self.heard = {}  # topic -> [(monotonic, message)]
        steps = contract.topic('policy_step')
        self._steps = (
            node.create_publisher(PolicyStep, steps.name, qos_profile(steps)) if may_step else None
        )
        events = contract.topic('episode_event')
        self._events = node.create_publisher(EpisodeEvent, events.name, qos_profile(events))
        camera = contract.cameras[contract.policy_camera]
        self._images = node.create_publisher(Image, camera.topic, 10)
        self._teleop = node.create_publisher(TeleopCommand, 'teleop/command', 10)
        self._trouble = node.create_publisher(String, 'fake_arm/trouble', 10)
        self._deadman = node.create_publisher(Bool, 'deadman', 10)
        self.number, self.picture = 0, 0
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def close(self):
        self._executor.shutdown()
        self.node.destroy_node()

    def listen(self, kind, topic):
        heard = self.heard.setdefault(topic, [])
        self.node.create_subscription(
            kind, topic, lambda message: heard.append((time.monotonic(), message)), 200
        )

    def messages(self, topic):
        return [message for _, message in list(self.heard[topic])]

    # What it says

    def stamp(self, offset_s=0.0):
        from rclpy.time import Time

        now = self.node.get_clock().now().nanoseconds
        return Time(nanoseconds=now + round(offset_s * 1e9)).to_msg()

    def event(self, kind, episode=EPISODE, **fields):
        fields = {'source': 'trial', 'controller': 'policy'} | fields
        self._events.publish(self.kinds(kind=kind, episode_id=episode, **fields))

    def look(self, frozen=False, stamp=None):
        """Publish a picture; returns its stamp."""
        image = self._types[2](height=28, width=28, encoding='rgb8', step=84)
        image.header.stamp = self.stamp() if stamp is None else stamp
        self.picture += not frozen
        image.data = np.full(28 * 84, self.picture % 251, np.uint8).tobytes()
        self._images.publish(image)
        return image.header.stamp

    def step(self, x=0.0, y=0.0, z=0.0, gripper=1.0, stamp=None, episode=EPISODE):
        """Publish a step on the newest observation; returns its number."""
        message = self._types[0](
            episode_id=episode, step=self.number, gripper_opening=gripper, source='policy'
        )
        message.header.stamp = self.stamp() if stamp is None else stamp
        message.header.frame_id = self.contract.action.frame
        at = message.delta_translation
        at.x, at.y, at.z = float(x), float(y), float(z)
        self.number += 1
        self._steps.publish(message)
        return message.step

    def act(self, count, frozen=False, **command):
        """See and act for some control periods."""
        for _ in range(count):
            stamp = self.look(frozen)
            self.step(stamp=stamp, **command)
            time.sleep(1.0 / self.contract.control_rate_hz)

    def drive(self, engaged=True, **linear):
        message = self._types[1](engaged=engaged, gripper_opening=float('nan'), device='test')
        message.header.frame_id = 'base'
        for axis, value in linear.items():
            setattr(message.linear, axis, value)
        self._teleop.publish(message)

    def press_deadman(self, pressed):
        self._deadman.publish(self._types[3](data=pressed))

    def trouble(self, what):
        self._trouble.publish(self._types[4](data=what))


class Bench(Peer):
    """A peer that also hears the guard and calls its services."""

    def __init__(self, rclpy, contract):
        super().__init__(rclpy, contract)
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseStamped
        from std_msgs.msg import Float32, String
        from std_srvs.srv import SetBool, Trigger

        self._services = {'arm': SetBool, 'pause': SetBool} | dict.fromkeys(
            ('stop', 'reset', 'recover'), Trigger
        )
        self._clients = {}
        for kind, topic in (
            (self._types[0], 'executed_step'),
            (self.modes, 'guard/state'),
            (self.kinds, 'episode_event'),
            (PoseStamped, 'fake_arm/target'),
            (PoseStamped, 'ee_pose'),
            (String, 'fake_arm/told'),
            (Float32, 'gripper_opening'),
            (DiagnosticArray, '/diagnostics'),
        ):
            self.listen(kind, topic)

    def wait_for_guard(self):
        """Wait until everybody sees everybody, and forget what was said before."""
        node = self.node
        wait_until(lambda: node.count_publishers('guard/state'), 90.0, 'no guard')
        for name in (self._steps.topic_name, self._images.topic_name, 'teleop/command', 'estop'):
            wait_until(lambda name=name: node.count_subscribers(name), 20.0, name)
        wait_until(lambda: self._events.get_subscription_count() > 1, 20.0)
        wait_until(lambda: self._trouble.get_subscription_count() > 0, 20.0)
        for heard in self.heard.values():
            heard.clear()
        wait_until(lambda: self.messages('guard/state'), 20.0)

    def call(self, name, on=None):
        """Call guard/NAME; returns (success, message)."""
        kind = self._services[name]
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f'guard/{name}')
        assert self._clients[name].wait_for_service(10.0)
        request = kind.Request() if on is None else kind.Request(data=on)
        answer = wait_until(self._clients[name].call_async(request).result)
        return answer.success, answer.message

    def begin(self, controller='policy'):
        """Bring the guard to ARMED, whatever it was, and start an episode."""
        self.trouble('ready')
        self.drive(engaged=False)
        self.event(self.kinds.STOP)
        time.sleep(0.05)
        self.call('arm', False)
        self.call('reset')
        wait_until(lambda: self.call('recover')[0], 5.0)
        wait_until(lambda: self.call('arm', True)[0], 5.0)
        for heard in self.heard.values():
            heard.clear()
        self.number = 0
        self.event(self.kinds.START, controller=controller)
        wait_until(lambda: self.messages('guard/state') and self.messages('fake_arm/target'))
        time.sleep(0.1)

    @property
    def state(self):
        return self.messages('guard/state')[-1]

    def wait_mode(self, name, word='', timeout_s=10.0):
        """Wait for a mode, and a word in its reason."""
        mode = getattr(self.modes, name)
        return wait_until(
            lambda: next(
                (s for s in self.messages('guard/state') if s.mode == mode and word in s.reason),
                None,
            ),
            timeout_s,
            f'the guard was not {name} with "{word}"',
        )

    def executed(self, count=1):
        """Wait for answers; returns them."""
        wait_until(lambda: len(self.messages('executed_step')) >= count)
        return self.messages('executed_step')

    def targets(self):
        return np.array(
            [
                (m.pose.position.x, m.pose.position.y, m.pose.position.z)
                for m in self.messages('fake_arm/target')
            ]
        )

    def is_still(self):
        """Whether the last ten targets are the same."""
        last = self.targets()[-10:]
        return len(last) == 10 and np.ptp(last, axis=0).max() < 1e-9


def main():
    import rclpy

    rclpy.init()
    peer = Peer(rclpy, load_contract(sys.argv[1]), 'doomed_policy')
    wait_until(lambda: peer.node.count_subscribers(peer._steps.topic_name))
    while True:
        peer.step(x=0.01, stamp=peer.look(), episode=sys.argv[2])
        sys.stdout.write('.\n')
        sys.stdout.flush()
        time.sleep(1.0 / peer.contract.control_rate_hz)


if __name__ == '__main__':
    main()
