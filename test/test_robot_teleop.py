"""Teleoperation: keys, axes, and devices that are pulled out, over a real terminal and DDS."""

import math
import os
import pty
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from robot_peer import wait_until

from grape_bringup.robot.checked_yaml import RobotConfigError
from grape_bringup.robot.teleop_command import AxesTeleop, DeviceLostError
from grape_bringup.robot.teleop_config import AxesConfig, load_teleop_config
from grape_bringup.robot.teleop_keyboard import KeyboardTeleop, split_keys
from grape_bringup.robot.teleop_spacemouse import SpaceMouseTeleop, open_spacemouse

KEYBOARD = load_teleop_config('teleop').keyboard


class Listener:
    """Collects teleop/command with arrival times, and counts presses of trial/success."""

    def __init__(self, rclpy):
        import threading

        from grape.msg import TeleopCommand
        from rclpy.executors import SingleThreadedExecutor
        from std_srvs.srv import Trigger

        self.node = rclpy.create_node('teleop_listener')
        self.heard, self.pressed = [], []
        self.node.create_subscription(TeleopCommand, 'teleop/command', self._take, 50)
        self.node.create_service(Trigger, 'trial/success', self._press)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _take(self, message):
        self.heard.append((time.monotonic(), message))

    def _press(self, request, response):
        self.pressed.append(time.monotonic())
        response.success, response.message = True, 'thank you'
        return response

    def last(self):
        return self.heard[-1][1]

    def close(self):
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(2.0)
        self.node.destroy_node()


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture
def listener(ros):
    listener = Listener(ros)
    yield listener
    listener.close()


@pytest.fixture
def terminal(listener):
    """`grape teleop` in a terminal of its own; returns (process, the terminal's other end)."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, '-m', 'grape_bringup.cli', 'teleop', '--device', 'keyboard'],
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(slave)
    wait_until(lambda: listener.heard, 40.0, 'no teleop/command')
    yield process, master
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        os.close(master)
    except OSError:
        assert process.returncode is not None  # a test closed it


def test_tap_is_a_small_step_and_a_held_key_moves_on():
    keys = KeyboardTeleop(KEYBOARD)
    assert not keys.command(0.0).engaged
    keys.press('w', 1.0)
    assert keys.command(1.1).linear.tolist() == [1, 0, 0]
    waiting = keys.command(1.4)  # before the terminal repeats: engaged, and still
    assert waiting.engaged and not waiting.linear.any()
    for number in range(10):
        keys.press('w', 1.5 + number / 30)
        assert keys.command(1.5 + number / 30 + 0.03).linear[0] == 1
    assert not keys.command(1.8 + KEYBOARD.engage_s + 0.01).engaged
    keys.press('l', 5.0)
    assert keys.command(5.0).angular.tolist() == [0, 0, -1]


def test_gripper_key_asks_once_and_a_new_engagement_leaves_it_as_it_is():
    keys = KeyboardTeleop(KEYBOARD)
    keys.press('g', 0.0)
    assert keys.command(0.1).gripper_opening == 0.0
    assert not keys.command(5.0).engaged
    keys.press('space', 6.0)
    held = keys.command(6.0)
    assert held.engaged and math.isnan(held.gripper_opening) and not held.linear.any()


def test_unknown_keys_do_nothing_and_escape_sequences_are_one_key():
    keys = KeyboardTeleop(KEYBOARD)
    assert keys.press('?', 0.0) == '' and not keys.command(0.0).engaged
    assert keys.press('1', 0.0) == 'trial/success' and not keys.command(0.0).engaged
    assert split_keys('w\x1b[A \r') == ['w', 'up', 'space', 'enter']


def test_axes_within_the_deadband_do_not_take_the_arm():
    axes = AxesTeleop(AxesConfig(deadband=0.2, linger_s=0.3))
    assert not axes.command([0.19] * 6, [0, 0], 0.0).engaged
    full = axes.command([1.0, -0.6, 0, 0, 0, 0.2], [0, 0], 1.0)
    assert np.allclose(full.linear, [1, -0.5, 0]) and not full.angular.any()
    assert axes.command([0] * 6, [0, 0], 1.2).engaged  # lingers, still
    assert not axes.command([0] * 6, [0, 0], 1.4).engaged
    assert axes.command([0] * 6, [0, 1], 2.0).gripper_opening == 1.0


def test_button_engagement_needs_the_button_however_far_the_cap_is_pushed():
    axes = AxesTeleop(AxesConfig(engage='button', engage_button=1))
    assert not axes.command([1.0] * 6, [1, 0], 0.0).engaged
    assert axes.command([1.0] * 6, [0, 1], 0.0).engaged


@pytest.mark.parametrize('bad', [[math.nan] * 6, [1.0] * 5])
def test_device_that_gives_nonsense_counts_as_lost(bad):
    with pytest.raises(DeviceLostError, match='six finite numbers'):
        AxesTeleop(AxesConfig()).command(bad, [], 0.0)


def test_no_spacemouse_says_what_to_do():
    with pytest.raises(DeviceLostError, match='libhidapi'):
        open_spacemouse()


def test_configuration_names_a_wrong_key_and_a_speed_out_of_range(tmp_path):
    data = yaml.safe_load(open('config/robot/teleop.yaml'))
    for change, word in (
        ({'linear_m_s': 3.0}, 'linear_m_s'),
        ({'speed': 1}, 'speed'),
        ({'keyboard': {'keys': {'w': 'forward'}}}, 'forward is none of'),
    ):
        path = tmp_path / 'teleop.yaml'
        path.write_text(yaml.safe_dump(data | change))
        with pytest.raises(RobotConfigError, match=word):
            load_teleop_config(path)


def test_keyboard_in_a_terminal_moves_lets_go_and_presses_buttons(terminal, listener):
    process, master = terminal
    assert not listener.last().engaged
    os.write(master, b'w')
    wait_until(lambda: listener.last().engaged)
    speeds = {round(m.linear.x, 4) for _, m in list(listener.heard)}
    wait_until(lambda: 0.05 in {round(m.linear.x, 4) for _, m in list(listener.heard)})
    assert speeds <= {0.0, 0.05}  # m/s, as configured
    for _ in range(20):  # held: the terminal repeats
        os.write(master, b'w')
        time.sleep(0.04)
    assert listener.last().engaged
    wait_until(lambda: not listener.last().engaged, 5.0, 'never let go')
    os.write(master, b'1')
    wait_until(lambda: listener.pressed)
    came = [at for at, _ in listener.heard[-100:]]
    assert len(came) / (came[-1] - came[0]) > 20  # messages a second, on a busy machine


def test_closed_terminal_says_let_go_once_and_then_nothing(terminal, listener):
    process, master = terminal
    os.write(master, b'w')
    wait_until(lambda: listener.last().engaged)
    os.close(master)
    process.wait(15)
    time.sleep(0.3)
    count = len(listener.heard)
    assert not listener.last().engaged
    time.sleep(0.3)
    assert len(listener.heard) == count


def test_without_a_terminal_the_keyboard_is_refused(ros_process):
    process = ros_process('grape_bringup.robot.teleop_node', {'device': 'keyboard'})
    assert process.popen.wait(30) == 1
    assert 'needs a terminal' in process.output() and 'Traceback' not in process.output()


class Mouse:
    """Stands for an open SpaceMouse: pyspacemouse's state object, and a plug to pull."""

    def __init__(self):
        self.state = SimpleNamespace(
            t=0.0, x=0.0, y=0.0, z=0.0, roll=0.0, pitch=0.0, yaw=0.0, buttons=[0, 0]
        )
        self.is_plugged = True

    def open(self):
        if not self.is_plugged:
            raise DeviceLostError('no SpaceMouse: none')
        return self

    def read(self):
        if not self.is_plugged:
            raise OSError('Failed to read from HID device: -1')
        return self.state

    def close(self):
        pass


def test_spacemouse_unplugged_while_engaged_lets_go_once_and_comes_back(ros, listener):
    from rclpy.executors import SingleThreadedExecutor

    from grape_bringup.robot.teleop_node import TeleopNode

    mouse = Mouse()
    device = SpaceMouseTeleop(AxesConfig(), mouse.open)
    override = ros.parameter.Parameter('device', value='spacemouse')
    node = TeleopNode(device, parameter_overrides=[override])
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin_until(condition, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            executor.spin_once(timeout_sec=0.05)

    try:
        mouse.state.x = -1.0
        spin_until(lambda: listener.heard and listener.last().engaged)
        assert math.isclose(listener.last().linear.x, -0.05, abs_tol=1e-6)
        assert listener.last().device == 'spacemouse'
        mouse.is_plugged = False
        spin_until(lambda: not listener.last().engaged)
        before = len(listener.heard)
        end = time.monotonic() + 0.5
        spin_until(lambda: time.monotonic() > end)
        assert len(listener.heard) == before
        mouse.is_plugged = True
        spin_until(lambda: len(listener.heard) > before and listener.last().engaged)
    finally:
        node.let_go()
        executor.shutdown()
        node.destroy_node()


def test_joy_driver_that_falls_silent_lets_go(ros, listener):
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Joy

    from grape_bringup.robot.teleop_node import TeleopNode

    node = TeleopNode(parameter_overrides=[ros.parameter.Parameter('device', value='joy')])
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    driver = listener.node.create_publisher(Joy, 'spacenav/joy', 10)
    push = Joy(axes=[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], buttons=[0, 0])

    def spin(condition, send, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            if send:
                driver.publish(push)
            executor.spin_once(timeout_sec=0.02)

    try:
        spin(lambda: listener.heard and listener.last().linear.y > 0.049, send=True)
        spin(lambda: not listener.last().engaged, send=False)
    finally:
        node.let_go()
        executor.shutdown()
        node.destroy_node()
