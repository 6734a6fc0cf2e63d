"""What a recovery asks of franka_ros2 and of its controller manager, over ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from lifecycle_msgs.msg import State
from rclpy.action import ActionClient
from rclpy.node import Node

from grape_bringup.robot.arm import ArmMode
from grape_bringup.robot.arm_config import FrankaRos2
from grape_bringup.robot.call_sequence import Pending, Until
from grape_bringup.robot.franka_modes import FrankaStatus
from grape_bringup.robot.franka_recovery import ACTIVE, Component
from grape_bringup.robot.ros_calls import ActionCall, ServiceCall
from grape_bringup.robot.ros_interface import load_interface

NEEDED_FOR = 'franka_ros2'
STRICT = 2  # controller_manager_msgs/srv/SwitchController


class DriverCalls:
    """FrankaCalls over ROS."""

    def __init__(self, node: Node, config: FrankaRos2, status: FrankaStatus) -> None:
        """Open the clients.

        Raises:
            MissingInterfaceError: franka_msgs or controller_manager_msgs is not installed.

        """
        load = partial(load_interface, needed_for=NEEDED_FOR)
        manager = config.controller_manager
        self._node, self._config, self._status = node, config, status
        self._recovery = load('franka_msgs/action/ErrorRecovery')
        self._thresholds = load('franka_msgs/srv/SetFullCollisionBehavior')
        self._list_components = load('controller_manager_msgs/srv/ListHardwareComponents')
        self._set_component = load('controller_manager_msgs/srv/SetHardwareComponentState')
        self._list_controllers = load('controller_manager_msgs/srv/ListControllers')
        self._switch = load('controller_manager_msgs/srv/SwitchController')
        self._action = ActionClient(node, self._recovery, config.error_recovery)
        self._clients = {
            kind: node.create_client(kind, name)
            for kind, name in (
                (self._thresholds, config.set_collision_behavior),
                (self._list_components, f'{manager}/list_hardware_components'),
                (self._set_component, f'{manager}/set_hardware_component_state'),
                (self._list_controllers, f'{manager}/list_controllers'),
                (self._switch, f'{manager}/switch_controller'),
            )
        }

    def close(self) -> None:
        """Destroy the clients."""
        self._action.destroy()
        for client in self._clients.values():
            self._node.destroy_client(client)

    def recover_errors(self) -> Pending:
        """Run the action."""
        return ActionCall(self._action, self._config.error_recovery, self._recovery.Goal())

    def components(self) -> Pending:
        """List the hardware; Humble says class_type where Jazzy says plugin_name."""

        def read(answer: Any) -> tuple[Component, ...]:
            return tuple(
                Component(c.name, getattr(c, 'plugin_name', '') or c.class_type, c.state.id)
                for c in answer.component
            )

        return self._ask(self._list_components, read)

    def activate_component(self, name: str) -> Pending:
        """Bring it up."""
        return self._ask(
            self._set_component,
            lambda answer: (answer.ok, answer.state.id),
            name=name,
            target_state=State(id=ACTIVE, label='active'),
        )

    def controllers(self) -> Pending:
        """List the controllers."""
        return self._ask(
            self._list_controllers, lambda answer: {c.name: c.state for c in answer.controller}
        )

    def switch(self, activate: tuple[str, ...], deactivate: tuple[str, ...]) -> Pending:
        """Switch strictly: all of them or none."""
        return self._ask(
            self._switch,
            lambda answer: (answer.ok, getattr(answer, 'message', '')),
            activate_controllers=list(activate),
            deactivate_controllers=list(deactivate),
            strictness=STRICT,
        )

    def set_collision_behavior(self) -> Pending:
        """Send the thresholds, the same for both phases."""
        given = self._config.collision_behavior
        values = {
            'lower_torque_thresholds': given.lower_torques_nm,
            'upper_torque_thresholds': given.upper_torques_nm,
            'lower_force_thresholds': given.lower_forces_n,
            'upper_force_thresholds': given.upper_forces_n,
        }
        fields = {
            f'{name}_{phase}': np.array(value)
            for name, value in values.items()
            for phase in ('acceleration', 'nominal')
        }
        return self._ask(self._thresholds, lambda answer: (answer.success, answer.error), **fields)

    def idle(self) -> Pending:
        """Wait for robot mode idle."""
        return self._until('the robot did not become idle', ('idle',))

    def ready(self) -> Pending:
        """Wait for a robot that takes targets."""
        return self._until('the robot did not become ready', ('idle', 'move'))

    def _until(self, what: str, modes: tuple[str, ...]) -> Until:
        status = self._status

        def holds() -> bool:
            mode, _ = status.read(time.monotonic())
            return mode is ArmMode.READY and status.robot_mode in modes

        return Until(holds, what)

    def _ask(self, kind: type, read: Callable[[Any], Any], **fields: Any) -> Pending:
        return _Read(ServiceCall(self._clients[kind], kind.Request(**fields)), read)


class _Read:
    """A service's answer in the sequence's own words."""

    def __init__(self, call: ServiceCall, read: Callable[[Any], Any]) -> None:
        self._call, self._read = call, read
        self.done, self.missing, self.abandon = call.done, call.missing, call.abandon

    def result(self) -> Any:
        """Return what was read."""
        return self._read(self._call.result())
