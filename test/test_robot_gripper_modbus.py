"""The Robotiq on a serial line: the real client library against a Modbus RTU slave on a pty."""

import time

import pytest
from robotiq_slave import RobotiqSlave

from grape_bringup.robot.gripper import GripperError
from grape_bringup.robot.gripper_config import load_gripper_config

FULL_STROKE = {'open_counts': 0, 'closed_counts': 255}


@pytest.fixture
def gripper(tmp_path):
    """Return start(slave, **settings) -> the output; all are closed at the end."""
    pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')
    pytest.importorskip('pyrobotiqgripper', reason='run make setup')
    from rclpy.logging import get_logger

    from grape_bringup.robot.gripper_modbus import GripperModbus

    started = []

    def start(slave, **settings):
        base = load_gripper_config('modbus').model_dump() | FULL_STROKE
        config = type(load_gripper_config('modbus'))(
            **base
            | {'port': str(slave.link), 'reconnect_s': 0.1, 'reconnect_max_s': 0.2}
            | settings
        )
        started.append(GripperModbus(config, get_logger('gripper')))
        return started[-1]

    yield start
    for output in started:
        output.close()


@pytest.fixture
def slave(tmp_path):
    slave = RobotiqSlave(tmp_path / 'ttyGripper', object_at=None)
    yield slave
    if slave.link.is_symlink():
        slave.unplug()


def wait_for(condition, what, timeout_s=40.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.01)
    return value


def ready(output):
    wait_for(lambda: (s := output.state()) and not s.fault, lambda: f'not ready: {output.state()}')


def rests_at(output, opening):
    wait_for(
        lambda: abs(output.state().opening - opening) < 0.01,
        lambda: f'opening is {output.state()}, not {opening}',
    )


def test_the_gripper_is_activated_once_and_follows_the_opening_both_ways(gripper, slave):
    output = gripper(slave)
    ready(output)
    assert slave.fingers.activations == 1
    for opening in (0.0, 0.25, 1.0):
        output.command(opening)
        rests_at(output, opening)
        assert round((1 - opening) * 255) == slave.fingers.moves[-1]
        assert not output.state().is_holding


def test_the_same_opening_again_and_again_is_sent_once(gripper, slave):
    output = gripper(slave)
    ready(output)
    for _ in range(60):
        output.command(0.5)
        time.sleep(0.005)
    output.command(0.504)  # below min_change
    rests_at(output, 0.5)
    assert slave.fingers.moves == [128]


def test_the_newest_command_wins_and_those_before_it_are_not_played(gripper, slave):
    output = gripper(slave, poll_hz=5.0)
    ready(output)
    for opening in (0.9, 0.1, 0.8, 0.2, 0.4):
        output.command(opening)
    rests_at(output, 0.4)
    assert len(slave.fingers.moves) <= 2 and slave.fingers.moves[-1] == round(0.6 * 255)


def test_an_object_between_the_fingers_is_held_and_released(gripper, slave):
    slave.fingers.object_at = 100
    output = gripper(slave)
    ready(output)
    output.command(0.0)
    wait_for(lambda: output.state().is_holding, lambda: f'not holding: {output.state()}')
    assert output.state().opening == pytest.approx(155 / 255, abs=0.01)
    output.command(1.0)
    rests_at(output, 1.0)
    assert not output.state().is_holding


def test_a_few_dropped_replies_lose_no_command(gripper, slave):
    output = gripper(slave)
    ready(output)
    slave.dropped = 2
    output.command(0.0)
    rests_at(output, 0.0)
    assert set(slave.fingers.moves) == {255} and slave.fingers.activations == 1


def test_a_gripper_without_power_is_said_before_its_exchange_fails_and_blocks_nobody(
    gripper, slave
):
    output = gripper(slave)
    ready(output)
    slave.is_silent = True
    lost = time.monotonic()
    wait_for(lambda: 'no answer' in output.state().fault, lambda: f'not said: {output.state()}')
    assert time.monotonic() - lost < 3.9  # of the 4 s that the library blocks
    begun = time.monotonic()
    for _ in range(100):
        output.command(0.0)
        output.state()
    assert time.monotonic() - begun < 3.0


def test_an_adapter_pulled_in_the_middle_of_a_motion_and_back_moves_nothing_by_itself(
    gripper, slave
):
    output = gripper(slave)
    ready(output)
    output.command(0.0)
    wait_for(lambda: 0.2 < output.state().opening < 0.9, 'never in motion')
    slave.unplug()
    wait_for(lambda: 'is lost' in output.state().fault, lambda: f'not said: {output.state()}')
    output.command(1.0)  # nobody is there to hear it
    moves = list(slave.fingers.moves)
    slave.plug_in()
    ready(output)
    time.sleep(0.3)
    assert slave.fingers.moves == moves == [255] and slave.fingers.activations == 1
    output.command(1.0)
    rests_at(output, 1.0)


def test_a_fault_register_stops_commands_until_somebody_recovers(gripper, slave):
    output = gripper(slave)
    ready(output)
    slave.fingers.fault = 0x0E
    wait_for(lambda: 'current is too high' in output.state().fault, 'fault not seen')
    output.command(0.0)
    time.sleep(0.2)
    assert slave.fingers.moves == [] and slave.fingers.activations == 1
    output.recover()
    ready(output)
    assert slave.fingers.activations == 2
    time.sleep(0.2)
    assert slave.fingers.moves == []  # what was asked for in the fault is dropped
    output.command(0.5)
    rests_at(output, 0.5)


def test_a_gripper_that_lost_its_power_is_not_activated_by_itself(gripper, slave):
    output = gripper(slave)
    ready(output)
    slave.fingers.power_cycle()
    wait_for(lambda: 'not activated' in output.state().fault, 'not seen')
    time.sleep(0.3)
    assert slave.fingers.activations == 1
    output.recover()
    ready(output)
    assert slave.fingers.activations == 2


def test_an_activated_gripper_is_left_as_it_is_at_the_start(gripper, slave):
    ready(first := gripper(slave))
    first.command(0.5)
    rests_at(first, 0.5)
    first.close()
    second = gripper(slave)
    ready(second)
    assert slave.fingers.activations == 1
    assert second.state().opening == pytest.approx(0.5, abs=0.01)


def test_a_missing_port_is_named_and_waited_for(gripper, slave):
    slave.unplug()
    output = gripper(slave)
    wait_for(lambda: str(slave.link) in output.fault, lambda: f'not named: {output.fault}')
    assert output.state() is None
    slave.plug_in()
    ready(output)


@pytest.mark.parametrize('opening', [float('nan'), float('inf'), -0.01, 1.01, None, 'open'])
def test_what_is_no_opening_is_refused(gripper, slave, opening):
    output = gripper(slave)
    with pytest.raises(GripperError, match='number from 0'):
        output.command(opening)
