"""The guard as a process that ends, or whose policy does: hold comes last."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guard_peer import EPISODE, GUARD, PATIENT, Bench, wait_until, write_contract

from grape_episode.contract import load_contract


@pytest.fixture(scope='module')
def contract_path(tmp_path_factory):
    return write_contract(tmp_path_factory.mktemp('guard') / 'contract.yaml')


@pytest.fixture(scope='module')
def bench(ros_env, contract_path):
    import rclpy

    rclpy.init()
    bench = Bench(rclpy, load_contract(contract_path))
    yield bench
    bench.close()
    rclpy.try_shutdown()


@pytest.fixture
def own_guard(ros_process, bench, contract_path):
    """Return start(**parameters) -> a guard of the test's own."""
    started = []

    def start(**parameters):
        values = {'contract': contract_path, **PATIENT, **parameters}
        started.append(ros_process(GUARD, values))
        bench.wait_for_guard()
        return started[-1]

    yield start
    for process in started:
        process.stop()
    wait_until(lambda: not bench.node.count_publishers('guard/state'), 20.0)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_guard_sends_hold_last(own_guard, bench, number):
    process = own_guard()
    bench.begin()
    bench.act(3, x=0.01)
    process.popen.send_signal(number)
    assert process.popen.wait(60) == 0
    told = wait_until(lambda: [m.data for m in bench.messages('fake_arm/told')])
    # As many targets at the end of the loop as when the arm is let go: none came after hold.
    assert told[0].startswith('hold after ') and len({text.split()[2] for text in told}) == 1, told
    assert 10 < len(bench.targets()) <= int(told[0].split()[2])


def test_exception_in_the_loop_holds_at_once_and_ends_the_node_with_an_error(own_guard, bench):
    process = own_guard()
    bench.begin()
    bench.act(2, x=0.01)
    bench.trouble('break')
    assert process.popen.wait(60) == 1
    assert 'the fake arm was told to break' in process.output()
    bench.wait_mode('FAULT', 'RuntimeError')
    assert any(m.data.startswith('hold after') for m in bench.messages('fake_arm/told'))


def test_killed_policy_holds_the_arm_and_is_a_fault_after_n_periods(
    own_guard, bench, contract_path
):
    """SIGKILL in the middle of a motion: DDS does not tell, only the silence does."""
    process = own_guard(hold_after_periods=5.0, fault_after_periods=20.0, cameras=['none'])
    bench.begin()
    # The bench's own publisher of steps would be the second one.
    bench.node.destroy_publisher(bench._steps)
    script = Path(__file__).with_name('guard_peer.py')
    doomed = subprocess.Popen(
        [sys.executable, script, contract_path, EPISODE], stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(8):
            assert doomed.stdout.readline() == '.\n'
        assert not bench.is_still()
        doomed.kill()
        bench.wait_mode('ARMED', 'step_missed')
        bench.wait_mode('FAULT', 'step_missed')
        assert bench.is_still() and process.popen.poll() is None
    finally:
        doomed.kill()
        doomed.wait()
        steps = bench.contract.topic('policy_step')
        bench._steps = bench.node.create_publisher(bench._types[0], steps.name, steps.depth)


def test_released_deadman_brakes(own_guard, bench):
    own_guard(deadman_timeout_s=1.0)
    bench.begin()
    for _ in range(5):
        bench.press_deadman(True)
        bench.act(1, x=0.01)
    assert not bench.is_still()
    bench.press_deadman(False)
    bench.wait_mode('ARMED', 'the switch is released')
    wait_until(bench.is_still)


def test_dry_run_decides_everything_and_sends_nothing(own_guard, bench):
    process = own_guard(dry_run=True)
    wait_until(lambda: bench.call('arm', True)[0], 5.0)
    bench.number = 0
    bench.event(bench.kinds.START)
    time.sleep(0.2)
    bench.act(5, x=0.01)
    assert bench.executed(4)[1].source == 'policy'
    assert bench.state.target.position.x > bench.state.measured.position.x - 1e-9
    process.stop()
    assert not bench.messages('fake_arm/target')


@pytest.mark.parametrize(
    ('parameters', 'word'),
    [({'max_speed_m_s': 99.0}, 'max_speed_m_s'), ({'arm': 'spot'}, 'servo_twist'),
     ({'contract': 'nope'}, 'franka_openvla')],
)  # fmt: skip
def test_wrong_parameters_end_the_node_with_the_reason(ros_process, parameters, word):
    process = ros_process(GUARD, parameters)
    assert process.popen.wait(90) == 1
    assert word in process.output() and 'Traceback' not in process.output()
