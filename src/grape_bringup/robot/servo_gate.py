"""MoveIt Servo, made to listen: the type of command on Jazzy and later, its start on Humble."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from grape_bringup.robot.arm import ArmMode, ArmState
from grape_bringup.robot.arm_config import ServoConfig
from grape_bringup.robot.call_sequence import CallError, CallSequence, Step, Steps
from grape_bringup.robot.ros_calls import ServiceCall
from grape_bringup.robot.ros_interface import load_interface

TICK_S = 0.05
COMMAND_TYPES = {'servo_twist': 1, 'servo_pose': 2}  # moveit_msgs/srv/ServoCommandType


class ServoGate:
    """Opens Servo for our kind of command; it drops all others without a word."""

    def __init__(self, node: Node, config: ServoConfig) -> None:
        """Begin to open it.

        Raises:
            MissingInterfaceError: moveit_msgs is not installed (Jazzy and later need it).

        """
        self._node, self._config = node, config
        self._clients: dict[str, Any] = {}
        if config.has_command_types:
            kind = load_interface('moveit_msgs/srv/ServoCommandType', 'MoveIt Servo')
            self._open('switch_command_type', kind)
            self._open('pause_servo', SetBool)
        else:
            self._open('start_servo', Trigger)
        self._services = ', '.join(client.srv_name for client in self._clients.values())
        self._wants_start = True
        self._is_open = False
        self._failed = ''
        self._sequence: CallSequence | None = None
        self._timer = node.create_timer(TICK_S, self._tick)

    def start(self) -> None:
        """Open it again, as after Servo was started anew; any thread may ask."""
        self._is_open = False
        self._wants_start = True

    def read(self, state: ArmState | None) -> ArmState | None:
        """Return the arm's state as it is through Servo: lost while that does not listen."""
        if state is None or self._is_open or state.mode is not ArmMode.READY:
            return state
        why = self._failed or f'it has not answered on {self._services} yet'
        errors = (*state.errors, f'MoveIt Servo does not listen: {why}')
        return replace(state, mode=ArmMode.LOST, errors=errors)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._node.destroy_timer(self._timer)
        for client in self._clients.values():
            self._node.destroy_client(client)

    def _open(self, name: str, kind: type) -> None:
        self._clients[name] = self._node.create_client(kind, f'{self._config.node}/{name}')

    def _tick(self) -> None:
        if not all(client.service_is_ready() for client in self._clients.values()):
            # Not there, or gone: a Servo that was started anew knows nothing of the old one.
            self.start()
            return
        if self._sequence is None and self._wants_start:
            self._wants_start = False
            steps = self._steps()
            self._sequence = CallSequence('MoveIt Servo', steps, self._config.service_timeout_s)
        if self._sequence is None:
            return
        self._sequence.tick(time.monotonic())
        if self._sequence.is_over:
            self._failed, self._sequence = self._sequence.error, None
            self._is_open = not self._failed
            if self._failed:
                self._node.get_logger().error(f'{self._failed}; guard/recover tries again')

    def _steps(self) -> Steps:
        if not self._config.has_command_types:
            yield from self._ask('start_servo')
            return
        number = COMMAND_TYPES[self._config.kind]
        yield from self._ask('switch_command_type', command_type=number)
        yield from self._ask('pause_servo', data=False)

    def _ask(self, name: str, **fields: Any) -> Steps:
        client = self._clients[name]
        request = client.srv_type.Request(**fields)
        answer = yield Step(name, ServiceCall(client, request))
        if not answer.success:
            text = getattr(answer, 'message', '') or 'no reason given'
            raise CallError(f'{client.srv_name} refused: {text}')
