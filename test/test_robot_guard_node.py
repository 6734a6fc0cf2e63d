"""The guard as a process, over DDS, with a fake arm: what it promises when others fail."""

import time

import numpy as np
import pytest
from guard_peer import EPISODE, GUARD, PATIENT, Bench, Peer, wait_until, write_contract

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


@pytest.fixture(scope='module')
def shared(ros_processes, bench, contract_path):
    """One guard for all tests that leave it alive."""
    process = ros_processes(GUARD, {'contract': contract_path, **PATIENT})
    bench.wait_for_guard()
    yield process
    process.stop()
    wait_until(lambda: not bench.node.count_publishers('guard/state'), 20.0)


@pytest.fixture
def guard(shared, bench):
    """The shared guard, armed, in a new episode."""
    assert shared.popen.poll() is None, shared.output()
    bench.begin()
    return bench


def test_steps_reach_the_arm_and_are_answered_with_their_stamp_and_number(guard):
    start = guard.targets()[-1]
    stamp = guard.look()
    number = guard.step(x=0.01, gripper=0.0, stamp=stamp)
    wait_until(lambda: guard.targets()[-1][0] > start[0])
    guard.event(guard.kinds.STOP)
    done = guard.executed()[0]
    assert (done.header.stamp, done.step, done.episode_id) == (stamp, number, EPISODE)
    assert (done.source, done.verdict, done.verdict_reason) == ('policy', done.VERDICT_OK, '')
    end = guard.targets()[-1]
    wait_until(guard.is_still)
    # STOP brakes: the answer says how far it came, of the centimetre that was asked.
    assert 0.0 < done.delta_translation.x <= 0.01 and 0.0 < done.latency_ms < 5000.0
    np.testing.assert_allclose(guard.targets()[-1][1:], end[1:], atol=1e-9)
    assert guard.targets()[-1][0] - start[0] == pytest.approx(done.delta_translation.x, abs=1e-9)
    wait_until(lambda: guard.messages('gripper_opening')[-1].data < 0.01)
    wait_until(
        lambda: abs(guard.messages('ee_pose')[-1].pose.position.x - guard.targets()[-1][0]) < 1e-3
    )


@pytest.mark.parametrize('latched', [True, False], ids=['latched', 'ros2 topic pub'])
def test_emergency_stop_is_heard_from_any_publisher_and_stays(guard, latched):
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Bool

    qos = QoSProfile(depth=1)
    if latched:
        qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
    guard.act(3, x=0.01)
    publisher = guard.node.create_publisher(Bool, 'estop', qos)
    wait_until(publisher.get_subscription_count)
    publisher.publish(Bool(data=True))
    guard.wait_mode('STOPPED', 'estop')
    publisher.publish(Bool(data=False))
    guard.node.destroy_publisher(publisher)
    wait_until(lambda: any('hold' in m.data for m in guard.messages('fake_arm/told')))
    time.sleep(0.1)
    count = len(guard.targets())
    guard.act(3, x=0.01)
    assert len(guard.targets()) == count
    success, message = guard.call('arm', True)
    assert not success and 'guard/reset first' in message


def test_arm_that_reflexes_recovers_without_moving_and_waits_to_be_armed(guard):
    guard.act(3, x=0.01)
    guard.trouble('reflex')
    guard.wait_mode('FAULT', 'cartesian_reflex')
    time.sleep(0.1)
    count = len(guard.targets())
    assert guard.call('recover')[0]
    guard.heard['guard/state'].clear()
    guard.wait_mode('DISARMED')
    guard.act(2, x=0.01)
    assert len(guard.targets()) == count
    assert guard.executed(5)[-1].source == 'hold'
    assert guard.call('arm', True)[0]
    wait_until(lambda: len(guard.targets()) > count + 10)
    here = guard.messages('ee_pose')[-1].pose.position
    np.testing.assert_allclose(guard.targets()[-1], [here.x, here.y, here.z], atol=1e-3)


def test_person_takes_over_at_once_and_the_recording_hears_of_it(guard):
    guard.act(2, x=0.01)
    guard.drive(y=0.1)
    guard.wait_mode('INTERVENED')
    for _ in range(20):
        guard.drive(y=0.1)
        guard.step(x=0.02, stamp=guard.look())
        time.sleep(0.05)
    guard.drive(engaged=False)
    guard.heard['guard/state'].clear()
    guard.wait_mode('ARMED')
    told = [e for e in guard.messages('episode_event') if e.kind == guard.kinds.INTERVENTION]
    assert [(e.detail, e.source, e.episode_id) for e in told] == [
        ('begin', 'operator', EPISODE),
        ('end', 'operator', EPISODE),
    ]
    mine = [e for e in guard.messages('executed_step') if e.source == 'teleop']
    assert len(mine) >= 5
    assert np.median([e.delta_translation.x for e in mine]) == pytest.approx(0.0, abs=1e-6)
    assert sum(e.delta_translation.y for e in mine) > 0.04


def test_frozen_camera_holds_the_arm(guard):
    guard.act(3, x=0.002)
    guard.act(20, frozen=True, x=0.002)
    guard.wait_mode('ARMED', 'camera_frozen')
    wait_until(guard.is_still)
    assert 'equal pictures' in guard.executed(22)[-1].verdict_reason


def test_second_publisher_of_steps_is_a_fault_that_names_both(guard, bench):
    other = Peer(bench.rclpy, bench.contract, 'second_policy')
    try:
        assert '/policy_node' in guard.wait_mode('FAULT', '/second_policy').reason
        assert not guard.call('arm', True)[0]
    finally:
        other.close()


def test_second_publisher_on_the_controllers_topic_is_a_fault_that_names_it(guard):
    from geometry_msgs.msg import PoseStamped

    stranger = guard.rclpy.create_node('stranger')
    stranger.create_publisher(PoseStamped, 'fake_arm/target', 10)
    try:
        guard.wait_mode('FAULT', 'fake_arm/target')
        guard.wait_mode('FAULT', '/stranger')
    finally:
        stranger.destroy_node()


@pytest.mark.parametrize(('jump_s', 'rule'), [(60.0, 'in_the_future'), (-60.0, 'in_the_past')])
def test_steps_of_another_clock_are_refused_and_named(guard, jump_s, rule):
    for _ in range(3):
        guard.step(x=0.01, stamp=guard.stamp(jump_s))
        time.sleep(0.05)
    guard.event(guard.kinds.STOP)
    answers = guard.executed(3)
    assert all(e.source == 'hold' and rule in e.verdict_reason for e in answers)
    assert np.ptp(guard.targets(), axis=0).max() == 0.0


def test_error_of_the_recorder_holds_the_arm(guard):
    guard.act(3, x=0.01)
    guard.event(guard.kinds.ERROR, source='recorder', detail='the disk is full')
    wait_until(guard.is_still)
    guard.act(2, x=0.01)
    assert guard.is_still()
    assert any('the disk is full' in e.verdict_reason for e in guard.messages('executed_step'))


def test_pause_service_brakes_and_teleoperated_episodes_are_answered_without_a_policy(guard):
    guard.act(2, x=0.01)
    assert guard.call('pause', True)[0]
    guard.wait_mode('PAUSED')
    wait_until(guard.is_still)
    assert guard.call('pause', False)[0]
    guard.begin('teleop')
    stamps = []
    for _ in range(6):
        guard.drive(y=0.1)
        stamps.append(guard.look())
        time.sleep(0.1)
    guard.event(guard.kinds.STOP, controller='teleop')
    answers = guard.executed(6)
    assert [e.header.stamp for e in answers] == stamps
    assert [e.step for e in answers] == list(range(6))
    assert answers[-2].source == 'teleop' and answers[-2].delta_translation.y > 0.0


def test_diagnostics_count_every_refusal_and_say_rates_and_latencies(guard):
    guard.act(3, x=0.01)
    guard.step(x=float('nan'), stamp=guard.look())
    guard.heard['/diagnostics'].clear()
    wait_until(lambda: len(guard.messages('/diagnostics')) > 1)
    status = guard.messages('/diagnostics')[-1].status[0]
    values = {entry.key: entry.value for entry in status.values}
    assert status.name == 'guard_node: guard' and values['mode'] == 'ARMED'
    assert int(values['rule not_finite']) >= 1
    assert float(values['latency_ms_p99']) >= float(values['latency_ms_p50']) > 0.0
    assert {'late_ms_p99', 'tick_ms_p50', 'loop_hz', 'skipped_ticks', 'steps_policy'} <= set(
        values
    )
