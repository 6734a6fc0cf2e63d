"""A gripper behind ros2_control: one goal in flight, the newest opening next.

`GripperCommand` (Humble) and `ParallelGripperCommand` (Jazzy and later) are offered under the same
action name; the ROS graph says which one it is. A goal is not cancelled: the controller's goals
overlap badly at a policy's rate, so the next one waits until the one before has ended.

control_msgs comes with ros2_control and is imported when this output is made.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from dataclasses import dataclass
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient, get_action_names_and_types
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from grape_bringup.robot.gripper import GripperError, GripperState
from grape_bringup.robot.gripper_command import KeptState, NewestCommand
from grape_bringup.robot.gripper_config import ACTION_TYPES, ActionGripper

TICK_S = 0.02
LOOK_S = 0.5  # between two looks at the graph for the action's type
# A server that this side sees may not see this side yet: its answers would be lost.
SETTLE_S = 0.5


@dataclass
class _Goal:
    """The goal that was sent and has not ended."""

    opening: float
    sent_at: float


def import_action(name: str) -> Any:
    """Return an action of control_msgs, such as 'ParallelGripperCommand'.

    Raises:
        GripperError: it is not there; the text names the package to install.

    """
    distribution = os.environ.get('ROS_DISTRO') or '<distribution>'
    try:
        return getattr(importlib.import_module('control_msgs.action'), name)
    except ImportError as error:
        raise GripperError(
            f'the gripper action needs control_msgs, which cannot be imported ({error}). Install '
            f'it (apt-get install ros-{distribution}-control-msgs) and source '
            f'/opt/ros/{distribution}/setup.bash; or drive the gripper by modbus'
        ) from error
    except AttributeError as error:
        raise GripperError(
            f'control_msgs of ROS 2 {distribution} has no action {name}; set action_type to '
            f'{" or ".join(ACTION_TYPES)}, whichever `ros2 action list -t` shows'
        ) from error


class GripperAction:
    """A GripperOutput; see robot/gripper.py. Its callbacks run in the node's executor."""

    def __init__(self, config: ActionGripper, node: Node) -> None:
        """Listen to the joint states and look for the action's server.

        Raises:
            GripperError: control_msgs is not installed.

        """
        self._config, self._node = config, node
        self._commands = NewestCommand(config.min_change)
        self._kept = KeptState(config.stale_s, self._silent)
        self._needs_recovery = ''
        self._is_holding = False
        self._goal: _Goal | None = None
        self._action: Any = None
        self._client: ActionClient | None = None
        self._next_look = 0.0
        self._served_since: float | None = None
        import_action(ACTION_TYPES.get(config.action_type, 'GripperCommand'))
        if config.action_type != 'auto':
            self._use(ACTION_TYPES[config.action_type])
        # Takes what reliable and best-effort publishers send.
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._listening = node.create_subscription(
            JointState, config.joint_states, self._take_joints, qos
        )
        self._reactivation = (
            node.create_client(Trigger, config.reactivate) if config.reactivate else None
        )
        self._timer = node.create_timer(TICK_S, self._tick)

    @property
    def fault(self) -> str:
        """What is wrong now, also before the first state; empty while it works."""
        return self._kept.fault

    def state(self) -> GripperState | None:
        """Return the latest state; None before the first one."""
        return self._kept.get()

    def command(self, opening: float) -> None:
        """Ask for an opening; dropped while a fault is there.

        Raises:
            GripperError: not a number from 0 to 1.

        """
        self._commands.offer(opening)

    def recover(self) -> None:
        """Forget a goal that failed, and ask the driver to re-activate the gripper."""
        self._needs_recovery = ''
        if self._reactivation is None or not self._reactivation.service_is_ready():
            return
        self._needs_recovery = f'waiting for {self._config.reactivate}'
        self._reactivation.call_async(Trigger.Request()).add_done_callback(self._reactivated)

    def close(self) -> None:
        """Take no more commands; the gripper stays as it is."""
        self._commands.block()
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._listening)
        if self._client is not None:
            self._client.destroy()

    def _silent(self, how_long: str) -> str:
        return (
            f"no state of joint '{self._config.joint}' on {self._config.joint_states} {how_long}"
        )

    def _use(self, name: str) -> None:
        if self._client is not None:
            self._client.destroy()
        self._action = import_action(name)
        self._client = ActionClient(self._node, self._action, self._config.action)
        self._node.get_logger().info(f'gripper: {self._config.action} is a {name}')

    def _tick(self) -> None:
        fault = self._needs_recovery or self._missing()
        if fault:
            self._commands.block()
        else:
            self._commands.unblock()
        log = self._node.get_logger()
        if self._kept.set_fault(fault):
            log.error(f'gripper: {fault}') if fault else log.info('gripper: ready')
        if self._goal is not None and self._is_late(self._goal):
            self._needs_recovery = (
                f'a goal (opening {self._goal.opening:.2f}) did not end within '
                f'{self._config.goal_timeout_s:g} s; see the controller, then recover'
            )
            self._goal = None
        if not fault and self._goal is None and (opening := self._commands.take()) is not None:
            self._send(opening)

    def _missing(self) -> str:
        """Say what is not there yet, or not any more."""
        is_served = self._client is not None and self._client.server_is_ready()
        if not is_served and self._config.action_type == 'auto':
            self._detect()
        if not is_served:
            self._goal = self._served_since = None  # a goal's result will never come
            return (
                f'nobody serves the action {self._config.action}; start the gripper controller, '
                'or name another action in the gripper configuration'
            )
        self._served_since = self._served_since or time.monotonic()
        if time.monotonic() - self._served_since < SETTLE_S:
            return f'connecting to {self._config.action}'
        age_s = self._kept.age_s
        if age_s is None:
            return self._silent('yet')
        if age_s > self._config.stale_s:
            return self._silent(f'for more than {self._config.stale_s:g} s')
        return ''

    def _detect(self) -> None:
        """Look which action the controller offers; after its restart it may be the other one."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        wanted = self._node.resolve_service_name(self._config.action)
        for name, types in get_action_names_and_types(self._node):
            offered = {t.rsplit('/', 1)[-1] for t in types} & set(ACTION_TYPES.values())
            present = None if self._action is None else self._action.__name__
            if name == wanted and offered - {present}:
                self._use(min(offered - {present}))

    def _is_late(self, goal: _Goal) -> bool:
        return time.monotonic() - goal.sent_at > self._config.goal_timeout_s

    def _send(self, opening: float) -> None:
        self._goal = goal = _Goal(opening, time.monotonic())
        self._is_holding = False
        sent = self._client.send_goal_async(self._message(opening))
        sent.add_done_callback(lambda future: self._accepted(goal, future))

    def _message(self, opening: float) -> Any:
        config, goal = self._config, self._action.Goal()
        position, effort = config.to_position(opening), config.max_effort
        if self._action.__name__ == 'GripperCommand':
            goal.command.position = position
            goal.command.max_effort = effort or 0.0
        else:
            goal.command.name, goal.command.position = [config.joint], [position]
            goal.command.effort = [] if effort is None else [effort]
        return goal

    def _accepted(self, goal: _Goal, future: Future) -> None:
        handle = future.result()
        if handle.accepted:
            handle.get_result_async().add_done_callback(lambda f: self._ended(goal, f))
        elif self._goal is goal:
            self._goal = None
            self._needs_recovery = (
                f'the controller refused the opening {goal.opening:.2f}; see its log, then recover'
            )

    def _ended(self, goal: _Goal, future: Future) -> None:
        if self._goal is not goal:  # given up before
            return
        self._goal = None
        status, result = future.result().status, future.result().result
        # A controller without allow_stalling aborts the goal when it meets an object.
        self._is_holding = result.stalled and not result.reached_goal
        if status != GoalStatus.STATUS_SUCCEEDED and not self._is_holding:
            self._needs_recovery = (
                f'the controller gave up the opening {goal.opening:.2f} (goal status {status}); '
                'see whether somebody else commands it, then recover'
            )

    def _take_joints(self, message: JointState) -> None:
        position = dict(zip(message.name, message.position, strict=False)).get(self._config.joint)
        if position is None or not math.isfinite(position):  # ros2_control begins with NaN
            return
        opening = self._config.to_opening(position)
        self._kept.put(GripperState(opening, self._is_holding, time.monotonic()))

    def _reactivated(self, future: Future) -> None:
        response = future.result()
        self._needs_recovery = (
            '' if response.success else f'the re-activation failed: {response.message}'
        )
