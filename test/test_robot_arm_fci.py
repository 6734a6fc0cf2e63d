"""The direct FCI output against franka-sim: the real protocol, its limits and its reflexes."""

import ctypes
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fci_simulator
import numpy as np
import pytest
from arm_conformance import ArmConformance, distance, send_until, target_at, wait_mode, wait_until

from grape_bringup.robot.arm import ArmError, ArmMode
from grape_bringup.robot.arm_config import load_arm_config

pytest.importorskip('rclpy.impl.rcutils_logger', reason='rclpy is not installed: run make setup')
pytest.importorskip('franka', reason='franka-rs is not installed: run make setup')

FOLLOWED_M = 0.004  # the compliant arm's distance from a resting target
STOP_S = 20.0  # the worker's end, on a busy machine


def fci_config(host, **changes):
    """Return config/robot/fci.yaml for an ordinary kernel."""
    return load_arm_config(
        'fci', host=host, realtime='ignore', reconnect_s=0.2, state_timeout_s=1.0, **changes
    )


def open_output(config):
    from rclpy.logging import get_logger

    from grape_bringup.robot.arm_fci import FciOutput

    return FciOutput(config, get_logger('fci'))


@pytest.fixture(scope='module')
def simulator(tmp_path_factory):
    fci_simulator.install()
    simulator = fci_simulator.FrankaSim(tmp_path_factory.mktemp('fci') / 'franka_sim.log')
    simulator.start()
    yield simulator
    simulator.kill()


@pytest.fixture
def fresh(simulator):
    """The simulator with the arm in its home pose: physics outlive a connection."""
    simulator.kill()
    simulator.start()
    return simulator


@pytest.fixture
def connect(fresh):
    """Connect ready outputs, with changes of the configuration; they are closed at the end."""
    opened = []

    def open_ready(mode=ArmMode.READY, **changes):
        output = open_output(fci_config(fresh.host, **changes))
        opened.append(output)
        wait_mode(output, mode)
        return output

    yield open_ready
    for output in opened:
        output.close()
        assert output.join(STOP_S)


class FciRig:
    """The simulator as the suite's controller; its command is the library's current target."""

    reached_m = 1e-9

    def __init__(self, simulator):
        self._simulator = simulator
        self._output = None

    def open(self):
        self._output = open_output(fci_config(self._simulator.host))
        return self._output

    def shut(self, output):
        assert output.join(STOP_S)

    def commanded(self):
        return self._output.commanded

    def commands(self):
        return self._output.sent if self._output else 0

    def silence(self, is_silent):
        self._simulator.freeze(is_silent)

    def drag(self, offset_m):
        """Nobody can drag the simulator's arm; it is still on its way when it is told to hold."""

    def reflex(self):
        self._simulator.push()


class TestFciConformance(ArmConformance):
    @pytest.fixture
    def rig(self, simulator):
        return FciRig(simulator)


def test_arm_follows_a_stream_of_targets_at_10_hz(connect):
    output = connect()
    start = output.state().pose
    for step in range(1, 16):
        target = target_at(start, (0.004 * step, -0.002 * step, 0.0), (0.0, 0.0, 0.01 * step))
        send_until(output, target, lambda: True)
        time.sleep(0.1)
    end = target_at(start, (0.06, -0.03, 0.0), (0.0, 0.0, 0.15)).pose
    wait_until(lambda: distance(output.state().pose, end)[0] < FOLLOWED_M, lambda: output.state())
    assert output.state().mode is ArmMode.READY
    assert distance(output.state().pose, end)[1] < 0.02


def test_target_that_jumps_is_led_there_without_a_reflex(connect):
    output = connect()
    start = output.state().pose
    far = target_at(start, (-0.08, 0.08, 0.0))
    fastest, last = 0.0, (time.monotonic(), start.position_m)

    def there():
        nonlocal fastest, last
        state = output.state()
        if state.stamp_s - last[0] > 0.02:
            moved = np.linalg.norm(state.pose.position_m - last[1])
            fastest = max(fastest, float(moved) / (state.stamp_s - last[0]))
            last = (state.stamp_s, state.pose.position_m)
        return distance(state.pose, far.pose)[0] < FOLLOWED_M

    send_until(output, far, there)
    assert output.state().mode is ArmMode.READY
    assert 0.01 < fastest < 1.5 * 0.6  # of max_velocity_m_s; stamps jitter on a busy machine


def test_discontinuous_motion_ends_in_a_named_reflex_and_resumes_only_after_recover(connect):
    """Budgets that no YAML can give, so that the limits of the robot itself are broken."""
    output = connect(backend='robot')
    output._config = output._config.model_copy(
        update={
            'max_velocity_m_s': 30.0,
            'max_acceleration_m_s2': 1000.0,
            'max_jerk_m_s3': 1e6,
            'limit_rate': False,
        }
    )
    start = output.state().pose
    output.send(target_at(start))
    wait_until(lambda: output.sent, 'a motion')
    jump = target_at(start, (0.0, 0.0, -0.03))
    with suppress(ArmError):  # the simulator may refuse the first already: O_T_EE is its link 7
        output.send(jump)
    state = wait_mode(output, ArmMode.REFLEX)
    assert any('velocity_discontinuity' in error for error in state.errors), state.errors
    with pytest.raises(ArmError, match='guard/recover'):
        output.send(jump)
    stopped, sent = state.pose, output.sent
    output.recover()
    wait_mode(output, ArmMode.READY)
    time.sleep(0.3)
    assert distance(output.state().pose, stopped)[0] < FOLLOWED_M
    assert output.sent == sent


def test_killed_robot_is_lost_at_once_and_the_new_connection_waits_for_recover(connect, fresh):
    output = connect()
    start = output.state().pose
    target = target_at(start, (0.0, 0.03, 0.0))
    output.send(target)
    wait_until(lambda: output.sent, 'a motion')
    fresh.kill()
    lost = wait_mode(output, ArmMode.LOST, timeout_s=10.0)
    assert lost.errors
    began = time.monotonic()
    with pytest.raises(ArmError, match='lost'):
        output.send(target)
    output.hold()
    assert time.monotonic() - began < 1.0
    wait_until(lambda: fresh.host in output.state().errors[0], lambda: output.state())
    fresh.start()
    state = wait_mode(output, ArmMode.REFLEX, timeout_s=60.0)  # connected; the motion's end stays
    assert any('the motion ended' in error for error in state.errors), state.errors
    with pytest.raises(ArmError, match='guard/recover'):
        output.send(target)
    output.recover()
    here = wait_mode(output, ArmMode.READY)
    send_until(
        output,
        target_at(here.pose, (0.0, 0.02, 0.0)),
        lambda: abs(output.state().pose.position_m[1] - here.pose.position_m[1]) > 0.015,
    )


def test_arm_moves_on_while_python_is_stuck(connect):
    """The 1 kHz loop does not need the interpreter, here held for half a second."""
    output = connect()
    start = output.state().pose
    output.send(target_at(start))
    wait_until(lambda: output.sent, 'a motion')
    output.send(target_at(start, (0.03, 0.0, 0.0)))
    ctypes.PyDLL(None).usleep(900_000)
    wait_until(lambda: distance(output.state().pose, start)[0] > 0.02, 'the arm to move', 2.0)
    assert output.state().mode is ArmMode.READY


STALLED = """
import sys, time
sys.path.insert(0, {test!r})
from test_robot_arm_fci import fci_config, open_output, target_at, wait_mode
from grape_bringup.robot.arm import ArmError, ArmMode
output = open_output(fci_config({host!r}, backend='robot'))
start = wait_mode(output, ArmMode.READY).pose
output.send(target_at(start))
while not output.sent:
    time.sleep(0.01)
sys.stdout.write('moving\\n')
sys.stdout.flush()
try:
    while True:
        output.send(target_at(start, (0.0, 0.0, 0.02)))
        time.sleep(0.01)
except ArmError:
    state = wait_mode(output, ArmMode.REFLEX)
    sys.stdout.write(' '.join(state.errors) + '\\n')
output.close()
"""


def test_stalled_client_stops_the_arm_and_does_not_go_on_by_itself(tmp_path):
    """The robot counts lost packets; a process that is stopped for a second loses too many."""
    fci_simulator.install()
    simulator = fci_simulator.FrankaSim(tmp_path / 'franka_sim.log', '--comm')
    simulator.start()
    code = STALLED.format(test=str(Path(__file__).parent), host=simulator.host)
    client = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout.readline() == 'moving\n'
        client.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        client.send_signal(signal.SIGCONT)
        said = client.stdout.readline()
        assert 'communication_constraints_violation' in said
        assert client.wait(STOP_S) == 0
    finally:
        client.kill()
        client.wait()
        simulator.kill()


def test_address_without_a_robot_is_said_and_tried_again(tmp_path):
    output = open_output(fci_config(fci_simulator.free_address()))
    try:
        time.sleep(0.5)
        assert output.state() is None
        with pytest.raises(ArmError, match='Connection to FCI refused|not said anything'):
            output.send(target_at_rest())
    finally:
        output.close()
        assert output.join(STOP_S)


def target_at_rest():
    from grape_bringup.robot.arm import Pose

    return target_at(Pose(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])))


def test_missing_library_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'franka', None)
    with pytest.raises(ArmError, match=r'pip install .*\[robot\]'):
        open_output(fci_config('127.0.0.1'))
