"""The teleop node: a person's device -> teleop/command, at a fixed rate while it is connected.

A lost device is said once (engaged: false) and then nothing more, so that the guard holds and
gives the arm back; a SpaceMouse that is plugged in again goes on. A keyboard's keys are the
operator's buttons as well (config/robot/teleop.yaml: services).

    python -m grape_bringup.robot.teleop_node --ros-args -p device:=spacemouse
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack, suppress
from typing import Protocol

from geometry_msgs.msg import Vector3
from grape.msg import TeleopCommand
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from grape_bringup.robot.teleop_command import AxesTeleop, Command, DeviceLostError
from grape_bringup.robot.teleop_config import TeleopConfig, load_teleop_config
from grape_bringup.robot.teleop_keyboard import KeyboardTeleop, Terminal
from grape_bringup.robot.teleop_spacemouse import SpaceMouseTeleop
from grape_episode import ros_diagnostics
from grape_episode.ros_main import made
from grape_episode.ros_signals import stop_on_signal

REOPEN_S = 1.0
SPIN_S = 0.1


class Device(Protocol):
    """Something that a person moves."""

    def poll(self, now_s: float) -> Command:
        """Return the command now; DeviceLostError when the device is not there."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class TeleopNode(Node):
    """Publishes what the device says."""

    def __init__(self, device: Device | None = None, **options: object) -> None:
        """Declare the parameters; `device` stands in for the configured one.

        Raises:
            ValueError: a parameter, or the configuration, cannot be used.

        """
        super().__init__('teleop_node', **options)
        config = self.declare_parameter('config', 'teleop').value
        self.config: TeleopConfig = load_teleop_config(config)
        kind = self.declare_parameter('device', self.config.device).value
        checked = self.config.model_dump() | {'device': kind}
        self.config = TeleopConfig.model_validate(checked)
        self.ended = ''  # why there is nothing more to come
        self._device = device or self._make_device()
        self._connected = False
        self._tried_s = -REOPEN_S
        self._count = 0
        self._problem = 'not connected yet'
        self._commands = self.create_publisher(TeleopCommand, 'teleop/command', 10)
        self._diagnostics = ros_diagnostics.publisher(self)
        self.create_timer(1 / self.config.rate_hz, self._tick)
        self.create_timer(ros_diagnostics.PERIOD_S, self._publish_diagnostics)

    def let_go(self) -> None:
        """Say that nobody has the arm, and release the device."""
        if self._connected:
            self._connected = False
            self._publish(Command(False))
            self._commands.wait_for_all_acked(Duration(seconds=1))
        self._device.close()

    def _make_device(self) -> Device:
        if self.config.device == 'spacemouse':
            return SpaceMouseTeleop(self.config.axes)
        if self.config.device == 'joy':
            return _JoyDevice(self, self.config)
        return _KeyboardDevice(self, self.config)

    def _tick(self) -> None:
        now_s = time.monotonic()
        looks_up = self.config.device == 'spacemouse'  # a search over USB, not for every tick
        if looks_up and not self._connected and now_s - self._tried_s < REOPEN_S:
            return
        self._tried_s = now_s
        try:
            command = self._device.poll(now_s)
        except DeviceLostError as error:
            self._lose(str(error))
            return
        if not self._connected:
            self._connected, self._problem = True, ''
            self.get_logger().info(f'{self.config.device} is connected')
        self._publish(command)

    def _lose(self, problem: str) -> None:
        if self._connected or problem != self._problem:
            self.get_logger().warning(f'{self.config.device}: {problem}')
        self._problem = problem
        if self._connected:
            self._connected = False
            self._publish(Command(False))
        if self.config.device == 'keyboard':
            self.ended = problem

    def _publish(self, command: Command) -> None:
        linear = command.linear * self.config.linear_m_s
        angular = command.angular * self.config.angular_rad_s
        message = TeleopCommand(
            engaged=command.engaged,
            linear=_vector(linear),
            angular=_vector(angular),
            gripper_opening=command.gripper_opening,
            device=self.config.device,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = self.config.base_frame
        self._commands.publish(message)
        self._count += 1

    def _publish_diagnostics(self) -> None:
        values = {'device': self.config.device, 'commands': self._count}
        self._diagnostics.publish(
            ros_diagnostics.diagnostics(self, 'device', values, warning=self._problem)
        )


class _KeyboardDevice:
    """The terminal that the node was started in."""

    def __init__(self, node: Node, config: TeleopConfig) -> None:
        self._node = node
        self._teleop = KeyboardTeleop(config.keyboard)
        self._stack = ExitStack()
        self._terminal: Terminal | None = None
        self._services = {
            name: node.create_client(Trigger, name)
            for name in dict.fromkeys(config.keyboard.services.values())
        }
        self._describe(config)

    def poll(self, now_s: float) -> Command:
        if self._terminal is None:
            self._terminal = self._stack.enter_context(Terminal(sys.stdin.fileno()))
        for key in self._terminal.keys():
            service = self._teleop.press(key, now_s)
            if service:
                self._call(service)
        return self._teleop.command(now_s)

    def close(self) -> None:
        self._stack.close()

    def _call(self, service: str) -> None:
        log = self._node.get_logger()
        if not self._services[service].service_is_ready():
            log.warning(f'{service}: nobody offers it; is its node running?')
            return

        def answered(future: object) -> None:
            said = future.result()
            (log.info if said.success else log.warning)(f'{service}: {said.message}')

        self._services[service].call_async(Trigger.Request()).add_done_callback(answered)

    def _describe(self, config: TeleopConfig) -> None:
        keys = config.keyboard.keys | config.keyboard.services
        text = '  '.join(f'{key} {action}' for key, action in keys.items())
        self._node.get_logger().info(f'hold a key to move, let go to give the arm back: {text}')


class _JoyDevice:
    """A Joy topic; a driver that says nothing is a device that is let go."""

    def __init__(self, node: Node, config: TeleopConfig) -> None:
        self._config = config.joy
        self._teleop = AxesTeleop(config.axes)
        self._newest: tuple[float, Joy] | None = None
        node.create_subscription(Joy, config.joy.topic, self._take, qos_profile_sensor_data)

    def poll(self, now_s: float) -> Command:
        if self._newest is None or now_s - self._newest[0] > self._config.silent_s:
            raise DeviceLostError(f'nothing on {self._config.topic}; is its driver running?')
        joy = self._newest[1]
        if max(self._config.axes) >= len(joy.axes):
            raise DeviceLostError(
                f'{self._config.topic} has {len(joy.axes)} axes; joy.axes asks for number '
                f'{max(self._config.axes)}'
            )
        axes = [joy.axes[number] for number in self._config.axes]
        return self._teleop.command(axes, joy.buttons, now_s)

    def close(self) -> None:
        self._newest = None

    def _take(self, joy: Joy) -> None:
        self._newest = time.monotonic(), joy


def _vector(values: object) -> Vector3:
    x, y, z = (float(value) for value in values)
    return Vector3(x=x, y=y, z=z)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop, or its terminal is closed."""
    stop = stop_on_signal()
    # A terminal that is closed sends SIGHUP, which would end the node without a word.
    signal.signal(signal.SIGHUP, lambda *_: stop.set())
    with made(TeleopNode, 'teleop_node', args) as (node, executor):
        try:
            while not stop.is_set() and not node.ended:
                executor.spin_once(timeout_sec=SPIN_S)
        finally:
            node.let_go()
    with suppress(OSError):
        sys.stdout.flush()
    return 1 if node.ended else 0


if __name__ == '__main__':
    sys.exit(main())
