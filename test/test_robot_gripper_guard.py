"""The guard with a Robotiq on a serial line: a policy's opening reaches the fingers."""

import pytest
import yaml
from guard_peer import GUARD, PATIENT, Bench, wait_until, write_contract
from robotiq_slave import RobotiqSlave

from grape_episode.contract import load_contract


@pytest.fixture
def slave(tmp_path):
    slave = RobotiqSlave(tmp_path / 'ttyGripper')
    yield slave
    slave.unplug()


@pytest.fixture
def bench(ros_env, ros_process, slave, tmp_path):
    import rclpy

    path = write_contract(tmp_path / 'contract.yaml')
    line = {'kind': 'modbus', 'port': str(slave.link), 'open_counts': 0, 'closed_counts': 255}
    gripper = tmp_path / 'gripper.yaml'
    gripper.write_text(yaml.safe_dump(line | {'reconnect_s': 0.1, 'reconnect_max_s': 0.2}))
    rclpy.init()
    bench = Bench(rclpy, load_contract(path))
    ros_process(
        GUARD,
        {'contract': path, 'gripper': 'modbus', 'gripper_config': str(gripper), **PATIENT},
    )
    bench.wait_for_guard()
    yield bench
    bench.close()
    rclpy.try_shutdown()


def test_the_policys_opening_reaches_the_fingers_and_a_lost_gripper_stops_the_guard(bench, slave):
    wait_until(lambda: slave.fingers.is_active, what='the gripper was not activated')
    bench.begin()
    bench.act(8, gripper=0.0)
    wait_until(lambda: slave.fingers.moves, what='nothing reached the fingers')
    assert set(slave.fingers.moves) == {255}
    slave.is_silent = True
    bench.act(8, gripper=0.0)
    bench.wait_mode('FAULT', 'gripper')
    slave.is_silent = False
    moves = len(slave.fingers.moves)
    bench.act(8, gripper=1.0)
    assert len(slave.fingers.moves) == moves  # it comes back, and nothing moves by itself
    bench.begin()
    bench.act(8, gripper=1.0)
    wait_until(lambda: slave.fingers.moves[-1] == 0, what='it does not follow after a recovery')
