"""Trials with the real guard: what the trial node, the guard and the recorder agree on."""

import threading
import time

import numpy as np
import pytest
from robot_peer import HOME, wait_until
from robot_trial_bench import IDLE, PAUSED, RUNNING, Bench

from grape_episode.bag import read_episode

# Test machines are busy: the guard's deadlines are not what is tested here.
PATIENT = {
    'hold_after_periods': 100.0, 'fault_after_periods': 400.0, 'camera_hold_s': 8.0,
    'camera_fault_s': 20.0, 'max_step_age_s': 10.0, 'max_state_age_s': 5.0,
    'teleop_timeout_s': 2.0,
}  # fmt: skip


@pytest.fixture(scope='module')
def bench(ros_processes, tmp_path_factory):
    import rclpy

    rclpy.init()
    bench = Bench(rclpy, tmp_path_factory.mktemp('guarded'), ros_processes, has_guard=False)
    contract = {'contract': bench.contract_path}
    bench.guard = ros_processes(
        'grape_bringup.robot.guard_node', contract | PATIENT | {'arm': 'fake', 'gripper': 'fake'}
    )
    bench.wait_for_graph()
    yield bench
    bench.close()
    rclpy.try_shutdown()


@pytest.fixture
def armed(bench):
    from std_srvs.srv import SetBool

    client = bench.robot.node.create_client(SetBool, 'guard/arm')
    assert client.wait_for_service(30.0)
    time.sleep(0.5)  # the guard has seen this client too, or its answer is lost
    if bench.state.state in (RUNNING, PAUSED):
        bench.press('abort')
    bench.wait_state(IDLE)

    said = []

    def arm():
        answer = wait_until(client.call_async(SetBool.Request(data=True)).result)
        said.append(answer.message)
        return answer.success

    wait_until(arm, 40.0, said)
    return bench


class Hand:
    """A person at a teleop device: engaged within the block."""

    def __init__(self, bench):
        from grape.msg import TeleopCommand

        self._kind = TeleopCommand
        self._bench = bench
        self._publisher = bench.robot.node.create_publisher(TeleopCommand, 'teleop/command', 10)
        self._done = threading.Event()

    def _say(self, engaged):
        message = self._kind(engaged=engaged, gripper_opening=float('nan'), device='test')
        message.header.frame_id = 'base'
        message.linear.y = 0.02
        self._publisher.publish(message)

    def _hold(self):
        while not self._done.wait(0.02):
            self._say(True)

    def __enter__(self):
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        for _ in range(5):
            self._say(False)
            time.sleep(0.02)
        self._bench.robot.node.destroy_publisher(self._publisher)


def ready(bench):
    """Press ready until the guard's new mode is known."""
    wait_until(lambda: bench.press('ready')[0], what='never ready')
    bench.wait_state(RUNNING)


def test_intervention_and_pause_are_in_the_recording_step_by_step(armed):
    result = armed.ask()
    ready(armed)
    wait_until(lambda: armed.state.step >= 5)
    with Hand(armed):
        before = armed.state.step
        wait_until(lambda: armed.state.step >= before + 8)
    assert armed.press('pause')[0]
    armed.wait_state(PAUSED)
    time.sleep(0.3)
    assert armed.press('resume')[0]
    before = armed.state.step
    wait_until(lambda: armed.state.step >= before + 5)
    assert armed.press('success')[0]
    played = result()
    assert played.outcome == 'success', played.detail
    episode = read_episode(played.bag_path)
    steps = {topic.name for topic in armed.contract.topics if topic.per_step}
    assert not steps & set(episode.info.lost), episode.info.lost
    assert {'policy', 'teleop'} <= set(episode.sources)
    assert set(episode.executed.proposed_by) == {'policy'}
    moved = episode.ee_position_m[-1] - episode.ee_position_m[0]
    assert moved[0] > 0.002 and moved[1] > 0.0005  # the policy goes along x, the hand along y
    kinds = [(e.kind, e.detail) for e in episode.events if e.kind == 'intervention']
    assert [detail.split()[0] for _, detail in kinds] == ['begin', 'end']


def test_demonstration_by_hand_is_recorded_without_a_policy(armed):
    result = armed.ask(controller='teleop')
    ready(armed)
    with Hand(armed):
        before = armed.state.step
        wait_until(lambda: armed.state.step >= before + 10)
    assert armed.press('success')[0]
    played = result()
    assert played.outcome == 'success', played.detail
    episode = read_episode(played.bag_path)
    assert len(episode.stamps_ns) == played.steps >= 10
    assert 'teleop' in episode.sources and len(episode.images['front']) == played.steps
    assert np.isfinite(episode.translation_m).all()
    assert np.linalg.norm(episode.ee_position_m[0] - np.array(HOME)) < 1.0


def test_killed_guard_ends_the_trial_as_an_error(armed):
    result = armed.ask()
    ready(armed)
    wait_until(lambda: armed.state.step >= 3)
    armed.guard.kill()
    played = result()
    assert played.outcome == 'error'
    assert 'guard said nothing' in played.detail or 'ee_pose' in played.detail
