"""Whatever comes in, what goes out is finite, in the box, and as slow and smooth as promised."""

import numpy as np
import pytest
from guard_world import EPISODE, World, contract, delta
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import Pose
from grape_bringup.robot.fake_arm import HOME
from grape_bringup.robot.guard import Request
from grape_bringup.robot.guard_inputs import (
    Deadman,
    EmergencyStop,
    EpisodeEnd,
    EpisodeStart,
    Latest,
    Step,
    Teleop,
)
from grape_bringup.robot.guard_motion import Motion
from grape_bringup.robot.guard_rules import compose, difference, limit_tilt
from grape_bringup.robot.interpolation import Interpolator, MotionLimits

GARBAGE = (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-300, 0.0)
LIMITS = MotionLimits(0.5, 2.0, 20.0, 1.0, 4.0, 40.0)
FAR = np.full(3, 1e6)


def random_vector(rng, scale):
    vector = rng.normal(size=3) * scale * rng.choice([0.1, 1.0, 10.0])
    if rng.random() < 0.1:
        vector[rng.integers(3)] = rng.choice(GARBAGE)
    return vector


def random_step(rng, world):
    command = delta(*random_vector(rng, 0.02), random_vector(rng, 0.05), rng.normal(0.5, 0.5))
    return Step(
        stamp_ns=world.now().clock_ns + round(rng.normal(0.0, 0.02) * 1e9),
        frame_id=rng.choice(['base', 'base', 'base', 'camera']),
        episode_id=rng.choice([EPISODE, EPISODE, EPISODE, 'other']),
        step=world.ticks,
        delta=command,
    )


def random_items(rng, world, replies):
    items = []
    if rng.random() < 0.15:
        items.append(random_step(rng, world))
    if rng.random() < 0.02:
        kinds = ['arm', 'disarm', 'stop', 'reset', 'recover', 'pause', 'resume']
        items.append(Request(rng.choice(kinds), lambda *answer: replies.append(answer)))
    if rng.random() < 0.003:
        items.append(EmergencyStop('test'))
    if rng.random() < 0.02:
        items.append(EpisodeStart(EPISODE, rng.choice(['policy', 'policy', 'teleop'])))
    if rng.random() < 0.005:
        items.append(EpisodeEnd(EPISODE, 'test'))
    return items


def random_latest(rng, world, old):
    teleop, deadman = old.teleop, old.deadman
    if rng.random() < 0.1:
        is_engaged = bool(rng.random() < 0.4)
        teleop = Teleop(
            world.time_s,
            is_engaged,
            random_vector(rng, 0.3),
            random_vector(rng, 1.0),
            rng.random(),
        )
    if rng.random() < 0.3:
        deadman = Deadman(world.time_s, bool(rng.random() < 0.98))
    publishers = 'two publishers' if rng.random() < 0.001 else ''
    return Latest(teleop, deadman, publishers)


def stretches(world):
    """The targets in runs of consecutive ticks; arming again begins a new one."""
    found, last = [], None
    for tick, target in world.targets:
        if last is None or tick != last + 1 or tick in world.armed_at:
            found.append([])
        found[-1].append(target)
        last = tick
    return found


def check_motion(targets, config):
    period_s = 1.0 / config.rate_hz
    places = np.array([t.pose.position_m for t in targets])
    turns = Rotation.from_quat([t.pose.quaternion_xyzw for t in targets])
    linear = np.array([t.linear_m_s for t in targets])
    angular = np.array([t.angular_rad_s for t in targets])
    assert np.isfinite(places).all() and np.isfinite(linear).all() and np.isfinite(angular).all()
    norms = np.linalg.norm([t.pose.quaternion_xyzw for t in targets], axis=1)
    assert np.abs(norms - 1.0).max() < 1e-9
    assert (places >= np.array(config.workspace_min_m) - 1e-6).all()
    assert (places <= np.array(config.workspace_max_m) + 1e-6).all()
    for speeds, limits, slack in (
        (linear, (config.max_speed_m_s, config.max_acceleration_m_s2, config.max_jerk_m_s3), 1e-6),
        # J' r' is left out of the angular acceleration (interpolation.py)
        (angular, (config.max_turn_rad_s, config.max_turn_rad_s2, config.max_turn_rad_s3), 0.05),
    ):
        change = speeds
        for limit in limits:
            assert np.linalg.norm(change, axis=1).max(initial=0.0) <= limit * (1.0 + slack)
            change = np.diff(change, axis=0) / period_s
    # and the poses really move as the velocities say
    moved = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert moved.max(initial=0.0) <= config.max_speed_m_s * period_s * (1.0 + 1e-6)
    if len(targets) > 1:
        turned = (turns[1:] * turns[:-1].inv()).magnitude()
        assert turned.max() <= config.max_turn_rad_s * period_s * (1.0 + 1e-6)


@pytest.mark.parametrize('seed', range(12))
def test_whatever_comes_in_every_target_is_finite_in_the_box_and_within_the_limits(seed):
    rng = np.random.default_rng(seed)
    world = World(
        frame=('base', 'hand')[seed % 2],
        cameras=('front',),
        deadman_timeout_s=(0.0, 0.3)[seed % 3 == 0],
        cone_rad=(0.0, 0.4)[seed % 4 == 0],
        max_tracking_m=0.0,
    )
    world.armed_at, replies, asked = set(), [], []
    world.ask('arm')
    for _ in range(600):
        if not world.guard.is_live and rng.random() < 0.2:
            was_live = False
            world.arm.trouble('ready')
            for kind in ('reset', 'recover', 'arm'):
                world.ask(kind)
            world.armed_at.add(world.ticks)
        items = random_items(rng, world, replies)
        asked += [item for item in items if isinstance(item, Step)]
        world.latest = random_latest(rng, world, world.latest)
        if rng.random() < 0.3:
            world.cameras[0].see(world.time_s, world.now().clock_ns, int(rng.integers(4)))
        if rng.random() < 0.004:
            world.arm.trouble(rng.choice(['reflex', 'stop', 'guide', 'silent', 'push']))
        was_live = world.guard.is_live
        world.tick(*items)
        if world.guard.is_live and not was_live:
            world.armed_at.add(world.ticks)
    world.tick(EpisodeStart('after', 'policy'))
    assert len(world.targets) > 100
    for targets in stretches(world):
        check_motion(targets, world.config)
    answered = [e.step for e in world.executed if e.step.source != 'teleop']
    assert sorted(map(id, answered)) == sorted(map(id, asked))  # every step once
    assert all(np.isfinite(e.delta.translation_m).all() for e in world.executed)


def test_large_rotations_go_the_short_way_and_never_wrap():
    """Two full turns about a slanted axis in steps of 0.1 rad, re-based at each."""
    axis = np.array([1.0, 2.0, -0.5]) / np.linalg.norm([1.0, 2.0, -0.5])
    mover = Interpolator(LIMITS, 0.01, HOME)
    goal, turned, last = HOME, 0.0, Rotation.from_quat(HOME.quaternion_xyzw)
    for tick in range(2600):
        if tick % 20 == 0 and tick < 20 * 126:
            goal = compose(goal, delta(turn=axis * 0.1), in_base_frame=True)
            mover.aim(goal, -FAR, FAR)
        target = mover.advance()
        now = Rotation.from_quat(target.pose.quaternion_xyzw)
        step = (now * last.inv()).as_rotvec()
        assert step @ axis >= -1e-9  # never back
        assert np.linalg.norm(step - axis * (step @ axis)) < 1e-3  # hardly aside
        turned, last = turned + step @ axis, now
    assert turned == pytest.approx(12.6, abs=0.01)
    _, left = difference(target.pose, goal, in_base_frame=True)
    assert np.linalg.norm(left) < 1e-9


def test_a_goal_half_a_turn_away_is_reached_with_the_speed_that_is_said():
    """While it still turns about another axis, where r' is far from omega."""
    mover = Interpolator(LIMITS, 0.01, HOME)
    mover.aim(compose(HOME, delta(turn=(0.8, 0.0, 0.0)), in_base_frame=True), -FAR, FAR)
    for _ in range(60):
        last = mover.advance()
    turn = np.array([0.0, np.pi - 0.01, 0.0])
    goal = compose(last.pose, delta(turn=turn), in_base_frame=True)
    mover.aim(goal, -FAR, FAR)
    worst = 0.0
    while not mover.is_at_rest:
        target = mover.advance()
        _, moved = difference(last.pose, target.pose, in_base_frame=True)
        said = (target.angular_rad_s + last.angular_rad_s) / 2
        worst, last = max(worst, np.linalg.norm(moved / 0.01 - said)), target
    assert worst < 0.005
    _, left = difference(last.pose, goal, in_base_frame=True)
    assert np.linalg.norm(left) < 1e-9


def test_turning_off_axis_in_flight_keeps_speed_and_acceleration_in_bounds():
    """New goals about other axes while it still turns: each plan begins with omega."""
    rng = np.random.default_rng(1)
    mover = Interpolator(LIMITS, 0.01, HOME)
    goal, speeds = HOME, []
    for tick in range(600):
        if tick % 8 == 0:
            goal = compose(goal, delta(turn=rng.normal(0.0, 0.1, 3)), in_base_frame=True)
            mover.aim(goal, -FAR, FAR)
        speeds.append(mover.advance().angular_rad_s)
    speeds = np.array(speeds)
    assert 0.3 < np.linalg.norm(speeds, axis=1).max() <= LIMITS.turn_rad_s * (1 + 1e-9)
    change = np.linalg.norm(np.diff(speeds, axis=0), axis=1) / 0.01
    assert change.max() <= LIMITS.turn_rad_s2 * 1.05


def test_braking_stops_before_the_goals_that_it_was_heading_for():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        mover, places = Interpolator(LIMITS, 0.01, HOME), [HOME.position_m]
        for _ in range(rng.integers(1, 5)):
            goal = compose(HOME, delta(*rng.uniform(-0.2, 0.2, 3)), in_base_frame=True)
            places.append(goal.position_m)
            mover.aim(goal, np.min(places, axis=0), np.max(places, axis=0))
            for _ in range(rng.integers(1, 40)):
                mover.advance()
        mover.brake()
        end = mover.end().position_m
        assert (end >= np.min(places, axis=0) - 1e-9).all()
        assert (end <= np.max(places, axis=0) + 1e-9).all()


@pytest.mark.parametrize('in_base_frame', [True, False])
def test_a_delta_and_its_difference_agree_in_both_frames(in_base_frame):
    rng = np.random.default_rng(0)
    for _ in range(50):
        start = Pose(rng.normal(size=3), Rotation.random(rng=rng).as_quat())
        command = delta(*rng.normal(0.0, 0.1, 3), rng.normal(0.0, 0.5, 3))
        moved, turned = difference(start, compose(start, command, in_base_frame), in_base_frame)
        np.testing.assert_allclose(moved, command.translation_m, atol=1e-12)
        np.testing.assert_allclose(turned, command.rotation_rotvec_rad, atol=1e-12)


def test_an_end_effector_frame_turns_the_translation_with_the_tool():
    """The tool looks down (x, -y, -z): one centimetre along its z lowers it."""
    motion = Motion(World().config, contract(frame='hand'))
    motion.seed(HOME)
    motion.step(delta(z=0.01), HOME)
    np.testing.assert_allclose(motion.goal.position_m - HOME.position_m, [0, 0, -0.01], atol=1e-12)


def test_cone_limits_the_tilt_and_leaves_the_spin():
    spin, tilt = Rotation.from_rotvec([0, 0, 2.0]), Rotation.from_rotvec([0.9, 0, 0])
    start = Rotation.from_quat(HOME.quaternion_xyzw)
    goal, found = limit_tilt(
        Pose(HOME.position_m, (tilt * start * spin).as_quat()), HOME.quaternion_xyzw, 0.5
    )
    now = Rotation.from_quat(goal.quaternion_xyzw)
    np.testing.assert_allclose(
        now.as_matrix(), (Rotation.from_rotvec([0.5, 0, 0]) * start * spin).as_matrix(), atol=1e-9
    )
    assert found[0].rule == 'cone'
    upside_down = Pose(HOME.position_m, (Rotation.from_rotvec([np.pi, 0, 0]) * start).as_quat())
    back, _ = limit_tilt(upside_down, HOME.quaternion_xyzw, 0.5)
    axis = Rotation.from_quat(back.quaternion_xyzw).apply([0, 0, 1])
    assert np.arccos(np.clip(-axis[2], -1, 1)) == pytest.approx(0.5, abs=1e-6)
