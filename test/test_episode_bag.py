"""Bags: what is written is what is read, without ROS, and what is not there is named."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from episode_bags import CONTRACT, differences, make_bag, make_episode, rewrite, step_of
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader

from grape_episode.bag import BagError, find_bags, read_episode, read_info, write_episode
from grape_episode.bag_writer import BagWriter
from grape_episode.episode import EpisodeInfo
from grape_episode.outcome import Outcome

IMAGE = 'camera/agentview/image_raw'


@pytest.fixture
def bag(tmp_path):
    return make_bag(tmp_path)


@pytest.mark.parametrize('compression', ['zstd', 'none'])
def test_written_episode_is_read_back_equal(tmp_path, compression):
    episode = make_episode()
    back = read_episode(write_episode(tmp_path, episode, compression))
    assert differences(episode, back) == []


def test_expert_episode_without_tokens_and_scene_is_read_back_equal(tmp_path):
    episode = replace(make_episode(tokens=0), scene=None)
    back = read_episode(write_episode(tmp_path, episode))
    assert back.action_token_ids.shape == (6, 0)
    assert differences(episode, back) == []


def test_episode_that_failed_before_its_first_step_is_read_back_equal(tmp_path):
    episode = make_episode(steps=0, outcome=Outcome.ERROR, tokens=0)
    back = read_episode(write_episode(tmp_path, episode))
    assert back.scene.positions_m.shape == (1, 2, 3)
    assert back.policy_actions().shape == (0, 7)


def test_policy_images_and_actions_are_what_the_policy_saw_and_chose(bag):
    episode = read_episode(bag)
    assert np.array_equal(
        episode.policy_images(), np.rot90(episode.images['agentview'], 2, (1, 2))
    )
    row = episode.policy_actions()[2]
    assert np.allclose(row[:3], episode.translation_m[2] / 0.05)
    assert np.allclose(row[3:6], episode.rotation_rotvec_rad[2] / 0.5)
    assert row[6] == episode.gripper_command[2]


def test_bag_is_read_where_ros_and_the_interfaces_are_not_installed(bag, tmp_path):
    code = (
        'import sys\n'
        "sys.modules.update({'rclpy': None, 'grape': None, 'torch': None})\n"
        'from grape_episode import messages\n'
        "messages._message_folder = lambda: sys.exit('asked for the interfaces')\n"
        'from grape_episode.bag import read_episode\n'
        f'print(read_episode({str(bag)!r}).info.steps)\n'
    )
    environment = {**os.environ, 'AMENT_PREFIX_PATH': ''}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment
    )
    assert (done.stdout.strip(), done.stderr) == ('6', '')


def test_bag_is_a_rosbag_that_other_readers_open(bag):
    with AnyReader([bag]) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
        types = {c.topic: c.msgtype for c in reader.connections}
    assert counts == {
        IMAGE: 6, 'policy_step': 6, 'joint_states': 7, 'ee_pose': 7, 'scene_state': 7,
        'episode_event': 4, 'instruction': 1,
    }  # fmt: skip
    assert types['policy_step'] == 'grape/msg/PolicyStep'


def test_info_is_in_the_bag_itself_when_the_file_beside_it_is_lost(bag):
    beside = read_info(bag)
    (bag / 'episode.json').unlink()
    assert read_info(bag) == beside
    assert beside.seed == 2**63 + 1


def test_info_of_another_schema_or_with_other_keys_is_an_error(bag):
    data = json.loads((bag / 'episode.json').read_text())
    for change, text in (({'schema_version': 9}, 'reads 1'), ({'sucess': True}, 'sucess')):
        (bag / 'episode.json').write_text(json.dumps(data | change))
        with pytest.raises(BagError, match=text):
            read_info(bag)


def test_find_bags_returns_each_bag_once_and_names_what_holds_none(tmp_path):
    bags = [make_bag(tmp_path / 'a', 'e1'), make_bag(tmp_path / 'b', 'e0')]
    make_bag(tmp_path / '.recovering-x', 'e2')
    assert find_bags([tmp_path, bags[0]]) == bags
    assert find_bags(bags[1]) == [bags[1]]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BagError, match="empty' holds no bag"):
        find_bags([tmp_path, tmp_path / 'empty'])
    with pytest.raises(BagError, match='does not exist'):
        find_bags(tmp_path / 'none')


def test_bag_is_never_overwritten(bag):
    with pytest.raises(FileExistsError, match='never overwritten'):
        write_episode(bag.parent, make_episode())


@pytest.mark.parametrize('topic', [IMAGE, 'policy_step', 'scene_state', 'ee_pose', 'joint_states'])
def test_missing_message_is_an_error_that_names_topic_and_step(bag, topic):
    rewrite(bag, lambda t, m: [] if t == topic and step_of(m) == 3 else [m])
    with pytest.raises(BagError, match=f'topic {topic} has no message for step 3'):
        read_episode(bag)


@pytest.mark.parametrize('topic', [IMAGE, 'policy_step', 'scene_state'])
def test_message_that_is_there_twice_is_an_error_that_names_topic(bag, topic):
    rewrite(bag, lambda t, m: [m, m] if t == topic and step_of(m) == 3 else [m])
    with pytest.raises(BagError, match=f'topic {topic} has (step 3|stamp 150000000 ns) twice'):
        read_episode(bag)


def poison_step(m):
    m.token_log_probs = np.where(np.arange(7) == 4, np.nan, m.token_log_probs)


def poison_pose(m):
    m.pose.position.y = np.inf


def poison_scene(m):
    m.keypoint_poses[1].position.z = np.nan


@pytest.mark.parametrize(
    ('topic', 'poison'),
    [('policy_step', poison_step), ('ee_pose', poison_pose), ('scene_state', poison_scene)],
)
def test_nan_is_an_error_that_names_topic_and_step(bag, topic, poison):
    def edit(name, message):
        if name == topic and step_of(message) == 2:
            poison(message)
        return [message]

    rewrite(bag, edit)
    with pytest.raises(BagError, match=f'topic {topic}, step 2: a number is NaN'):
        read_episode(bag)


def test_picture_of_another_size_is_an_error_that_names_the_step(bag):
    def edit(topic, message):
        if topic == IMAGE and step_of(message) == 4:
            message.height, message.data = 14, message.data[: 14 * 28 * 3]
        return [message]

    rewrite(bag, edit)
    with pytest.raises(BagError, match=r'step 4: rgb8 of 14 x 28.*expected rgb8 of 28 x\s+28'):
        read_episode(bag)


def test_steps_of_the_episode_before_are_left_out(bag):
    def edit(topic, message):
        if topic == 'policy_step' and message.step == 5:
            late = replace(message, episode_id='the one before', step=0)
            return [late, message]
        return [message]

    before = read_episode(bag)
    assert differences(before, read_episode(rewrite(bag, edit))) == []


def test_success_without_its_last_state_is_an_error_and_a_broken_off_episode_is_not(tmp_path):
    def cut(topic, message):
        ends = topic in ('ee_pose', 'joint_states', 'scene_state') and step_of(message) == 6
        return [] if ends else [message]

    done = rewrite(make_bag(tmp_path, 'done'), cut)
    with pytest.raises(BagError, match='no message after step 5, though the outcome is success'):
        read_episode(done)
    broke = rewrite(make_bag(tmp_path, 'broke', outcome=Outcome.ERROR), cut)
    episode = read_episode(broke)
    assert len(episode.scene.success) == 7
    assert np.array_equal(episode.ee_position_m[6], episode.ee_position_m[5])


@pytest.mark.parametrize('keep', [0.02, 0.3, 0.7, 0.98])
def test_truncated_bag_is_an_error_that_says_what_to_do(bag, keep):
    [file] = bag.glob('*.mcap')
    os.truncate(file, int(file.stat().st_size * keep))
    with pytest.raises(BagError, match='truncated or corrupted.*grape bag recover'):
        read_episode(bag)


def test_flipped_bit_anywhere_in_the_messages_is_an_error(bag):
    [file] = bag.glob('*.mcap')
    sound = file.read_bytes()
    with file.open('rb') as stream:
        [chunk] = make_reader(stream).get_summary().chunk_indexes
    first = chunk.chunk_start_offset + 58  # behind the chunk's header and zstd's flags
    last = chunk.chunk_start_offset + chunk.chunk_length
    for place in [*range(first, last, chunk.chunk_length // 20), last - 1]:
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        with pytest.raises(BagError, match=str(bag)):
            read_episode(bag)


def test_folder_that_is_no_bag_is_told_from_one_that_was_not_closed(bag, tmp_path):
    (tmp_path / 'photos').mkdir()
    for path, text in (
        (tmp_path / 'photos', 'is not a bag'),
        (tmp_path / 'none', 'is not a folder'),
        (bag / 'metadata.yaml', 'is not a folder'),
    ):
        with pytest.raises(BagError, match=text):
            read_episode(path)
    (bag / 'metadata.yaml').unlink()
    assert read_info(bag).steps == 6
    with pytest.raises(BagError, match='has no metadata.yaml: the recorder was killed.*recover'):
        read_episode(bag)


def test_empty_and_missing_files_are_named(bag):
    [file] = bag.glob('*.mcap')
    file.write_bytes(b'')
    with pytest.raises(BagError, match='e0.mcap is empty'):
        read_episode(bag)
    file.unlink()
    with pytest.raises(BagError, match='names e0.mcap, which is not there'):
        read_episode(bag)
    (bag / 'metadata.yaml').write_text('')
    with pytest.raises(BagError, match="metadata.yaml is not rosbag2's"):
        read_episode(bag)


def test_bag_being_written_is_marked_interrupted(tmp_path):
    info = EpisodeInfo.from_dict(make_episode().info.to_dict() | {'outcome': 'interrupted'})
    writer = BagWriter(tmp_path / 'open', CONTRACT.topics, info, 'zstd')
    assert read_info(tmp_path / 'open').outcome is Outcome.INTERRUPTED
    writer.close(replace(info, outcome=Outcome.FAILURE))
    assert read_info(tmp_path / 'open').outcome is Outcome.FAILURE
