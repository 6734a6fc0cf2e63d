"""The parts of a trial without ROS: buttons, sampling, references, configuration."""

import numpy as np
import pytest
import yaml
from episode_bags import make_bag
from robot_peer import robot_contract

from grape_bringup.robot.checked_yaml import RobotConfigError
from grape_bringup.robot.initial_state import (
    Start,
    find_reference,
    ghost,
    next_init_state,
    pose_distance,
)
from grape_bringup.robot.sampler import Sampler, Source, restamped, stamp_ns_of
from grape_bringup.robot.trial_config import load_trial_config
from grape_bringup.robot.trial_flow import RefusedError, State, Trial, TrialFlow, Verdict
from grape_episode.label import append_label
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome

TRIAL = Trial('t1', 'table/0', 'stack', 0, 10, 'policy')


@pytest.fixture
def written():
    return []


@pytest.fixture
def flow(written):
    flow = TrialFlow(lambda bag, verdict: written.append((bag, verdict.outcome)))
    flow.ask(TRIAL, 'put it back')
    return flow


def test_buttons_of_another_moment_are_refused_and_change_nothing(flow, written):
    for press in (flow.pause, flow.resume, lambda: flow.judge(Verdict('success'))):
        with pytest.raises(RefusedError):
            press()
    assert flow.snapshot().state is State.RESETTING
    flow.ready([])
    flow.begin()
    for press in (lambda: flow.ready([]), flow.resume):
        with pytest.raises(RefusedError, match='t1'):
            press()
    flow.pause()
    with pytest.raises(RefusedError, match='is paused'):
        flow.pause()
    assert flow.snapshot().state is State.PAUSED and written == []


def test_problems_keep_the_trial_from_beginning(flow):
    with pytest.raises(RefusedError, match='camera front'):
        flow.ready(['camera front: nothing came'])
    assert not flow.snapshot().is_ready
    flow.ready([])
    assert flow.snapshot().is_ready


def test_verdict_during_a_trial_is_written_once_when_the_bag_is_closed(flow, written):
    flow.ready([])
    flow.begin()
    flow.judge(Verdict('success'))
    flow.judge(Verdict('success'))
    with pytest.raises(RefusedError, match='is ending as success'):
        flow.judge(Verdict('failure'))
    assert written == []
    assert flow.end('/bags/t1', '', is_judgeable=True) == ''
    assert written == [('/bags/t1', 'success')] and flow.snapshot().state is State.IDLE
    with pytest.raises(RefusedError, match='no trial to label'):
        flow.judge(Verdict('failure'))


def test_label_that_cannot_be_written_is_asked_for_again():
    full = [OSError('the disk is full')]

    def write(bag, verdict):
        if full:
            raise full.pop()

    flow = TrialFlow(write)
    flow.ask(TRIAL, '')
    flow.begin()
    flow.judge(Verdict('success'))
    assert 'the disk is full' in flow.end('/bags/t1', '', is_judgeable=True)
    assert flow.snapshot().state is State.TO_LABEL
    flow.judge(Verdict('success'))
    assert flow.snapshot().state is State.IDLE


def test_next_trial_leaves_the_last_one_unlabelled(flow, written):
    flow.begin()
    flow.end('/bags/t1', '', is_judgeable=True)
    assert flow.snapshot().state is State.TO_LABEL
    flow.ask(Trial('t2', 'table/0', 'stack', 0, 10, 'policy'), 'again')
    assert flow.snapshot().state is State.RESETTING and written == []


def test_verdict_without_a_bag_is_said_to_be_lost(flow):
    flow.begin()
    flow.judge(Verdict('success'))
    flow.end('', 'no RECORDED from the recorder', is_judgeable=False)
    assert "'success' was not written" in flow.snapshot().prompt


def joint_state(stamp_ns):
    types = typestore().types
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    stamp = types['builtin_interfaces/msg/Time'](seconds, nanoseconds)
    header = types['std_msgs/msg/Header'](stamp, 'base')
    message = types['sensor_msgs/msg/JointState'](
        header, ['a'], np.array([0.5]), np.zeros(0), np.zeros(0)
    )
    return bytes(typestore().serialize_cdr(message, 'sensor_msgs/msg/JointState'))


def test_restamped_message_is_the_same_but_for_its_stamp():
    before = joint_state(1_700_000_000_123_456_789)
    assert stamp_ns_of(before) == 1_700_000_000_123_456_789
    after = restamped(before, 1_700_000_001_000_000_007)
    message = typestore().deserialize_cdr(after, 'sensor_msgs/msg/JointState')
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_001, 7)
    assert message.header.frame_id == 'base' and message.position.tolist() == [0.5]
    assert len(after) == len(before) and stamp_ns_of(before) == 1_700_000_000_123_456_789


def test_sampler_tells_missing_from_old_and_repeats_from_new():
    sampler = Sampler({'camera': Source('/cam', 0.3), 'arm': Source('/arm', 0.2)})
    [camera, arm] = sampler.problems(0.0)
    assert 'nothing came on /cam' in camera and 'nothing came on /arm' in arm
    sampler.put('camera', b'1', 100, 1.0)
    sampler.put('arm', b'2', None, 1.0)
    assert sampler.problems(1.1) == []
    sampler.put('arm', b'2', None, 1.35)  # without a stamp, each message is new
    sampler.put('camera', b'1', 100, 1.35)  # the same picture again is not
    [problem] = sampler.problems(1.4)
    assert '/cam is 0.40 s old; allowed are 0.3 s' in problem
    assert sampler.problems(1.4, ('arm',)) == []


def start(**changes):
    values = {
        'episode_id': 'e',
        'image': np.zeros((2, 2, 3), np.uint8),
        'position_m': np.zeros(3),
        'quaternion_xyzw': np.array([0, 0, 0, 1.0]),
    }
    return Start(**values | changes)


def test_pose_distance_counts_turns_and_knows_that_a_quaternion_and_its_negative_are_one():
    half = np.array([0, 0, np.sin(0.2), np.cos(0.2)])
    move, turn = pose_distance(np.array([0.03, 0, 0.04]), half, start())
    assert np.isclose(move, 0.05) and np.isclose(turn, 0.4)
    assert np.isclose(pose_distance(np.zeros(3), -half, start(quaternion_xyzw=half))[1], 0)


def test_ghost_is_half_of_both_and_none_where_sizes_differ():
    live = np.full((4, 4, 3), 100, np.uint8)
    assert (ghost(live, np.full((4, 4, 3), 200, np.uint8)) == 150).all()
    assert ghost(live, np.zeros((2, 2, 3), np.uint8)) is None


def record(folder, name, minute, **options):
    at = f'2026-01-01T10:{minute:02d}:00+00:00'
    options = {'outcome': Outcome.INTERRUPTED, 'task': 'table/0', 'init_state': 2} | options
    return make_bag(folder, name, started_at=at, **options)


def test_reference_is_the_first_usable_trial_of_the_same_start(tmp_path):
    append_label(record(tmp_path, 'discarded', 1), 'discard')
    record(tmp_path, 'error', 2, outcome=Outcome.ERROR)
    broken = record(tmp_path, 'broken', 3)
    next(broken.glob('*.mcap')).write_bytes(b'')
    record(tmp_path, 'other', 4, init_state=1)
    first = record(tmp_path, 'first', 5)
    record(tmp_path, 'second', 6)
    found = find_reference(tmp_path, 'table/0', 2)
    assert found.episode_id == 'first' and found.image.shape == (28, 28, 3)
    append_label(first, 'discard')
    assert find_reference(tmp_path, 'table/0', 2).episode_id == 'second'
    assert find_reference(tmp_path, 'table/0', 7) is None
    assert find_reference(tmp_path / 'nothing', 'table/0', 2) is None


def test_each_initial_state_gets_its_trials_before_the_next_ones_turn(tmp_path):
    assert next_init_state(tmp_path, 'table/0', 2, trials_each=2) == 0
    for number, state in enumerate((0, 0, 1)):
        record(tmp_path, f'e{number}', number, init_state=state)
    assert next_init_state(tmp_path, 'table/0', 2, trials_each=2) == 1
    record(tmp_path, 'e3', 3, init_state=1)
    record(tmp_path, 'e4', 4, init_state=0)
    assert next_init_state(tmp_path, 'table/0', 2, trials_each=2) == 1  # the fewest


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        ({'cameras': {'front': {'image': '/a'}}}, 'expected front, wrist'),
        ({'max_image_age_s': 60}, 'max_image_age_s'),
        ({'max_image_agee_s': 0.1}, 'max_image_agee_s'),
        ({'next': {'task': 'nope'}}, "'nope' is not one of: table/0"),
        ({'ee_pose': '/observation/ee_pose'}, 'is read and written'),
    ],
)
def test_wrong_configuration_says_what_is_wrong(tmp_path, change, word):
    data = yaml.safe_load(open('config/robot/trial.yaml')) | change
    path = tmp_path / 'trial.yaml'
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(RobotConfigError, match=word):
        load_trial_config(path, robot_contract())
