"""What goes wrong around the guard, and what it promises: each test is one fault."""

import numpy as np
import pytest
from guard_world import EPISODE, World, delta
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmError, ArmMode
from grape_bringup.robot.guard_inputs import (
    Deadman,
    EmergencyStop,
    EpisodeEnd,
    GuardMode,
    Latest,
    Observation,
    Step,
    Verdict,
)

FORWARD = delta(x=0.02)


def moving():
    """A world in the middle of a policy's motion."""
    world = World(cameras=('front',)).begin()
    for number in range(4):
        world.cameras[0].see(world.time_s, world.now().clock_ns, number)
        world.step(FORWARD)
    assert not world.is_still()
    return world


def last(world, count=1):
    return [(e.source, e.verdict, e.reason) for e in world.executed[-count:]]


def test_guard_starts_disarmed_and_sends_nothing_until_it_is_armed():
    world = World()
    world.step(FORWARD)
    world.run(0.3)
    assert world.mode is GuardMode.DISARMED and not world.targets and not world.said


def test_armed_arm_stays_where_it_is_until_the_first_step():
    world = World().begin()
    world.run(0.5)
    assert len(world.targets) > 40
    assert np.ptp([t.pose.position_m for _, t in world.targets], axis=0).max() == 0.0


def test_a_step_moves_the_goal_by_its_delta_and_is_answered_by_it():
    world = World().begin()
    start = world.place
    world.step(delta(x=0.02, turn=(0, 0, 0.05), gripper=0.0))
    world.run(1.0)
    np.testing.assert_allclose(world.place - start, [0.02, 0, 0], atol=1e-9)
    (done,) = world.executed
    assert (done.source, done.verdict, done.reason) == ('policy', Verdict.OK, '')
    np.testing.assert_allclose(done.delta.translation_m, [0.02, 0, 0], atol=1e-12)
    np.testing.assert_allclose(done.delta.rotation_rotvec_rad, [0, 0, 0.05], atol=1e-12)
    assert done.delta.gripper_opening == 0.0 and world.opened == [0.0]


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('part', ['translation', 'rotation', 'gripper'])
def test_a_step_with_one_bad_number_is_refused_as_a_whole(bad, part):
    world = World().begin()
    start = world.place
    parts = {
        'translation': delta(x=0.02, y=bad),
        'rotation': delta(x=0.02, turn=(0.0, bad, 0.0)),
        'gripper': delta(x=0.02, gripper=bad),
    }
    world.step(parts[part])
    world.step()
    np.testing.assert_array_equal(world.place, start)
    done = world.executed[0]
    assert (done.source, done.verdict) == ('hold', Verdict.HELD)
    assert 'not_finite' in done.reason and world.guard.counts['not_finite'] == 1
    assert not world.opened


def test_a_step_of_the_wrong_shape_is_refused():
    world = World().begin()
    world.step(delta(x=0.02).__class__(np.zeros(2), np.zeros(3), 1.0))
    world.step()
    assert 'shape (2,); expected (3,)' in world.executed[0].reason


def test_a_long_step_is_shortened_by_its_norm_and_keeps_its_direction():
    world = World().begin()
    world.step(delta(x=0.03, y=0.04, turn=(0.3, 0, 0)))
    world.step()
    done = world.executed[0]
    assert np.linalg.norm(done.delta.translation_m) == pytest.approx(
        0.5 / np.sqrt(3) / 10 / 0.8  # the faster axis at its largest speed
    ) or np.linalg.norm(done.delta.translation_m) == pytest.approx(0.03)
    x, y, _ = done.delta.translation_m
    assert y / x == pytest.approx(4 / 3)
    assert done.verdict is Verdict.CLAMPED
    assert 'translation 0.0500 > 0.0300 m' in done.reason and 'rotation 0.3000' in done.reason


def test_the_target_stops_at_the_wall_of_the_box_and_the_answer_says_so():
    world = World(max_lead_m=0.5).begin()
    for _ in range(25):
        world.step(delta(x=0.02))
    world.run(0.5)
    assert world.place[0] == pytest.approx(world.config.workspace_max_m[0], abs=1e-9)
    assert 'box: goal x' in world.executed[-1].reason
    assert world.executed[-1].delta.translation_m[0] == pytest.approx(0.0, abs=1e-12)


def test_a_blocked_arm_is_not_pressed_further_than_the_lead():
    world = World().begin()
    world.arm._limits = world.arm._limits.__class__(speed_m_s=0.0)
    start = world.place
    for _ in range(20):
        world.step(delta(z=-0.02))
    assert world.place[2] - start[2] == pytest.approx(-world.config.max_lead_m, abs=1e-6)
    assert world.guard.counts['lead_translation'] > 5 and world.mode is GuardMode.ARMED


def test_an_arm_that_does_not_follow_at_all_is_a_fault():
    world = World(max_lead_m=0.4).begin()
    world.arm._limits = world.arm._limits.__class__(speed_m_s=0.0)
    for _ in range(20):
        world.step(delta(z=-0.02))
    assert world.mode is GuardMode.FAULT and 'is its controller active' in world.guard.reason


def test_an_episode_that_travels_too_far_ends_in_a_fault():
    world = World(max_travel_m=0.1).begin()
    for number in range(10):
        world.step(delta(x=0.02 * (-1) ** number))
    assert world.mode is GuardMode.FAULT
    assert 'm in this episode; at most 0.1' in world.guard.reason
    assert world.guard.travel_m < 0.13


def test_silent_policy_holds_and_is_a_fault_after_n_periods():
    world = World(fault_after_periods=20).begin()
    world.step(FORWARD)
    world.run(0.35)
    assert world.mode is GuardMode.ARMED and 'step_missed' in world.guard.reason
    assert world.executed, 'the last step is answered when the next one is missed'
    world.run(1.0)
    assert world.is_still() and world.mode is GuardMode.ARMED
    world.run(1.0)
    assert world.mode is GuardMode.FAULT and world.said[-1][1] == 'hold'


def test_silent_camera_brakes_and_is_a_fault_later():
    world = moving()
    world.run(0.3)
    start = len(world.targets)
    for _ in range(8):
        world.step(FORWARD)
    assert 'front: no picture for' in world.guard.reason and world.is_still()
    assert last(world)[0][0] == 'hold' and 'camera_stale' in last(world)[0][2]
    assert len(world.targets) > start
    for _ in range(30):
        world.step(FORWARD)
    assert world.mode is GuardMode.FAULT


def test_camera_whose_stamps_stand_still_holds_the_arm():
    world = moving()
    stamp = world.now().clock_ns
    for number in range(10):
        world.cameras[0].see(world.time_s, stamp, number)
        world.step(FORWARD)
    assert 'old by its stamp' in world.guard.reason and world.is_still()


def test_frozen_camera_holds_the_arm_though_its_pictures_keep_coming():
    world = moving()
    for _ in range(20):
        world.cameras[0].see(world.time_s, world.now().clock_ns, 99)
        world.step(delta(x=0.005))
    assert 'front: ' in world.guard.reason and 'frozen' in world.guard.reason
    assert world.is_still() and world.guard.counts['camera_frozen'] >= 1
    world.cameras[0].see(world.time_s, world.now().clock_ns, 100)
    world.step(delta(x=0.005))  # observed before the guard saw that the camera lives
    world.cameras[0].see(world.time_s, world.now().clock_ns, 101)
    world.step(delta(x=0.005))
    assert not world.is_still() and world.guard.reason == ''


def test_reflex_sends_nothing_more_and_nothing_resumes_by_itself():
    world = moving()
    world.arm.trouble('reflex')
    world.step(FORWARD)
    count = len(world.targets)
    assert world.mode is GuardMode.FAULT and 'arm_reflex' in world.guard.reason
    assert 'cartesian_reflex' in world.guard.reason
    assert 'guard/recover first' in world.ask('arm')[1]
    assert world.ask('recover')[0]
    assert world.mode is GuardMode.FAULT  # not yet
    world.run(0.5)
    assert world.mode is GuardMode.DISARMED
    for _ in range(5):
        world.step(FORWARD)
    assert len(world.targets) == count and last(world)[0][0] == 'hold'
    here = world.arm.state().pose.position_m
    assert world.ask('arm')[0]
    world.run(0.3)
    np.testing.assert_array_equal(world.place, here)  # nothing is left of the old command


def test_arm_that_was_pushed_while_disarmed_is_armed_where_it_is():
    world = moving()
    world.ask('disarm')
    before = world.place
    world.arm.trouble('push')
    world.ask('arm')
    here = world.arm.state().pose.position_m
    assert here[1] - before[1] > 0.02
    world.run(0.3)
    np.testing.assert_array_equal(world.place, here)


@pytest.mark.parametrize(('trouble', 'word'), [('stop', 'user stop'), ('guide', 'by hand')])
def test_user_stop_and_guiding_are_faults_that_recover_cannot_clear(trouble, word):
    world = moving()
    world.arm.trouble(trouble)
    world.tick()
    assert world.mode is GuardMode.FAULT and word in world.guard.reason
    assert world.ask('recover') == (False, world.guard.reason.split(': ', 1)[1])
    world.arm.trouble('ready')
    assert world.ask('recover')[0] and world.mode is GuardMode.DISARMED


def test_silent_arm_is_a_fault_within_the_age_that_is_allowed():
    world = moving()
    world.arm.trouble('silent')
    world.tick()
    assert world.mode is GuardMode.FAULT and world.said[-1][1] == 'hold'
    old = moving()
    frozen = old.arm.state()
    old.arm.state = lambda: frozen  # says READY for ever, of long ago
    old.run(0.25)
    assert old.mode is GuardMode.ARMED
    old.run(0.1)
    assert old.mode is GuardMode.FAULT and 'state is 0.3' in old.guard.reason


def test_emergency_stop_is_latched_and_beats_all_that_came_in_the_same_tick():
    world = moving()
    step = Step(world.now().clock_ns + 1, 'base', EPISODE, 99, FORWARD)
    out = world.tick(step, EmergencyStop('test'))
    assert out.target is None and out.hold and world.mode is GuardMode.STOPPED
    assert 'estop' in world.executed[-2].reason  # of the step that it broke off
    assert world.executed[-1].source == 'hold'
    count = len(world.targets)
    assert 'guard/reset first' in world.ask('arm')[1]
    assert 'guard/reset first' in world.ask('recover')[1]
    for _ in range(3):
        world.step(FORWARD)
    assert len(world.targets) == count and world.ask('reset')[0]
    assert world.mode is GuardMode.DISARMED
    world.run(0.2)
    assert len(world.targets) == count


def test_broken_off_step_is_answered_by_how_far_the_target_came():
    world = World().begin()
    start = world.place
    world.step(delta(x=0.02), wait=False)
    world.run(0.05)
    reached = world.place
    world.tick(EmergencyStop('test'))
    done = world.executed[-1]
    np.testing.assert_allclose(done.delta.translation_m, reached - start, atol=1e-9)
    assert 0 < done.delta.translation_m[0] < 0.01
    assert (done.source, done.verdict) == ('policy', Verdict.CLAMPED)


def test_second_publisher_is_a_fault_that_names_it_and_forbids_arming():
    world = moving()
    world.latest = Latest(publishers="'target_pose' is also published by /other_node")
    world.tick()
    assert world.mode is GuardMode.FAULT and '/other_node' in world.guard.reason
    world.ask('recover')
    assert world.ask('arm') == (False, "'target_pose' is also published by /other_node")


@pytest.mark.parametrize(
    ('jump_s', 'rule'), [(3600.0, 'step_in_the_future'), (-3600.0, 'step_in_the_past')]
)
def test_steps_after_a_clock_jump_are_refused_by_name(jump_s, rule):
    world = World().begin()
    world.step(FORWARD)
    goal = world.place + [0.02, 0, 0]
    world.clock_offset_s -= jump_s  # of the guard's clock; the policy's stays
    for _ in range(3):
        world.step(FORWARD, stamp_s=jump_s)
    world.run(0.5)
    assert world.guard.counts[rule] + world.guard.counts['old_step'] == 3
    assert world.guard.counts[rule] >= 1
    assert [e.source for e in world.executed] == ['policy', 'hold', 'hold', 'hold']
    assert (world.place <= goal + 1e-9).all()  # what was under way, and no more


def test_late_and_repeated_steps_are_refused():
    world = World().begin()
    world.step(FORWARD)
    world.step(FORWARD, stamp_s=-0.1)
    assert world.guard.counts['old_step'] == 1
    world.step(FORWARD, stamp_s=-5.0)
    assert world.guard.counts['old_step'] == 2
    assert [e.source for e in world.executed].count('hold') == 2


def test_two_steps_in_one_tick_move_the_arm_once_and_are_both_answered():
    world = World().begin()
    start, stamp = world.place, world.now().clock_ns
    world.tick(*(Step(stamp + n, 'base', EPISODE, n, FORWARD) for n in range(2)))
    world.run(0.5)
    np.testing.assert_allclose(world.place - start, [0.02, 0, 0], atol=1e-9)
    assert [(e.step.step, e.source) for e in world.executed] == [(0, 'hold'), (1, 'policy')]
    assert 'superseded' in world.executed[0].reason


def test_steps_of_another_episode_and_after_stop_do_not_move_the_arm():
    world = moving()
    world.step(FORWARD, episode_id='other')
    assert world.guard.counts['episode'] == 1
    world.tick(EpisodeEnd(EPISODE, ''))
    world.run(0.5)
    place = world.place
    assert world.is_still()
    for _ in range(3):
        world.step(FORWARD)
    np.testing.assert_array_equal(world.place, place)
    assert world.mode is GuardMode.ARMED and 'running is none' in world.executed[-1].reason


def test_error_of_the_recorder_brakes_the_arm():
    world = moving()
    world.tick(EpisodeEnd(EPISODE, 'recorder: the disk is full'))
    world.run(0.5)
    assert world.is_still() and 'the disk is full' in world.executed[-1].reason


def test_released_deadman_brakes_and_pressing_it_again_does_not_replay_old_steps():
    world = World(deadman_timeout_s=0.3).begin()
    start = world.place
    world.latest = Latest(deadman=Deadman(world.time_s + 1e3, True))
    for _ in range(3):
        world.step(FORWARD)
    assert not world.is_still()
    world.latest = Latest(deadman=Deadman(world.time_s + 1e3, False))
    world.step(FORWARD)
    world.step(FORWARD)
    world.run(0.3)
    assert world.is_still() and 'the switch is released' in world.guard.reason
    place = world.place
    assert 0.01 < place[0] - start[0] < 0.059  # of 6 cm: it did not go on to the goal
    world.latest = Latest(deadman=Deadman(world.time_s, True))
    world.tick()
    world.step(FORWARD, stamp_s=-0.1)
    np.testing.assert_array_equal(world.place, place)
    assert world.guard.counts['before_resume'] == 1
    world.latest = Latest(deadman=Deadman(world.time_s, True))
    world.step(FORWARD)
    assert not world.is_still()
    world.run(0.4)  # the switch falls silent while it is pressed
    assert 'no word of the deadman switch' in world.guard.reason


def test_pause_brakes_and_resume_waits_for_a_new_observation():
    world = moving()
    assert world.ask('pause')[0]
    world.step(FORWARD)
    world.run(0.5)
    assert world.is_still() and world.mode is GuardMode.PAUSED
    world.step(FORWARD)
    assert 'paused' in last(world)[0][2]
    place = world.place
    world.run(5.0)  # longer than a camera may be silent: in a pause nobody shows pictures
    assert world.ask('resume')[0]
    world.step(FORWARD, stamp_s=-0.2)
    np.testing.assert_array_equal(world.place, place)
    world.cameras[0].see(world.time_s, world.now().clock_ns, 50)
    world.step(FORWARD)
    assert not world.is_still()


def test_arming_outside_of_the_box_is_refused_with_the_distance():
    world = World(workspace_min_m=(0.6, -0.4, 0.0), workspace_max_m=(0.8, 0.4, 0.7))
    done, message = world.ask('arm')
    assert not done and '0.150 m outside of the workspace box' in message


def test_armed_a_little_outside_the_arm_is_led_in_slowly():
    world = World(workspace_min_m=(0.46, -0.4, 0.0)).begin()
    world.step(delta())
    world.run(1.0)
    assert world.place[0] == pytest.approx(0.46, abs=1e-9)
    speeds = [np.linalg.norm(t.linear_m_s) for _, t in world.targets]
    assert max(speeds) < 0.2


def test_flickering_gripper_is_sent_only_when_it_settles():
    world = World(gripper_settle_s=0.25).begin()
    for number in range(8):
        world.step(delta(gripper=float(number % 2)))
    assert world.opened == []
    for _ in range(5):
        world.step(delta(gripper=0.02))
    assert world.opened == [0.02]
    for opening in (0.04, 0.0, 0.06):
        world.step(delta(gripper=opening))
    assert world.opened == [0.02]  # less than gripper_change


def test_gripper_commands_keep_their_distance_and_the_newest_is_not_lost():
    world = World(gripper_interval_s=0.5).begin()
    world.step(delta(gripper=0.0))
    world.step(delta(gripper=1.0))
    world.step(delta(gripper=0.5))
    assert world.opened == [0.0]
    world.run(0.5)
    assert world.opened == [0.0, 0.5]


def test_step_in_a_frame_that_is_not_the_contracts_is_refused():
    world = World().begin()
    world.step(FORWARD, frame_id='camera')
    world.step()
    assert "frame 'camera'; the contract says 'base'" in world.executed[0].reason


def test_fake_arm_that_is_not_ready_takes_no_target():
    world = moving()
    target = world.targets[-1][1]
    world.arm.trouble('reflex')
    with pytest.raises(ArmError, match='the arm is reflex'):
        world.arm.send(target)
    assert world.arm.state().mode is ArmMode.REFLEX


def test_teleoperated_episode_is_answered_at_every_observation():
    world = World().begin('teleop')
    for number in range(6):
        if number == 2:
            world.engage(linear=(0.1, 0.0, 0.0))
        world.tick(Observation(world.now().clock_ns))
        for _ in range(9):
            if number >= 2:
                world.engage(linear=(0.1, 0.0, 0.0))
            world.tick()
    world.tick(EpisodeEnd(EPISODE, ''))
    assert [e.step.step for e in world.executed] == list(range(6))
    assert [e.source for e in world.executed] == ['hold'] * 2 + ['teleop'] * 4
    assert 'nobody is engaged' in world.executed[0].reason
    assert world.executed[4].delta.translation_m[0] == pytest.approx(0.01, rel=0.15)
    assert world.interventions == []  # the whole episode is the person's


def test_the_tool_tilts_no_further_than_the_cone_and_the_answer_says_so():
    world = World(cone_rad=0.3).begin()
    for _ in range(8):
        world.step(delta(turn=(0.05, 0.0, 0.02)))
    world.run(1.0)
    down = Rotation.from_quat(world.targets[-1][1].pose.quaternion_xyzw).apply([0.0, 0.0, -1.0])
    assert np.arccos(down[2]) == pytest.approx(0.3, abs=1e-6)
    assert 'cone: tool tilted' in world.executed[-1].reason


def test_cameras_are_not_expected_before_the_policy_acts():
    """Between START and READY nobody shows pictures, and a large policy takes its time."""
    world = World(cameras=('front',)).begin()
    world.run(10.0)
    assert world.mode is GuardMode.ARMED and world.guard.reason == ''


def test_gripper_in_a_fault_is_a_fault_and_forbids_arming():
    world = moving()
    state = world.gripper.state()
    world.gripper.state = lambda: state.__class__(1.0, False, world.time_s, 'it is too hot')
    world.tick()
    assert world.mode is GuardMode.FAULT and 'it is too hot' in world.guard.reason
    assert world.ask('recover')[0] and world.mode is GuardMode.FAULT
    world.gripper.state = lambda: state
    world.tick()
    assert world.mode is GuardMode.DISARMED and world.ask('arm')[0]
