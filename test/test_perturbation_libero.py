"""LIBERO's scenes perturbed: really changed, the same every time, recorded."""

import numpy as np
import pytest
from graph_run import grape, write_contract

from grape_bringup.manifest import read_manifest
from grape_episode.bag import read_episode
from sim_bridge.environment import SimulatorError
from sim_bridge.perturbation import PerturbationError

pytestmark = pytest.mark.sim

TASK = 'libero_object/0'
TARGET, RECEPTACLE = 'alphabet_soup_1', 'basket_1'
# Everything at once; the target jumps before the fourth step.
COMPOSED = (
    f'{TASK}+layout_shift:seed=2+obstacle:kind=wine_bottle,mass_kg=0.5+distractors:count=1'
    '+robot_pose+reposition:step=3+lighting:low=0.4,high=0.4+table_texture+image_noise'
    '+instruction_template'
)
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture(scope='module')
def seen():
    """One environment with a camera."""
    from sim_bridge.libero import LiberoEnvironment

    env = LiberoEnvironment(96, 'fast')
    yield env
    env.close()


@pytest.fixture(scope='module')
def plain(seen):
    """The unperturbed first observations: initial state -> Observation."""
    return {state: seen.reset(TASK, state, 0) for state in (0, 1)}


@pytest.fixture(scope='module')
def composed(seen, plain):
    """Two runs of everything at once, with another initial state between: lists of Observation."""

    def run(state):
        track = [seen.reset(COMPOSED, state, 0)]
        return track + [seen.step(STILL) for _ in range(5)]

    return run(0), run(1), run(0), seen.task_info()


def place(observation, name):
    return observation.scene.positions_m[observation.scene.names.index(name)]


def moved_m(before, after, name):
    return np.linalg.norm((place(after, name) - place(before, name))[:2])


def test_the_same_request_gives_the_same_observations_bit_for_bit(composed):
    first, other, again, _ = composed
    for one, two in zip(first, again, strict=True):
        for field in ('joint_positions', 'ee_position_m'):
            assert np.array_equal(getattr(one, field), getattr(two, field))
        assert np.array_equal(one.scene.positions_m, two.scene.positions_m)
        assert np.array_equal(one.images['agentview'], two.images['agentview'])
        assert one.scene.contacts == two.scene.contacts
    assert not np.allclose(first[0].scene.positions_m, other[0].scene.positions_m, atol=0.01)


def test_target_and_receptacle_are_moved_by_the_asked_for_range_and_nothing_else(plain, composed):
    start = composed[0][0]
    for name in (TARGET, RECEPTACLE):
        assert 0.045 < moved_m(plain[0], start, name) < 0.125, name
    for name in ('milk_1', 'butter_1', 'salad_dressing_1'):
        assert moved_m(plain[0], start, name) < 0.005, name
    for name in start.scene.names:  # all stand on the floor still
        if name in plain[0].scene.names and name != 'gripper':
            assert abs(place(start, name)[2] - place(plain[0], name)[2]) < 0.005, name


def test_added_objects_stand_beside_and_away_from_the_path(composed):
    from sim_bridge.perturbation_layout import distance_to_path

    for track in composed[:2]:
        start = track[0]
        path = [place(start, name)[:2] for name in (TARGET, RECEPTACLE)]
        (distractor,) = (name for name in start.scene.names if name.startswith('distractor_'))
        obstacle = place(start, 'obstacle_wine_bottle')
        assert distance_to_path(obstacle[:2], *path) < 0.06
        assert distance_to_path(place(start, distractor)[:2], *path) > 0.10
        assert obstacle[2] == pytest.approx(0.157 / 2, abs=0.01)  # half its height: it stands
        assert start.scene.collisions == ()
        touching = [pair for pair in start.scene.contacts if 'obstacle' in pair]
        assert touching == ['floor|obstacle_wine_bottle']


def test_the_target_jumps_before_the_asked_for_step(composed):
    track = composed[0]
    jumps = [moved_m(a, b, TARGET) for a, b in zip(track, track[1:], strict=False)]
    assert [jump > 0.045 for jump in jumps] == [False, False, False, True, False]
    assert max(jumps) < 0.125


def test_pictures_and_words_change_and_the_goal_does_not(seen, plain, composed):
    first, other, _, info = composed
    assert 'pick up the alphabet soup and place it in the basket' in info.instruction
    assert info.instruction != 'pick up the alphabet soup and place it in the basket'
    assert (info.target, info.receptacle[:8]) == (TARGET, RECEPTACLE)
    assert [one['name'] for one in info.perturbations][:2] == ['layout_shift', 'obstacle']
    assert info.perturbations[0]['seed'] == 2
    clean = plain[0].images['agentview'].astype(float)
    assert np.abs(first[0].images['agentview'] - clean).mean() > 15
    still = first[1].images['agentview'].astype(float)
    assert np.std(still - first[0].images['agentview']) > 12  # noise: another in every step
    joints = np.abs(first[0].joint_positions - plain[0].joint_positions)[:7]
    assert 0.01 < joints.max() < 0.3


def test_a_hand_that_runs_into_the_obstacle_collides(seen, composed):
    """Straight at its middle, as no careful policy would."""
    observation, collisions = seen.reset(COMPOSED, 0, 0), set()
    for _ in range(40):
        away_m = place(observation, 'obstacle_wine_bottle') - observation.ee_position_m
        observation = seen.step(np.array([*np.clip(away_m / 0.05, -1, 1), 0, 0, 0, 0.0]))
        collisions.update(observation.scene.collisions)
    assert any('obstacle_wine_bottle' in pair for pair in collisions)


def test_nothing_of_a_perturbed_scene_is_left_in_the_next_one(seen, composed):
    """They share a simulator where no object was added."""
    before = seen.reset(TASK, 0, 0)
    simulation = seen.simulation
    seen.reset(f'{TASK}+robot_pose+lighting+table_texture:texture=rustic_floor', 0, 0)
    assert seen.simulation is simulation
    again = seen.reset(TASK, 0, 0)
    assert np.array_equal(again.images['agentview'], before.images['agentview'])
    assert np.array_equal(again.scene.positions_m, before.scene.positions_m)


def test_what_cannot_be_arranged_is_an_error_that_names_it(seen, composed):
    with pytest.raises(SimulatorError, match=r'initial state 0 of .* no room for'):
        seen.reset(f'{TASK}+layout_shift:objects=together,min_m=0.5,max_m=0.5', 0, 0)
    with pytest.raises(PerturbationError, match='expected texture=any.rustic_floor'):
        seen.reset(f'{TASK}+table_texture:texture=lava', 0, 0)


def test_perturbations_go_from_the_command_line_into_bag_and_manifest(tmp_path):
    pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')
    common = (
        '--task', TASK, '--init-states', '1', '--rendering', 'fast', '--max-steps', '3',
        '--workers', '1', '--contract', write_contract(tmp_path / 'contract.yaml'),
    )  # fmt: skip
    out = tmp_path / 'bags'
    refused = grape('demos', *common, '--out', out, '--perturb', 'fog')
    assert refused.returncode != 0 and 'there are: layout_shift, obstacle' in refused.stderr
    done = grape(
        'demos', *common, '--out', out, '--perturb', 'obstacle:seed=4', '--perturb', 'layout_shift'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record, *_ = read_manifest(out)
    assert record.task == f'{TASK}+layout_shift+obstacle:seed=4' == record.asked['task']
    episode = read_episode(out / record.bag, images=False)
    assert episode.info.task == record.task
    told = episode.info.environment['perturbations']
    assert [(one['name'], one['seed']) for one in told] == [('layout_shift', 0), ('obstacle', 4)]
    assert told[1]['parameters']['aside_m'] == 0.04
    assert any(name.startswith('obstacle_') for name in episode.scene.names)
