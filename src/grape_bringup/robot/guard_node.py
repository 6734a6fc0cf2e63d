"""The guard node: the one owner of the arm.

What the policy and a person ask goes through it; what the rules let through it sends,
interpolated, from a loop of its own (guard_loop.py). It starts disarmed. docs/reference/guard.md
lists topics, services, rules and parameters; docs/explanation/safety.md says what software can't.

    python -m grape_bringup.robot.guard_node --ros-args -p arm:=fake -p gripper:=fake
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.topic_endpoint_info import TopicEndpointInfo
from std_srvs.srv import SetBool, Trigger

from grape_bringup.robot.arm import ArmOutput
from grape_bringup.robot.gripper import GripperOutput
from grape_bringup.robot.guard import Guard, Request
from grape_bringup.robot.guard_config import GuardConfig, load_guard_config
from grape_bringup.robot.guard_inbox import Inbox
from grape_bringup.robot.guard_loop import GuardLoop
from grape_bringup.robot.guard_outputs import make_arm, make_gripper
from grape_bringup.robot.guard_topics import GuardTopics
from grape_bringup.robot.guard_watch import CameraWatch
from grape_episode import ros_diagnostics
from grape_episode.contract import Contract, load_contract
from grape_episode.ros_main import made
from grape_episode.ros_signals import stop_on_signal
from grape_episode.ros_timer import steady_timer

SPIN_S = 0.05
ANSWER_S = 1.0  # how long a service waits for the loop
FLUSH_S = 0.5
NAMELESS = '_NODE_NAME_UNKNOWN_'
PUBLISHERS_S = 0.5  # how often the graph is looked at
SWITCH_S = 0.0005  # of the interpreter between threads; its default of 5 ms is half a period


@dataclass(frozen=True)
class NodeConfig:
    """The node's own parameters; those of GuardConfig stand beside them and override its file.

    Attributes:
        contract: name in config/contract/ or path.
        config: limits: name in config/robot/ or path of a YAML.
        arm: fake, crisp, servo_pose, servo_twist, fzi or fci.
        arm_config: YAML of the arm's output; empty: config/robot's own.
        gripper: fake, action, modbus or none.
        gripper_config: YAML of the gripper's output; empty: config/robot's own.
        dry_run: decide everything and send nothing.
        cameras: topics to watch; empty: the contract's cameras. 'none': no camera.
        realtime_priority: SCHED_FIFO priority, 1 to 99, of loop and callbacks; 0: none.

    """

    contract: str = 'franka_openvla'
    config: str = 'guard'
    arm: str = 'fake'
    arm_config: str = ''
    gripper: str = 'fake'
    gripper_config: str = ''
    dry_run: bool = False
    cameras: tuple[str, ...] = ()
    realtime_priority: int = 0

    @classmethod
    def declare(cls, node: Node) -> NodeConfig:
        """Declare the parameters and read them."""
        values = {}
        for name, entry in cls.__dataclass_fields__.items():
            is_list = isinstance(entry.default, tuple)
            # rclpy takes an empty list for one of bytes; [''] stands for none.
            value = node.declare_parameter(name, [''] if is_list else entry.default).value
            values[name] = tuple(filter(None, value)) if is_list else value
        return cls(**values)

    def watched(self, contract: Contract) -> tuple[str, ...]:
        """Return the camera topics to watch."""
        if self.cameras == ('none',):
            return ()
        return self.cameras or tuple(camera.topic for camera in contract.cameras.values())


class GuardNode(Node):
    """Puts a Guard behind topics and services."""

    def __init__(self) -> None:
        """Declare the parameters, connect to arm and gripper, open the topics.

        Raises:
            ValueError, RuntimeError, ImportError: something cannot be used; the text says what.

        """
        super().__init__('guard_node')
        own = NodeConfig.declare(self)
        self._contract = load_contract(own.contract)
        config = self._limits(load_guard_config(own.config))
        self._inbox = Inbox()
        self._cameras = tuple(CameraWatch(name) for name in own.watched(self._contract))
        self._pictures = dict.fromkeys(self._cameras, 0)  # counted at the last report
        _raise_priority(own.realtime_priority)
        before = {publisher.topic_name for publisher in self.publishers}
        frame = self._contract.base_frame
        arm = make_arm(own.arm, own.arm_config, own.dry_run, self, frame, config.rate_hz)
        # Whatever topics the output opened are the controller's, and the guard's alone.
        self._ours = {p.topic_name for p in self.publishers} - before
        gripper = make_gripper(own.gripper, own.gripper_config, own.dry_run, self)
        self._topics = GuardTopics(self, self._contract, self._inbox, self._cameras)
        self._guard = Guard(config, self._contract, self._cameras, gripper is not None)
        self.loop = self._loop(config, arm, gripper)
        self._diagnostics = ros_diagnostics.publisher(self)
        self._serve()
        steady_timer(self, PUBLISHERS_S, self._look_for_publishers)
        steady_timer(self, ros_diagnostics.PERIOD_S, self._report)
        self.get_logger().info(
            f'arm {own.arm}{" (dry run)" if own.dry_run else ""}, gripper {own.gripper}, '
            f"{config.rate_hz:g} Hz, contract '{self._contract.name}': {config.model_dump_json()}"
        )

    def _limits(self, config: GuardConfig) -> GuardConfig:
        """Declare every limit with its unit and range; those that were set override the file."""
        values = {}
        for name, entry in GuardConfig.model_fields.items():
            value = getattr(config, name)
            descriptor = ParameterDescriptor(description=entry.description, read_only=True)
            value = list(value) if isinstance(value, tuple) else value
            declared = self.declare_parameter(name, value, descriptor).value
            values[name] = tuple(declared) if isinstance(value, list) else declared
        return config.changed(values)

    def _loop(
        self, config: GuardConfig, arm: ArmOutput, gripper: GripperOutput | None
    ) -> GuardLoop:
        self._topics.serve(self._guard, arm)
        return GuardLoop(
            self._guard,
            arm,
            gripper,
            self._inbox,
            self._topics,
            lambda: self.get_clock().now().nanoseconds,
            config.rate_hz,
        )

    def flush(self) -> None:
        """Wait until what was said has arrived; a process that ends takes the rest with it."""
        deadline = time.monotonic() + FLUSH_S
        for publisher in self.publishers:
            left_s = max(0.0, deadline - time.monotonic())
            publisher.wait_for_all_acked(Duration(seconds=left_s))

    # Services

    def _serve(self) -> None:
        def switch(on: str, off: str):
            def answer(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
                response.success, response.message = self._ask(on if request.data else off)
                return response

            return answer

        def trigger(kind: str):
            def answer(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
                response.success, response.message = self._ask(kind)
                return response

            return answer

        self.create_service(SetBool, 'guard/arm', switch('arm', 'disarm'))
        self.create_service(SetBool, 'guard/pause', switch('pause', 'resume'))
        for kind in ('stop', 'reset', 'recover'):
            self.create_service(Trigger, f'guard/{kind}', trigger(kind))

    def _ask(self, kind: str) -> tuple[bool, str]:
        """Have the loop answer, in its next tick."""
        answered, answers = threading.Event(), []

        def reply(success: bool, message: str) -> None:
            answers.append((success, message))
            answered.set()

        self._look_for_publishers()
        self._inbox.put(Request(kind, reply))
        if not answered.wait(ANSWER_S):
            return False, f'the loop did not answer within {ANSWER_S:g} s; look at the log'
        self.get_logger().info(f'{kind}: {answers[0][1]}')
        return answers[0]

    # Who else commands

    def _look_for_publishers(self) -> None:
        problems = [self._others(topic, own=1) for topic in sorted(self._ours)]
        steps = self.resolve_topic_name(self._contract.topic('policy_step').name)
        problems.append(self._others(steps, own=0))
        self._inbox.see_publishers('; '.join(filter(None, problems)))

    def _others(self, topic: str, own: int) -> str:
        """Say who publishes on a topic that one may publish on; '' where it is only one."""
        found = self.get_publishers_info_by_topic(topic)
        if len(found) < 2:
            return ''
        names = sorted(map(_name, found))
        if own:
            names.remove(self.get_fully_qualified_name())  # once: a second one is another's
            return f'{topic} is also published by {", ".join(names)}; only the guard may'
        return f'{topic} is published by {", ".join(names)}; only one of them may'

    def _report(self) -> None:
        guard, loop = self._guard, self.loop
        values = {
            'mode': guard.mode.name,
            'reason': guard.reason,
            'episode_id': guard.episode_id,
            'travel_m': f'{guard.travel_m:.3f}',
            **loop.statistics.values(),
        }
        for camera, before in self._pictures.items():
            hz = (camera.pictures - before) / ros_diagnostics.PERIOD_S
            values[f'pictures_hz {camera.name}'] = f'{hz:.1f}'
            self._pictures[camera] = camera.pictures
        values |= {f'rule {rule}': count for rule, count in sorted(guard.counts.items())}
        error = '' if loop.is_running else f'the loop has ended: {loop.error!r}'
        warning = guard.reason
        self._diagnostics.publish(
            ros_diagnostics.diagnostics(self, 'guard', values, warning=warning, error=error)
        )


def _name(publisher: TopicEndpointInfo) -> str:
    """Return a publisher's node; DDS hears of its topic a moment before its name."""
    if publisher.node_name == NAMELESS:
        return '(a node that is not known yet)'
    return f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name}'


def _raise_priority(priority: int) -> None:
    """Put this thread, and those that it starts from now on, under SCHED_FIFO.

    Both the loop and the callbacks: a callback that is put aside while it holds the interpreter's
    lock would stop the loop as well.

    Raises:
        ValueError: out of range, or not allowed.

    """
    if priority == 0:
        return
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError as error:
        raise ValueError(
            f'realtime_priority is {priority}, which this user may not have: add "@realtime - '
            'rtprio 99" to /etc/security/limits.d/ and the user to that group, or set it to 0'
        ) from error
    except OSError as error:
        raise ValueError(f'realtime_priority is {priority}; expected 0 to 99') from error


def main() -> None:
    """Run the node until it is told to stop, or its loop ends; hold comes last."""
    stop = stop_on_signal()
    sys.setswitchinterval(SWITCH_S)
    with made(GuardNode, 'guard_node') as (node, executor):
        node.loop.start()
        try:
            while not stop.is_set() and node.loop.is_running:
                executor.spin_once(timeout_sec=SPIN_S)
        finally:
            node.loop.stop()
            node.flush()  # hold above all
            node.loop.close()
            node.flush()
    sys.exit(0 if node.loop.error is None else 1)


if __name__ == '__main__':
    main()
