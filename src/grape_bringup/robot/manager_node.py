"""The manager: brings the robot's stack up in order, watches it, and brings it down together.

    cameras -> recorder -> guard -> policy -> trials

Each node is waited for with a deadline, by its place in the ROS graph and its first word on
/diagnostics; lifecycle nodes are configured and activated in their turn. When a node dies or
hangs, the guard is disarmed first, lifecycle nodes are deactivated, and the manager exits: 10 +
place for a node that did not start, 30 + place for one that died. robot.launch.py then ends all.

    python -m grape_bringup.robot.manager_node --ros-args -p nodes:="['recorder_node']"
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import SetBool

from grape_bringup.robot.stack_watch import NOT_STARTED, StackConfig, StackError, StackWatch
from grape_episode import ros_diagnostics
from grape_episode.ros_main import made
from grape_episode.ros_signals import stop_on_signal
from grape_episode.ros_timer import steady_timer

POLL_S = 0.1
LOOK_S = 0.2  # at the graph
DISARM_S = 1.0
DEACTIVATE_S = 3.0
STEPS = (
    (State.PRIMARY_STATE_UNCONFIGURED, Transition.TRANSITION_CONFIGURE, 'configure'),
    (State.PRIMARY_STATE_INACTIVE, Transition.TRANSITION_ACTIVATE, 'activate'),
)


class StoppedError(Exception):
    """The manager was told to stop."""


class ManagerNode(Node):
    """Sees the graph, hears /diagnostics, and calls the nodes' services."""

    def __init__(self) -> None:
        """Declare the parameters.

        Raises:
            ValueError: a parameter cannot be used.

        """
        super().__init__('manager_node')
        values: dict[str, Any] = {}
        for name, entry in StackConfig.__dataclass_fields__.items():
            is_list = isinstance(entry.default, tuple)
            # rclpy takes an empty list for one of bytes; [''] stands for none.
            default = list(entry.default) or [''] if is_list else entry.default
            value = self.declare_parameter(name, default).value
            values[name] = tuple(filter(None, value)) if is_list else value
        self.config = StackConfig(**values)
        self.watch = StackWatch(self.config)
        self.create_subscription(DiagnosticArray, ros_diagnostics.TOPIC, self._hear, 50)
        self._diagnostics = ros_diagnostics.publisher(self)
        self._guard = self.create_client(SetBool, 'guard/arm')
        self._doing = 'starting'
        steady_timer(self, LOOK_S, self._look)
        steady_timer(self, ros_diagnostics.PERIOD_S, self._report)

    def _hear(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.watch.hear(status.name, time.monotonic())

    def _look(self) -> None:
        found = self.get_node_names_and_namespaces()
        relative = {name for name, space in found if space == self.get_namespace()}
        self.watch.see(relative | {f'{space.rstrip("/")}/{name}' for name, space in found})

    def _report(self) -> None:
        ages = self.watch.ages_s(time.monotonic())
        values = {node: _state(self.watch, node, ages) for node in self.config.nodes}
        is_up = len(self.watch.up) == len(self.config.nodes)
        warning = '' if is_up else self._doing
        self._diagnostics.publish(
            ros_diagnostics.diagnostics(self, 'stack', values, warning=warning)
        )

    # The stack; `turn` lets callbacks run, and raises when it is time to stop

    def bring_up(self, turn: Callable[[], None]) -> None:
        """Wait for the nodes in their order.

        Raises:
            StackError: one is not there in time, or one that was there died.

        """
        watch, config = self.watch, self.config
        for node in config.nodes:
            self._doing = f'waiting for {node}'
            self._wait(
                turn, node, lambda node=node: watch.is_there(node), config.start_timeout_s,
                'did not appear in the ROS graph; is it started, and in this namespace?',
            )  # fmt: skip
            if node in config.lifecycle:
                self._activate(turn, node)
            self._wait(
                turn, node, lambda node=node: watch.is_heard(node), config.start_timeout_s,
                'said nothing on /diagnostics; name it in without_heartbeat if it never does',
            )  # fmt: skip
            watch.came_up(node, time.monotonic())
            self.get_logger().info(f'{node} is up ({len(watch.up)} of {len(config.nodes)})')
        self._doing = ''

    def bring_down(self, turn: Callable[[], None]) -> None:
        """Disarm the guard, then deactivate the lifecycle nodes; whatever fails is said."""
        log = self.get_logger()
        if self.config.guard in self.config.nodes:
            answer = self._call(turn, self._guard, SetBool.Request(data=False), DISARM_S)
            if answer is None:
                log.error(
                    f'{self.config.guard} did not answer guard/arm within {DISARM_S:g} s: press '
                    'the hardware stop'
                )
            else:
                log.info(f'the guard is disarmed: {answer.message}')
        for node in self.config.lifecycle:
            if node in self.watch.up and self.watch.is_there(node):
                change = self.create_client(ChangeState, f'{node}/change_state')
                request = ChangeState.Request()
                request.transition.id = Transition.TRANSITION_DEACTIVATE
                answer = self._call(turn, change, request, DEACTIVATE_S)
                done = answer is not None and answer.success
                log.info(f'{node} is {"deactivated" if done else "not deactivated in time"}')

    def _activate(self, turn: Callable[[], None], node: str) -> None:
        """Configure and activate a lifecycle node, from wherever it is."""
        limit_s = self.config.configure_timeout_s
        state = self.create_client(GetState, f'{node}/get_state')
        change = self.create_client(ChangeState, f'{node}/change_state')
        for begin, transition, name in STEPS:
            self._doing = f'{node}: {name}'
            found = self._call(turn, state, GetState.Request(), self.config.start_timeout_s)
            if found is None:
                raise self.watch.error(node, 'does not answer get_state', NOT_STARTED)
            if found.current_state.id != begin:
                continue
            request = ChangeState.Request()
            request.transition.id = transition
            answer = self._call(turn, change, request, limit_s)
            if answer is None:
                text = f'did not {name} within {limit_s:g} s (configure_timeout_s)'
                raise self.watch.error(node, text, NOT_STARTED)
            if not answer.success:
                raise self.watch.error(node, f'could not {name}; look at its log', NOT_STARTED)

    def _wait(
        self,
        turn: Callable[[], None],
        node: str,
        condition: Callable[[], bool],
        limit_s: float,
        otherwise: str,
    ) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                text = f'{otherwise} (after {limit_s:g} s)'
                raise self.watch.error(node, text, NOT_STARTED)
            turn()
            self.watch.check(time.monotonic())

    def _call(
        self, turn: Callable[[], None], client: Any, request: object, limit_s: float
    ) -> Any | None:
        """Return a service's answer, None where none comes in time."""
        deadline = time.monotonic() + limit_s
        while not client.service_is_ready():
            if time.monotonic() > deadline:
                return None
            turn()
        future = client.call_async(request)
        while not future.done():
            if time.monotonic() > deadline:
                return None
            turn()
        return future.result()


def _state(watch: StackWatch, node: str, ages: dict[str, float]) -> str:
    if node not in watch.up:
        return 'not up yet'
    return f'up, heard {ages[node]:.1f} s ago' if node in ages else 'up'


def serve(node: ManagerNode, executor: SingleThreadedExecutor, stop: threading.Event) -> int:
    """Bring the stack up and watch it; return the exit code."""

    def turn() -> None:
        executor.spin_once(timeout_sec=POLL_S)

    def turn_until_stopped() -> None:
        turn()
        if stop.is_set():
            raise StoppedError

    log, code = node.get_logger(), 0
    try:
        node.bring_up(turn_until_stopped)
        log.info('the stack is up')
        while True:
            turn_until_stopped()
            node.watch.check(time.monotonic())
    except StoppedError:
        log.info('the manager was told to stop')
    except StackError as error:
        code = error.code
        log.error(f'{error}. The stack goes down (exit code {code}).')
    node.bring_down(turn)
    return code


def main() -> None:
    """Run the node; the exit code says which node was missing."""
    stop = stop_on_signal()
    with made(ManagerNode, 'manager_node') as (node, executor):
        code = serve(node, executor, stop)
    sys.exit(code)


if __name__ == '__main__':
    main()
