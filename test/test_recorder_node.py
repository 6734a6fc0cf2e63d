"""The recorder as a process: what happens when somebody is killed or stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorder_peer import Peer, wait_until, write_contract

from grape_episode.bag import BagError, read_episode, read_info, recover
from grape_episode.outcome import Outcome

IMAGE = 'camera/agentview/image_raw'
RECORDER = 'grape_episode.recorder_node'


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture
def peer(ros):
    peer = Peer(ros)
    yield peer
    peer.close()


@pytest.fixture
def recorder(ros_process, peer, tmp_path):
    """Return start(**parameters) -> the running recorder, which writes to tmp_path/bags."""

    def start(**parameters):
        contract = write_contract(tmp_path / 'contract.yaml')
        process = ros_process(
            RECORDER, {'output_dir': tmp_path / 'bags', 'contract': contract, **parameters}
        )
        peer.wait_for_recorder()
        return process

    return start


def test_killed_environment_gives_an_error_bag_and_the_next_episode_is_recorded(
    recorder, peer, tmp_path
):
    """Whoever drives dies without a word; DDS tells after the lease of 5 s."""
    recorder()
    peer.close()
    script = Path(__file__).with_name('recorder_peer.py')
    other = subprocess.Popen(
        [sys.executable, script, tmp_path / 'contract.yaml', 'orphan'],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while other.stdout.readline() != '30\n':
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    bag = tmp_path / 'bags' / 'orphan'
    wait_until(lambda: read_info(bag).outcome is Outcome.ERROR, 20.0)
    episode = read_episode(bag)
    assert 'vanished' in episode.info.detail and episode.info.steps >= 30
    import rclpy

    again = Peer(rclpy)
    again.wait_for_recorder()
    assert read_info(again.play('next', 3)).outcome is Outcome.SUCCESS
    again.close()


def test_killed_recorder_loses_at_most_one_chunk(recorder, peer, tmp_path):
    process = recorder()
    peer.start('cut')
    sent = []
    for step in range(120):
        sent.append(time.monotonic())
        peer.step('cut', step)
        time.sleep(0.01)
    process.kill()
    killed = time.monotonic()
    bag = tmp_path / 'bags' / 'cut'
    with pytest.raises(BagError, match='grape bag recover'):
        read_episode(bag)
    recover(bag)
    episode = read_episode(bag)
    old_enough = sum(at < killed - 0.5 for at in sent)  # a chunk is closed after 0.25 s
    assert episode.info.outcome is Outcome.INTERRUPTED
    assert 30 < old_enough <= episode.info.steps == len(episode.images['agentview'])


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_recorder_closes_the_bag_as_interrupted_and_says_so(recorder, peer, number):
    process = recorder()
    peer.start('stopped')
    for step in range(10):
        peer.step('stopped', step)
    time.sleep(0.3)
    process.popen.send_signal(number)
    bag = peer.wait_for('stopped', peer.kinds.RECORDED)
    assert process.popen.wait(10) == 0
    episode = read_episode(bag)
    assert (episode.info.outcome, episode.info.steps) == ('interrupted', 10)
    assert 'the recorder was stopped' in episode.info.detail


def test_silence_ends_an_episode_as_error(recorder, peer):
    recorder(idle_timeout_s=1.0)
    peer.start('silent')
    peer.step('silent', 0)
    info = read_info(peer.wait_for('silent', peer.kinds.RECORDED))
    assert info.outcome is Outcome.ERROR and 'no message for 1 s' in info.detail


def test_full_disk_refuses_the_episode_and_leaves_no_bag(recorder, peer, tmp_path):
    recorder(min_free_mb=10**9)
    peer.event(peer.kinds.START, 'full')
    said = peer.wait_for('full', peer.kinds.ERROR)
    assert 'min_free_mb is 1000000000' in said and 'Free some space' in said
    assert not (tmp_path / 'bags' / 'full').exists()


@pytest.mark.parametrize(
    ('parameters', 'word'),
    [({}, "'output_dir' is empty"), ({'output_dir': 'x', 'contract': 'nope'}, 'libero'),
     ({'output_dir': 'x', 'idle_timeout_s': 5}, 'idle_timeout_s')],
)  # fmt: skip
def test_wrong_parameters_end_the_node_with_the_reason(ros_process, parameters, word):
    process = ros_process(RECORDER, parameters)
    assert process.popen.wait(20) == 1
    assert word in process.output() and 'Traceback' not in process.output()
