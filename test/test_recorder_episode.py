"""The recorder over DDS: what it writes of an episode, and what it refuses."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from recorder_peer import Peer, observation, write_contract

from grape_episode.bag import BagError, read_episode, read_info
from grape_episode.label import effective_outcome
from grape_episode.outcome import Outcome

IMAGE = 'camera/agentview/image_raw'


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def shared(ros, tmp_path_factory):
    """A recorder in a thread of this process, and its peer."""
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter

    from grape_episode.recorder_node import RecorderNode

    root = tmp_path_factory.mktemp('shared')
    values = {
        'output_dir': str(root / 'bags'),
        'contract': str(write_contract(root / 'contract.yaml')),
        'drain_timeout_s': 1.0,
    }
    node = RecorderNode(parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    peer = Peer(ros)
    peer.wait_for_recorder()
    peer.bags = root / 'bags'
    yield peer
    peer.close()
    executor.shutdown()
    node.destroy_node()


def test_ready_comes_when_the_bag_is_open_and_every_message_is_in_it(shared):
    shared.start('whole')
    assert read_info(shared.bags / 'whole').outcome is Outcome.INTERRUPTED
    for step in range(200):
        shared.step('whole', step)
        time.sleep(0.001)
    bag = shared.stop('whole', 200)
    assert Path(bag) == shared.bags / 'whole'
    episode = read_episode(bag)
    assert (episode.info.outcome, episode.info.steps, episode.info.lost) == ('success', 200, {})
    assert episode.images['agentview'][:, 0, 0, 0].tolist() == [s % 256 for s in range(200)]
    assert np.allclose(episode.policy_actions()[:, 0], np.arange(200) / 1000)
    assert episode.scene.positions_m[:, 0, 2].tolist() == [s / 1000 for s in range(201)]
    assert episode.joint_positions[:, 0].tolist() == list(range(201))
    assert [e.kind for e in episode.events] == ['start', 'ready', 'stop']
    assert episode.info.environment == {'roles': {}} and episode.info.code_version


def test_episode_that_breaks_off_before_its_first_step_is_closed_at_once(shared):
    began = time.monotonic()
    bag = shared.play('none', 0, 'error')
    assert time.monotonic() - began < 0.9  # no waiting for messages that nobody sent
    episode = read_episode(bag)
    assert (episode.info.outcome, episode.info.steps, episode.info.lost) == ('error', 0, {})
    assert episode.scene.positions_m.shape == (1, 1, 3)


def test_picture_without_an_answer_does_not_keep_a_broken_episode_open(shared):
    shared.start('unanswered')
    shared.step('unanswered', 0)
    shared.topics.observe('unanswered', 1, observation(1), True)
    episode = read_episode(shared.stop('unanswered', 1, 'error'))
    assert (episode.info.steps, episode.info.lost) == (1, {})
    assert len(episode.scene.success) == 2 and len(episode.images['agentview']) == 1


def test_messages_that_never_come_are_counted_by_topic_after_the_drain_timeout(shared):
    shared.start('lossy')
    for step in range(5):
        shared.step('lossy', step)
    bag = shared.stop('lossy', 7)
    assert read_info(bag).lost == {
        IMAGE: 2, 'policy_step': 2, 'joint_states': 2, 'ee_pose': 2, 'scene_state': 2,
    }  # fmt: skip
    with pytest.raises(BagError, match='no message for step 5'):
        read_episode(bag)


def test_stray_steps_of_the_episode_do_not_hide_that_others_are_missing(shared):
    """Counted as they came, two late answers once closed the bag before the last two steps."""
    shared.start('stray')
    for step in range(4):
        shared.step('stray', step)
        shared.topics.expert_step('stray', 10**6 + step, np.ones(7))
    assert read_info(shared.stop('stray', 6)).lost['policy_step'] == 2


def test_late_messages_of_the_episode_before_are_not_in_the_next_bag(shared):
    shared.play('before', 3)
    shared.start('after')
    shared.topics.expert_step('before', 0, np.ones(7))
    shared.step('after', 0)
    assert read_episode(shared.stop('after', 1)).policy_actions()[0, 0] == 0.0


def test_duplicate_episode_id_is_refused_and_the_first_bag_stays(shared):
    bag = Path(shared.play('twice', 2))
    before = {item.name: item.read_bytes() for item in bag.iterdir()}
    shared.event(shared.kinds.START, 'twice')
    assert 'never overwritten' in shared.wait_for('twice', shared.kinds.ERROR)
    assert {item.name: item.read_bytes() for item in bag.iterdir()} == before


@pytest.mark.parametrize('name', ['', '../up', '.hidden'])
def test_episode_id_that_cannot_be_a_folder_is_refused(shared, name):
    shared.event(shared.kinds.START, name)
    assert 'cannot be the name' in shared.wait_for(name, shared.kinds.ERROR)


def test_start_closes_an_episode_that_was_left_open_as_error(shared):
    shared.start('left')
    shared.step('left', 0)
    shared.play('next', 1)
    left = read_info(shared.wait_for('left', shared.kinds.RECORDED))
    assert (left.outcome, left.steps) == ('error', 1) and 'next began' in left.detail


def test_policys_ready_is_in_the_info_and_a_broken_one_ends_the_episode(shared):
    shared.start('known')
    ready = {'adapter_id': 'sft-1', 'config_json': '{"policy_sha256": "abc"}'}
    say_as_policy(shared, 'known', **ready)
    info = read_info(shared.stop('known', 0))
    assert (info.adapter_id, info.policy) == ('sft-1', {'policy_sha256': 'abc'})
    shared.start('garbled')
    say_as_policy(shared, 'garbled', adapter_id='sft-1', config_json='{')
    assert 'not JSON' in shared.wait_for('garbled', shared.kinds.ERROR)
    shared.wait_for('garbled', shared.kinds.RECORDED)
    assert read_info(shared.bags / 'garbled').outcome is Outcome.ERROR


def say_as_policy(peer, name, **fields):
    event = peer.kinds(kind=peer.kinds.READY, source='policy', episode_id=name, **fields)
    peer.topics._publishers['episode_event'].publish(event)
    time.sleep(0.1)


def test_label_service_keeps_the_history_and_refuses_what_it_does_not_know(shared):
    bag = shared.play('labelled', 1, 'failure')
    assert shared.label('labelled', 'success').success
    assert shared.label('labelled', 'discard').success
    assert effective_outcome(bag) == 'interrupted' and read_info(bag).outcome == 'failure'
    assert 'not one of' in shared.label('labelled', 'splendid').message
    assert 'no bag folder' in shared.label('nobody', 'success').message
