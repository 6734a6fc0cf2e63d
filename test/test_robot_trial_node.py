"""Trials on a robot: the operator's buttons, and what happens when something breaks.

A real trial node and recorder as processes, over DDS; the drivers, the guard and the policy are
stand-ins (robot_peer.py) that break on demand.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from robot_peer import HOME, RATE_HZ, PolicyPeer, wait_until
from robot_trial_bench import IDLE, PAUSED, RESETTING, RUNNING, TO_LABEL, Bench

from grape_episode.bag import read_episode, read_info
from grape_episode.label import effective_outcome, read_labels
from grape_episode.outcome import Outcome


@pytest.fixture(scope='module')
def bench(ros_processes, tmp_path_factory):
    import rclpy

    rclpy.init()
    bench = Bench(rclpy, tmp_path_factory.mktemp('trials'), ros_processes)
    bench.wait_for_graph()
    yield bench
    bench.close()
    rclpy.try_shutdown()
    assert 'Traceback' not in bench.trial.output(), bench.trial.output()


@pytest.fixture
def well(bench):
    """The bench with everything well, and nothing running."""
    bench.robot.reset()
    bench.policy.is_mute = False
    if bench.state.state in (RESETTING, RUNNING, PAUSED):
        bench.press('abort')
    if bench.state.state == TO_LABEL:
        bench.press('discard')
    bench.wait_state(IDLE)
    time.sleep(0.3)
    return bench


def test_trial_is_recorded_with_one_stamp_a_step_and_the_operators_label(well):
    result = well.run(steps=10)
    assert well.label('success', 'it is in the bowl')[0]
    played = result()
    assert (played.outcome, played.steps >= 10) == ('success', True)
    episode = read_episode(played.bag_path)
    assert episode.info.outcome is Outcome.INTERRUPTED  # a robot's machine does not judge
    assert effective_outcome(played.bag_path) == 'success'
    [label] = read_labels(played.bag_path)
    assert (label.reason, label.labeller) == ('it is in the bowl', 'ada')
    steps = {topic.name for topic in well.contract.topics if topic.per_step}
    assert not steps & set(episode.info.lost), episode.info.lost
    assert len(episode.images['wrist']) == played.steps
    assert episode.info.environment['roles']['target'] == 'red_block'
    assert episode.info.instruction == 'put the red block into the bowl'
    assert episode.joint_names == ('fr3_joint1', 'left_finger_joint', 'right_finger_joint')
    assert np.allclose(episode.joint_positions[0], [0.5, 0.02125, 0.02125])
    assert np.allclose(episode.ee_position_m, HOME)
    assert ('label', 'operator') in [(e.kind, e.source) for e in episode.events]
    gaps_s = np.diff(episode.stamps_ns) / 1e9
    assert (gaps_s > 0).all() and 0.8 < np.median(gaps_s) * RATE_HZ < 1.3


def test_depth_camera_that_never_said_where_it_stands_refuses_the_start(bench):
    """Asked before the camera said so; the trials of the other tests began after."""
    ok, said = bench.refusal
    assert not ok and 'no camera_pose came on /camera/front/camera_pose' in said
    assert 'grape calibrate' in said


def test_unlabelled_trial_is_no_failure_and_is_labelled_afterwards(well):
    result = well.run(max_steps=5)
    played = result()
    assert (played.outcome, played.steps) == ('interrupted', 5)
    assert 'not labelled' in played.detail and well.state.state == TO_LABEL
    assert effective_outcome(played.bag_path) == 'interrupted'
    assert well.press('failure')[0]
    assert effective_outcome(played.bag_path) == 'failure'
    assert read_labels(played.bag_path)[0].labeller == 'operator'
    assert well.state.bag_path == played.bag_path


def test_second_press_and_press_after_the_end_label_once_and_say_why_not(well):
    result = well.run(steps=3)
    assert well.press('success')[0]
    again = well.press('success')
    other = well.press('failure')
    played = result()
    well.wait_state(IDLE)
    late_ok, late = well.press('failure')
    assert [x.outcome for x in read_labels(played.bag_path)] == ['success']
    assert not other[0] and not late_ok
    assert 'labelling page' in late and 'labelling page' in other[1]
    assert again[0] or 'labelling page' in again[1]  # idempotent while it ends


def test_camera_missing_at_the_start_refuses_and_names_it(well):
    well.robot.silent.add('wrist')
    well.ask()
    time.sleep(1.7)
    ok, said = well.press('ready')
    assert not ok and 'camera wrist' in said and '/camera/wrist/color/image_raw' in said
    assert well.state.state == RESETTING
    well.robot.silent.clear()
    wait_until(lambda: well.press('ready')[0])
    well.wait_state(RUNNING)


def test_camera_that_stalls_during_a_trial_ends_it_as_an_error_that_names_it(well):
    result = well.run(steps=5)
    well.robot.silent.add('front')
    played = result()
    assert played.outcome == 'error' and 'camera front' in played.detail
    assert effective_outcome(played.bag_path) == 'error'
    assert well.policy.stops[-1].outcome == 'error'  # everybody heard, so the arm is held


def test_camera_that_repeats_its_last_picture_counts_as_stale(well):
    result = well.run(steps=5)
    well.robot.repeats.add('wrist')
    played = result()
    assert played.outcome == 'error' and 'camera wrist' in played.detail


def test_arm_that_falls_silent_ends_the_trial_as_an_error(well):
    result = well.run(steps=3)
    well.robot.silent.add('arm')
    played = result()
    assert played.outcome == 'error' and 'ee_pose' in played.detail


@pytest.mark.parametrize(
    ('mode', 'word'), [('FAULT', 'guard/recover'), ('STOPPED', 'guard/reset')]
)
def test_guard_that_stops_the_arm_ends_the_trial_as_an_error(well, mode, word):
    result = well.run(steps=3)
    well.robot.mode, well.robot.reason = getattr(well.robot.kinds, mode), 'reflex: joint 4'
    played = result()
    assert played.outcome == 'error'
    assert word in played.detail and 'reflex: joint 4' in played.detail
    well.robot.reason = ''


def test_disarmed_guard_and_lost_guard_refuse_the_start(well):
    well.ask()
    well.robot.mode = well.robot.kinds.DISARMED
    time.sleep(0.2)
    assert 'guard/arm' in well.press('ready')[1]
    well.robot.silent.add('guard')
    time.sleep(2.2)
    ok, said = well.press('ready')
    assert not ok and 'the guard said nothing' in said


def test_mute_policy_ends_the_trial_as_an_error(well):
    result = well.run(steps=3)
    well.policy.is_mute = True
    played = result()
    assert played.outcome == 'error' and 'no step from the policy' in played.detail


def test_pause_holds_by_the_guard_and_nothing_is_observed_until_resume(well):
    result = well.run(steps=4)
    assert well.press('pause')[0]
    well.wait_state(PAUSED)
    wait_until(lambda: well.robot.mode == well.robot.kinds.PAUSED)
    time.sleep(0.15)
    answered = len(well.policy.stamps)
    time.sleep(2.2)  # longer than step_timeout_s: a pause is no silence
    assert len(well.policy.stamps) == answered
    assert well.press('resume')[0]
    wait_until(lambda: len(well.policy.stamps) > answered + 3)
    assert well.press('success')[0]
    played = result()
    assert played.outcome == 'success'
    gaps_s = np.diff(read_episode(played.bag_path).stamps_ns) / 1e9
    assert (gaps_s > 1.0).sum() == 1


def test_guard_that_does_not_pause_ends_the_trial(well):
    result = well.run(steps=3)
    well.robot.obeys = False
    well.press('pause')
    played = result()
    assert played.outcome == 'error' and 'did not pause' in played.detail


def test_abort_and_cancel_break_off_without_a_label(well):
    result = well.run(steps=3)
    assert well.press('abort')[0]
    played = result()
    assert (played.outcome, played.detail) == ('interrupted', 'aborted by the operator')
    assert read_labels(played.bag_path) == []
    well.wait_state(IDLE)
    before = well.ask()  # and before it began
    assert well.press('abort')[0]
    assert (before().outcome, before().bag_path) == ('interrupted', '')


def test_second_trial_of_an_initial_state_restores_the_first_ones_start(well):
    well.robot.colour = 200
    assert well.run(steps=3, init_state=7) and well.press('success')[0]
    well.wait_state(IDLE)
    first = well.state.episode_id
    assert well.state.reference_episode_id == ''
    well.robot.colour = 100
    well.robot.at = np.array(HOME) + [0.1, 0, 0]
    from sensor_msgs.msg import Image

    ghosts = []
    watching = well.robot.node.create_subscription(Image, 'trial/ghost', ghosts.append, 10)
    well.ask(init_state=7)
    wait_until(lambda: abs(well.state.pose_distance_m - 0.1) < 1e-6)
    assert well.state.reference_episode_id == first and 'ghost' in well.state.prompt
    wait_until(lambda: ghosts and np.frombuffer(ghosts[-1].data, np.uint8)[0] == 150)
    well.robot.node.destroy_subscription(watching)
    ok, said = well.press('ready')
    assert not ok and '0.100 m' in said and first in said
    well.robot.at = np.array(HOME)
    wait_until(lambda: well.press('ready')[0])
    well.wait_state(RUNNING)


def test_next_asks_for_a_trial_without_an_action_client(well):
    ok, said = well.press('next')
    assert ok and 'red block' in said
    well.wait_state(RESETTING)
    assert (well.state.task, well.state.init_state, well.state.max_steps) == ('table/0', 0, 150)
    assert not well.press('next')[0]


def test_teleoperated_trial_needs_no_policy_and_counts_what_was_executed(well):
    well.robot.executes_as = 'teleop'
    started = len(well.policy.starts)
    result = well.ask(controller='teleop', episode_id='tele')
    assert well.press('ready')[0]
    wait_until(lambda: len(well.policy.starts) > started)
    well.policy.episode, well.policy.step = 'tele', 0  # stands for the guard's own clock
    wait_until(lambda: well.state.step >= 5)
    assert well.press('success')[0]
    played = result()
    well.robot.executes_as = 'policy'
    assert played.steps >= 5 and read_info(played.bag_path).controller == 'teleop'


def test_unknown_task_is_refused_with_the_known_ones(well):
    goal = well._kinds[0].Goal(task='shelf/3', episode_id='x')
    sent = wait_until(well._action.send_goal_async(goal).result)
    result = wait_until(sent.get_result_async().result).result
    assert result.outcome == 'error' and 'table/0' in result.detail


def test_killed_policy_ends_the_trial_as_an_error(well):
    """DDS forgets a killed participant after 5 s; its silence is noticed before."""
    well.policy.close()
    script = Path(__file__).with_name('robot_peer.py')
    process = subprocess.Popen([sys.executable, script, well.contract_path])
    try:
        wait_until(lambda: 'policy_node' in well.robot.node.get_node_names(), 20.0)
        time.sleep(0.5)
        result = well.run(steps=3)
        process.kill()
        played = result()
    finally:
        process.kill()
        process.wait()
        import rclpy

        well.policy = PolicyPeer(rclpy, well.contract)
    assert played.outcome == 'error' and 'no step from the policy' in played.detail
    assert read_info(played.bag_path).outcome is Outcome.ERROR


def test_killed_recorder_ends_the_trial_and_the_next_one_is_recorded(well):
    result = well.run(steps=3)
    well.recorder.kill()
    played = result()
    assert played.outcome == 'error', played.detail
    assert 'recorder_node is not there any more' in played.detail
    assert well.policy.stops[-1].outcome == 'error'
    well.start_recorder()
    wait_until(lambda: 'recording to' in well.recorder.output(), 20.0)
    well.wait_for_graph()
    again = well.run(steps=2)
    assert well.press('success')[0]
    assert again().outcome == 'success'
