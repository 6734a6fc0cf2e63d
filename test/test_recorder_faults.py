"""The recorder when the disk, the order of messages or the START lets it down."""

import resource
import time

import pytest
from recorder_peer import Peer, observation, write_contract

from grape_episode.bag import read_episode, read_info, recover
from grape_episode.outcome import Outcome


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
    """Return the running recorder's process; it writes to tmp_path/bags."""
    parameters = {
        'output_dir': tmp_path / 'bags',
        'contract': write_contract(tmp_path / 'contract.yaml'),
        'compression': 'none',
    }
    process = ros_process('grape_episode.recorder_node', parameters)
    peer.wait_for_recorder()
    return process


def test_write_error_ends_the_episode_and_what_was_written_is_recovered(recorder, peer, tmp_path):
    pid = recorder.popen.pid
    peer.start('full')
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    # A limit on the size of files is the full disk that a test can make.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (300_000, hard))
    for step in range(200):  # 4 KB each
        peer.step('full', step)
        time.sleep(0.01)
    assert 'File too large' in peer.wait_for('full', peer.kinds.ERROR)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    info = read_info(tmp_path / 'bags' / 'full')
    assert info.outcome is Outcome.ERROR
    assert 'grape bag recover' in info.detail
    assert read_info(peer.play('after', 2)).outcome is Outcome.SUCCESS
    assert recover(tmp_path / 'bags' / 'full') > 100
    episode = read_episode(tmp_path / 'bags' / 'full')
    assert episode.info.outcome is Outcome.ERROR
    assert episode.info.steps == len(episode.images['agentview']) > 20


def test_stop_that_overtakes_its_messages_waits_for_them(recorder, peer):
    peer.start('late')
    peer.event(peer.kinds.STOP, 'late', outcome='success', steps=2)
    time.sleep(0.3)
    assert not peer.answers('late', peer.kinds.RECORDED)
    for step in range(2):
        peer.step('late', step)
    peer.topics.observe('late', 2, observation(2), False)
    episode = read_episode(peer.wait_for('late', peer.kinds.RECORDED, 3.0))
    assert (episode.info.lost, episode.info.outcome) == ({}, Outcome.SUCCESS)


@pytest.mark.parametrize('config', ['{', '[1]'])
def test_start_with_a_broken_configuration_is_refused_and_the_next_is_recorded(
    recorder, peer, tmp_path, config
):
    peer.event(peer.kinds.START, 'broken', config_json=config)
    assert 'config_json of START' in peer.wait_for('broken', peer.kinds.ERROR)
    assert not peer.answers('broken', peer.kinds.READY)
    assert not (tmp_path / 'bags' / 'broken').exists()
    assert read_info(peer.play('good', 2)).outcome is Outcome.SUCCESS


def test_stop_with_an_unknown_outcome_is_an_error_that_says_so(recorder, peer):
    info = read_info(peer.play('odd', 1, outcome='sucess'))
    assert info.outcome is Outcome.ERROR
    assert "'sucess'; it is one of: success, failure" in info.detail
