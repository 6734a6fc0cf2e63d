"""The way back after a reflex under franka_ros2, in the only order that works.

A reflex makes the hardware component 'unconfigured' and deactivates every controller, the
broadcasters of the state included. So: clear the error, bring the component up, bring the
controllers up. The collision thresholds go in between, before the motion controller takes the
command interfaces: the driver sets them only while the robot is idle. The arm does not move, and
no target of before is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from grape_bringup.robot.arm_config import FrankaRos2
from grape_bringup.robot.call_sequence import CallError, Pending, Step, Steps

ACTIVE = 3  # lifecycle_msgs/State
ERROR_RECOVERY = 'error_recovery'
COMPONENT = 'set_hardware_component_state'
SWITCH = 'switch_controller'
COLLISION = 'set_collision_behavior'


@dataclass(frozen=True)
class Component:
    """A hardware component as the controller manager lists it."""

    name: str
    plugin: str
    state: int  # lifecycle_msgs/State


class FrankaCalls(Protocol):
    """What the sequence asks for; franka_driver.py does it over ROS, a test writes it down."""

    def recover_errors(self) -> Pending:
        """Run the driver's ErrorRecovery action."""
        ...

    def components(self) -> Pending:
        """List the hardware components: tuple[Component, ...]."""
        ...

    def activate_component(self, name: str) -> Pending:
        """Bring a component up: (ok, state it is in now)."""
        ...

    def controllers(self) -> Pending:
        """List the loaded controllers: name -> state."""
        ...

    def switch(self, activate: tuple[str, ...], deactivate: tuple[str, ...]) -> Pending:
        """Switch controllers: (ok, message)."""
        ...

    def set_collision_behavior(self) -> Pending:
        """Set the configured thresholds: (ok, message)."""
        ...

    def idle(self) -> Pending:
        """Wait until the robot says that it is idle."""
        ...

    def ready(self) -> Pending:
        """Wait until the robot takes targets."""
        ...


def recovery(calls: FrankaCalls, config: FrankaRos2, has_error: bool) -> Steps:
    """Yield the steps from a reflex to a robot that takes targets.

    Args:
        calls: how to reach the driver.
        config: names, and thresholds to set.
        has_error: whether there is one to clear; the driver refuses to clear none while a
            controller runs.

    """
    if has_error:
        yield Step(ERROR_RECOVERY, calls.recover_errors())
    found = yield Step('list_hardware_components', calls.components())
    component = _component(found, config.hardware_plugin)
    if component.state != ACTIVE:
        ok, state = yield Step(COMPONENT, calls.activate_component(component.name))
        if not ok or state != ACTIVE:
            raise CallError(
                f"'{component.name}' is in lifecycle state {state}; expected {ACTIVE} (active)"
            )
    yield from _activate(calls, config.controllers)
    if config.collision_behavior is not None:
        states = yield Step('list_controllers', calls.controllers())
        if states.get(config.motion_controller) == 'active':
            yield from _switch(calls, (), (config.motion_controller,))
        yield Step('wait for idle', calls.idle())
        yield from set_collision_behavior(calls)
    yield from _activate(calls, (config.motion_controller,))
    yield Step('wait for the robot', calls.ready())


def set_collision_behavior(calls: FrankaCalls) -> Steps:
    """Yield the one step that sets the thresholds; only for an idle robot."""
    ok, message = yield Step(COLLISION, calls.set_collision_behavior())
    if not ok:
        raise CallError(f'the driver refused the thresholds: {message or "no reason given"}')


def _component(found: tuple[Component, ...], plugin: str) -> Component:
    """Find the robot among the components: its name is the user's choice."""
    for component in found:
        if component.plugin == plugin:
            return component
    names = ', '.join(f'{c.name} ({c.plugin})' for c in found) or 'none'
    raise CallError(f"no hardware component has the plugin '{plugin}'; there are: {names}")


def _activate(calls: FrankaCalls, names: tuple[str, ...]) -> Steps:
    states = yield Step('list_controllers', calls.controllers())
    unknown = [name for name in names if name not in states]
    if unknown:
        raise CallError(f'not loaded: {_list(unknown)}; there are: {_list(states)}')
    # A strict switch refuses controllers that are active already.
    inactive = tuple(name for name in names if states[name] != 'active')
    if inactive:
        yield from _switch(calls, inactive, ())


def _switch(calls: FrankaCalls, activate: tuple[str, ...], deactivate: tuple[str, ...]) -> Steps:
    answer: Any = yield Step(SWITCH, calls.switch(activate, deactivate))
    ok, message = answer
    if not ok:
        which = f'activate {_list(activate)}' if activate else f'deactivate {_list(deactivate)}'
        raise CallError(f'the controller manager did not {which}: {message or "no reason given"}')


def _list(names: Iterable[str]) -> str:
    return ', '.join(names) or 'none'
