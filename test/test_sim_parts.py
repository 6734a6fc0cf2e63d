"""Drawers, doors and knobs of LIBERO as keypoints: they move with the part, open is not shut.

The joints are driven through MuJoCo's own kinematics, and a made-up hand follows the keypoint.
LIBERO's predicates judge every state; the recorded success stays False, so that no stage can end
by it.
"""

import json
from dataclasses import asdict, replace

import mujoco
import numpy as np
import pytest
from scoring_trials import make_trial

from grape_episode.episode import Scene
from grape_trainer.scoring.cost import states_of
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.stage import segment_plan
from grape_trainer.scoring.stage_plan import plan_for

pytestmark = pytest.mark.sim

SETTINGS = load_objective('turn_on')
REACH_STATES = 20  # the hand comes in these from where it is to the part
HOME = ('open', 'wooden_cabinet_1_middle_region')


@pytest.fixture(scope='module')
def libero():
    """An environment that renders nothing."""
    from sim_bridge.libero import LiberoEnvironment

    env = LiberoEnvironment(None)
    yield env
    env.close()


def set_joint(env, part, value):
    model, data = env.scene.model, env.scene.data
    data.qpos[model.jnt_qposadr[part.joint]] = value
    mujoco.mj_forward(model, data)


def environment_of(env, **changes):
    """Return what the bridge declares at START, after its way through JSON."""
    return json.loads(json.dumps(asdict(env.task_info()))) | changes


def drive(env, goal, values):
    """Return a trial that moves the first part through values, and LIBERO's verdict of `goal`."""
    part, predicate = env.scene.parts[0], list(goal)
    values = [*[values[0]] * REACH_STATES, *values]
    set_joint(env, part, values[0])
    env.scene.begin()  # the episode begins with the joint as it now is
    snapshots, verdicts = [], []
    for value in values:
        set_joint(env, part, value)
        snapshots.append(env.scene.snapshot(1.0, success=False))
        verdicts.append(env.simulation.env._eval_predicate(predicate))
    names = snapshots[0].names
    part_m, gripper_m = (
        np.array([s.positions_m[names.index(name)] for s in snapshots])
        for name in (part.point.name, 'gripper')
    )
    come = np.minimum(np.arange(len(values)) / (REACH_STATES - 1), 1.0)[:, None]
    hand_m = (1 - come) * gripper_m + come * part_m
    opening = np.ones(len(values) - 1)
    return trial_of(env, snapshots, hand_m, opening, goal=[predicate]), np.array(verdicts)


def trial_of(env, snapshots, hand_m, opening, **changes):
    """Return snapshots as an episode that was recorded without LIBERO's verdict."""
    made, info = make_trial(), env.task_info()
    environment = environment_of(env, **changes)
    return replace(
        made,
        info=replace(made.info, instruction=info.instruction, environment=environment),
        scene=Scene(
            names=snapshots[0].names,
            positions_m=np.array([s.positions_m for s in snapshots]),
            quaternions_xyzw=np.array([s.quaternions_xyzw for s in snapshots]),
            gripper_opening=np.array([s.gripper_opening for s in snapshots]),
            grasped=tuple(s.grasped for s in snapshots),
            contacts=tuple(s.contacts for s in snapshots),
            collisions=tuple(s.collisions for s in snapshots),
            success=np.zeros(len(snapshots), bool),
            origin='privileged',
        ),
        ee_position_m=np.array(hand_m),
        gripper_command=np.array(opening),
    )


def cut(trial):
    track = track_from_scene(trial.scene)
    plan = plan_for(trial.info, track.names)
    return segment_plan(trial, track, plan, SETTINGS.segmentation, SETTINGS.motion)


def assert_cut_as_libero_says(trial, verdicts, ends):
    found = cut(trial)
    approach, act = found.spans
    assert approach.completed and approach.stop == act.start
    assert approach.stop < np.argmax(verdicts)
    assert act.stage.ends == ends
    assert act.completed == bool(verdicts[-1])
    np.testing.assert_array_equal(found.progress[1] >= 1.0, verdicts)


def keypoint(env, name):
    snapshot = env.scene.snapshot(1.0, False)
    return snapshot.positions_m[snapshot.names.index(name)]


def test_a_drawers_keypoint_is_its_handle_and_slides_with_it(libero):
    """The wooden cabinet stands at (0.70, -0.23) and opens towards +y of the base."""
    libero.reset('libero_goal/0', 0, 0)
    (part,) = libero.scene.parts
    handle_m = keypoint(libero, 'wooden_cabinet_1_cabinet_middle')
    np.testing.assert_allclose(handle_m, (0.702, -0.132, 0.103), atol=1e-3)
    set_joint(libero, part, -0.1)
    moved_m = keypoint(libero, 'wooden_cabinet_1_cabinet_middle') - handle_m
    np.testing.assert_allclose(moved_m, (0.0, 0.1, 0.0), atol=1e-9)
    info = environment_of(libero)
    assert info['parts'] == {HOME[1]: 'wooden_cabinet_1_cabinet_middle'}
    assert info['not_obstacles'] == ['wooden_cabinet_1_cabinet_middle', 'wooden_cabinet_1']
    joint = info['joints']['wooden_cabinet_1_cabinet_middle']
    assert (joint['kind'], joint['pivot_m'], joint['value']) == ('slide', None, 0.0)
    assert joint['reached'] == {'open': -0.14, 'close': 0.0}
    np.testing.assert_allclose(joint['axis'], (0, -1, 0), atol=1e-9)


def test_opening_the_drawer_is_told_from_shutting_it_and_from_a_drawer_that_was_open(libero):
    libero.reset('libero_goal/0', 0, 0)
    there, back = np.linspace(-0.001, -0.157, 32), np.linspace(-0.157, 0.0083, 32)
    shut = ('close', HOME[1])
    for goal, values, ends, done in (
        (HOME, there, 'opened', True),
        (HOME, [*there, *back], 'opened', False),
        (shut, back, 'closed', True),
        (shut, [*back, *there], 'closed', False),
    ):
        trial, verdicts = drive(libero, goal, values)
        assert verdicts.any() and bool(verdicts[-1]) == done
        assert_cut_as_libero_says(trial, verdicts, ends)
    for values in (there[-1:].repeat(10), np.linspace(-0.15, -0.16, 10)):
        trial, verdicts = drive(libero, HOME, values)
        assert verdicts.all() and not cut(trial).spans[1].completed
        assert not cut(trial).progress[1].any()
    trial, _ = drive(libero, HOME, [*back, *there])
    assert cut(trial).spans[1].completed


def test_the_fixture_that_is_acted_on_is_no_obstacle_and_the_others_are(libero):
    libero.reset('libero_goal/0', 0, 0)
    trial, _ = drive(libero, HOME, np.linspace(0.0, -0.155, 10))
    track = track_from_scene(trial.scene)
    _, states = next(states_of(trial, track, cut(trial)))
    # Bowl, cheese, bottle, plate, stove and rack.
    assert states.keypoints.shape[1] == 2 + 6


def test_turning_the_stove_on_is_told_from_turning_it_off(libero):
    libero.reset('libero_goal/7', 0, 0)
    info = environment_of(libero)
    assert info['parts'] == {'flat_stove_1': 'flat_stove_1_button'}
    on, off = np.linspace(0.0, 0.8, 33), np.linspace(0.8, -0.004, 33)
    for predicate, values, ends in (('turnon', on, 'turned_on'), ('turnoff', off, 'turned_off')):
        trial, verdicts = drive(libero, (predicate, 'flat_stove_1'), values)
        assert verdicts[-1] and not verdicts[0]
        assert_cut_as_libero_says(trial, verdicts, ends)
        wrong, verdicts = drive(libero, (predicate, 'flat_stove_1'), values[::-1])
        assert not verdicts[-1] and not cut(wrong).spans[1].completed


def test_the_expert_turns_the_stove_on_and_the_knob_says_when(libero):
    from sim_bridge.expert import Expert

    seen = [libero.reset('libero_goal/7', 20, 0)]
    expert, actions = Expert(libero), []
    while not seen[-1].scene.success and len(actions) < 200:
        actions.append(expert.action())
        seen.append(libero.step(actions[-1]))
    verdicts = np.array([o.scene.success for o in seen])
    hand_m, opening = [o.ee_position_m for o in seen], [a[6] for a in actions]
    trial = trial_of(libero, [o.scene for o in seen], hand_m, opening)
    assert verdicts[-1] and not any(trial.scene.collisions)
    assert_cut_as_libero_says(trial, verdicts, 'turned_on')
    # The fingers close on the knob before they turn it.
    assert not np.array(opening)[cut(trial).spans[0].stop :].all()


def test_a_microwaves_door_turns_its_handle_about_its_hinge(libero):
    """Opened farther, the handle goes 0.12 m: the undirected event would take it for shut."""
    libero.reset('libero_10/9', 0, 0)
    goal, name = ('close', 'microwave_1'), 'microwave_1_microdoorroot'
    (part,) = libero.scene.parts
    first_m = keypoint(libero, name)
    joint = libero.task_info().joints[name]
    arm_m = (first_m - joint.pivot_m)[:2]
    assert np.linalg.norm(arm_m) == pytest.approx(0.243, abs=2e-3)
    set_joint(libero, part, joint.value + np.pi / 2)
    turned_m = (keypoint(libero, name) - joint.pivot_m)[:2]
    np.testing.assert_allclose(turned_m, (-arm_m[1], arm_m[0]), atol=1e-9)
    shut, verdicts = drive(libero, goal, np.linspace(joint.value, 0.0, 40))
    assert verdicts[-1]
    assert_cut_as_libero_says(shut, verdicts, 'closed')
    wider, verdicts = drive(libero, goal, np.linspace(joint.value, -2.09, 40))
    assert not cut(wider).spans[1].completed
    undirected = replace(wider.info, environment=wider.info.environment | {'joints': {}})
    assert cut(replace(wider, info=undirected)).spans[1].completed


def test_a_drawer_that_is_filled_and_shut_has_a_handle_and_an_inside(libero):
    libero.reset('libero_10/3', 0, 0)
    info, names = environment_of(libero), libero.scene.snapshot(1.0, False).names
    plan = plan_for(replace(make_trial().info, environment=info), names)
    assert plan.template == 'open_close+pick_place'
    assert plan.links[0][1].stage.ends == 'closed'
    roles = [(link[0].roles.target, link[0].roles.receptacle) for link in plan.links]
    inside = 'white_cabinet_1_bottom_region'
    assert roles == [
        ('white_cabinet_1_cabinet_bottom', ''),
        ('akita_black_bowl_1', inside),
    ]
    before_m, (part,) = keypoint(libero, inside), libero.scene.parts
    set_joint(libero, part, libero.task_info().joints[part.point.name].value + 0.1)
    np.testing.assert_allclose(keypoint(libero, inside) - before_m, (0, 0.1, 0), atol=1e-9)
    trial, verdicts = drive(libero, ('close', inside), np.linspace(-0.146, 0.005, 30))
    assert_cut_as_libero_says(trial, verdicts, 'closed')
