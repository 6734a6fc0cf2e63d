"""A person takes over: no jump, the source of every step recorded, nothing resumes too early."""

import numpy as np
import pytest
from guard_world import EPISODE, World, delta

from grape_bringup.robot.guard_inputs import EpisodeEnd, EpisodeStart, GuardMode, Verdict

FORWARD = delta(x=0.02)
SIDEWAYS = (0.0, 0.1, 0.0)


def jumps(world):
    """The largest change of speed between two targets, m/s2."""
    speeds = np.array([target.linear_m_s for _, target in world.targets])
    return np.linalg.norm(np.diff(speeds, axis=0), axis=1).max() * world.config.rate_hz


def intervened():
    world = World().begin()
    for _ in range(3):
        world.step(FORWARD)
    world.drive(0.5, linear=SIDEWAYS)
    return world


def test_person_takes_over_without_a_jump_and_the_policy_is_not_followed():
    world = intervened()
    assert world.mode is GuardMode.INTERVENED and world.guard.source == 'teleop'
    before = world.place
    for _ in range(5):
        world.engage(linear=SIDEWAYS)
        world.step(FORWARD)
    world.drive(0.3, linear=SIDEWAYS)
    moved = world.place - before
    assert abs(moved[0]) < 0.001 and moved[1] > 0.05
    assert jumps(world) <= world.config.max_acceleration_m_s2


def test_steps_in_an_intervention_are_answered_by_what_the_person_did():
    world = intervened()
    for _ in range(5):
        world.engage(linear=SIDEWAYS, gripper=0.0)
        world.step(FORWARD, wait=False)
        world.drive(0.09, linear=SIDEWAYS, gripper=0.0)
    world.tick(EpisodeEnd(EPISODE, ''))
    mine = world.executed[-4:]
    assert [e.source for e in mine] == ['teleop'] * 4
    for done in mine:
        np.testing.assert_allclose(done.delta.translation_m, [0, 0.01, 0], atol=1e-9)
        assert done.delta.gripper_opening == 0.0
    assert world.opened == [0.0]


def test_the_step_in_which_a_person_takes_over_is_the_persons():
    world = World().begin()
    world.step(FORWARD)
    world.step(FORWARD, wait=False)
    world.run(0.03)
    world.drive(0.06, linear=SIDEWAYS)
    world.engage(linear=SIDEWAYS)
    world.step(FORWARD)
    assert [e.source for e in world.executed[:2]] == ['policy', 'teleop']
    assert world.executed[1].delta.translation_m[0] < 0.02  # broken off
    assert world.executed[1].delta.translation_m[1] > 0.0


def test_the_answers_of_an_episode_add_up_to_the_whole_motion():
    world = World().begin()
    start = world.place
    rng = np.random.default_rng(0)
    for number in range(40):
        if number in (8, 21):
            world.engage(linear=SIDEWAYS, angular=(0, 0, 0.4))
        if number in (14, 30):
            world.engage(on=False)
        if number == 17:
            world.ask('pause')
        if number == 19:
            world.ask('resume')
        world.step(delta(*rng.normal(0.0, 0.008, 3)), wait=False)
        for _ in range(9):
            if world.latest.teleop is not None and world.latest.teleop.is_engaged:
                world.engage(linear=SIDEWAYS, angular=(0, 0, 0.4))
            world.tick()
    world.tick(EpisodeEnd(EPISODE, ''))
    world.run(0.5)
    total = np.sum([e.delta.translation_m for e in world.executed], axis=0)
    np.testing.assert_allclose(total, world.place - start, atol=1e-6)
    assert {e.source for e in world.executed} == {'policy', 'teleop', 'hold'}
    assert [e.step.step for e in world.executed] == list(range(40))


def test_after_release_the_policy_resumes_only_with_a_new_observation():
    world = intervened()
    seen_before = world.now().clock_ns
    world.run(0.02)
    world.engage(on=False)
    world.tick()
    assert world.mode is GuardMode.ARMED
    world.run(0.3)
    place = world.place
    world.step(FORWARD, stamp_s=(seen_before - world.now().clock_ns) * 1e-9)
    np.testing.assert_array_equal(world.place, place)
    world.step(FORWARD)
    assert 'before_resume' in world.executed[-1].reason
    world.run(0.5)
    np.testing.assert_allclose(world.place - place, [0.02, 0, 0], atol=1e-9)


def test_interventions_are_told_once_each_with_their_episode():
    world = intervened()
    world.engage(on=False)
    world.run(0.1)
    assert world.interventions == [('begin', EPISODE), ('end', EPISODE)]
    world.drive(0.1, linear=SIDEWAYS)
    world.tick(EpisodeEnd(EPISODE, ''))
    assert world.interventions[2:] == [('begin', EPISODE), ('end', EPISODE)]
    world.engage(linear=SIDEWAYS)
    world.tick(EpisodeStart('next', 'policy'))
    assert world.interventions[4:] == [('begin', 'next')]


def test_device_that_falls_silent_while_engaged_holds_and_the_policy_stays_out():
    world = intervened()
    for _ in range(8):
        world.step(FORWARD)  # the newest command is old by now
    assert world.mode is GuardMode.INTERVENED and 'teleop_silent' in world.guard.reason
    assert world.is_still() and world.guard.counts['teleop_silent'] == 1
    assert world.executed[-1].source == 'teleop'
    np.testing.assert_allclose(world.executed[-1].delta.translation_m, 0.0, atol=1e-12)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_bad_number_of_a_device_holds(bad):
    world = intervened()
    world.drive(0.5, linear=(0.0, bad, 0.0))
    assert world.is_still() and 'teleop_not_finite' in world.guard.reason
    world.drive(0.2, linear=SIDEWAYS)
    assert not world.is_still()


def test_a_person_is_no_faster_than_allowed_and_stays_in_the_box():
    world = World(max_lead_m=0.5).begin()
    world.drive(2.5, linear=(0.0, 9.0, 0.0), angular=(0.0, 0.0, 9.0))
    world.drive(0.5, linear=(0.0, 9.0, 0.0))
    speeds = [np.linalg.norm(t.linear_m_s) for _, t in world.targets]
    turns = [np.linalg.norm(t.angular_rad_s) for _, t in world.targets]
    assert max(speeds) <= world.config.teleop_speed_m_s * 1.05
    assert max(turns) <= world.config.max_turn_rad_s
    assert world.place[1] == pytest.approx(world.config.workspace_max_m[1], abs=1e-9)
    assert world.guard.counts['box'] == 1  # counted once, not at every tick


def test_engaged_device_forbids_arming():
    world = World()
    world.engage(linear=SIDEWAYS)
    assert world.ask('arm') == (
        False,
        'a person is engaged at the teleop device: let go, then arm',
    )


def test_a_person_can_take_over_from_a_frozen_camera_but_not_from_the_deadman_or_a_pause():
    world = World(cameras=('front',)).begin()
    world.step()
    world.run(1.0)
    assert 'camera_stale' in world.guard.reason
    world.drive(0.2, linear=SIDEWAYS)
    assert world.mode is GuardMode.INTERVENED and not world.is_still()
    world.ask('pause')
    world.drive(0.5, linear=SIDEWAYS)
    assert world.mode is GuardMode.PAUSED and world.is_still()
    guarded = World(deadman_timeout_s=0.3).begin()
    guarded.drive(0.5, linear=SIDEWAYS)
    assert guarded.mode is GuardMode.ARMED and guarded.is_still()


def test_refused_step_in_an_intervention_still_records_the_motion_of_its_period():
    world = intervened()
    world.engage(linear=SIDEWAYS)
    world.step(delta(x=np.nan), wait=False)
    world.drive(0.09, linear=SIDEWAYS)
    world.tick(EpisodeEnd(EPISODE, ''))
    done = world.executed[-1]
    assert done.delta.translation_m[1] == pytest.approx(0.01, abs=1e-9)
    assert done.source == 'teleop' and done.verdict is Verdict.CLAMPED
    assert 'not_finite' in done.reason
