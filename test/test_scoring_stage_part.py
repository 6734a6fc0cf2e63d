"""Opening is not closing: the joints of parts, told from keypoints, with numbers by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scoring_trials import make_trial
from stage_trials import ACT, AWAY, KNOB_M, REACH, acted_trial

from grape_trainer.scoring.cost import stage_costs, states_of
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.stage import StageError, segment_plan
from grape_trainer.scoring.stage_part import Joint, aim_of, declared_joint
from grape_trainer.scoring.stage_plan import plan_for
from grape_trainer.scoring.stage_proposal import proposal_of_plan

SHUT = {'kind': 'slide', 'axis': (0, -2, 0), 'value': 0.0, 'reached': {'open': 0.14, 'close': 0}}
DRAWER = Joint.model_validate(SHUT)
# A knob about z, as LIBERO's stove: on from 0.5 rad.
KNOB = {
    'kind': 'hinge', 'axis': (1, 0, 0), 'pivot_m': KNOB_M, 'value': 0.0,
    'reached': {'turnon': 0.5, 'turnoff': 0.0},
}  # fmt: skip


def test_a_slides_value_is_the_way_along_its_axis():
    path_m = np.array([(0.5, 0.2, 0.1), (0.5, 0.1, 0.1), (0.6, 0.15, 0.3)])
    np.testing.assert_allclose(DRAWER.values(path_m, None), (0.0, 0.1, 0.05))


def test_a_hinges_value_is_told_from_the_handles_path_and_from_an_orientation():
    """A door with a handle 0.2 m from its pivot, turned by -90 degrees, and past 180."""
    door = Joint.model_validate(KNOB | {'axis': (0, 0, 1), 'pivot_m': (1, 1, 0), 'value': -0.3})
    angles = np.array([0.0, -np.pi / 2, -0.9 * np.pi, -1.1 * np.pi])
    handle_m = np.array([(1 + 0.2 * np.cos(a), 1 + 0.2 * np.sin(a), 0.5) for a in angles])
    np.testing.assert_allclose(door.values(handle_m, None), -0.3 + angles)
    on_axis_m = np.tile((1.0, 1.0, 0.5), (4, 1))
    turn = Rotation.from_rotvec(angles[:, None] * (0, 0, 1))
    np.testing.assert_allclose(door.values(on_axis_m, turn), -0.3 + angles)
    with pytest.raises(StageError, match='on the axis of a hinge needs its orientation'):
        door.values(on_axis_m, None)


@pytest.mark.parametrize(
    ('aim', 'values', 'done', 'share'),
    [
        ('open', (0, 0.07, 0.15, 0.10), (0, 0, 1, 0), (0, 0.5, 1, 0.1 / 0.14)),
        ('close', (0.10, 0.15, 0.05, -0.001), (0, 0, 0, 1), (0, 0, 0.5, 1)),
        # Open from the start: nothing is done until it was shut by half and opened again.
        ('open', (0.15, 0.15, 0.16, 0.15), (0, 0, 0, 0), (0, 0, 0, 0)),
        ('open', (0.15, 0.13, 0.15, 0.15), (0, 0, 0, 0), (0, 0, 0, 0)),
        ('open', (0.15, 0.06, 0.15, 0.15), (0, 0, 1, 1), (0, 0, 1, 1)),
        # Half open is not open: the rest of the way is what counts.
        ('open', (0.07, 0.105, 0.141, 0.141), (0, 0, 1, 1), (0, 0.5, 1, 1)),
        # Exactly at the value of the goal is not beyond it.
        ('close', (0.0, 0.0, 0.0, 0.0), (0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_a_goal_has_a_direction_and_is_not_reached_from_the_start(aim, values, done, share):
    values = np.array(values, float)
    np.testing.assert_array_equal(DRAWER.done(values, aim), np.array(done, bool))
    np.testing.assert_allclose(DRAWER.share(values, aim), share)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'axis': (0, 0, 0)}, 'expected a direction'),
        ({'reached': {'open': 0.14}}, "'open' needs 'close' with another value"),
        ({'reached': {'open': 0.1, 'close': 0.1}}, "'open' needs 'close' with another value"),
        ({'reached': {'ajar': 0.1}}, "reached names 'ajar'; expected: open, close, turnon"),
        ({'kind': 'hinge'}, 'a hinge needs pivot_m'),
        ({'kind': 'screw'}, "kind: Input should be 'slide' or 'hinge'"),
        ({'speed': 1.0}, 'speed: Extra inputs are not permitted'),
    ],
)
def test_a_joint_that_cannot_be_used_names_the_part_and_the_place(change, text):
    with pytest.raises(StageError, match=f"declares for 'drawer_1' cannot be used: .*{text}"):
        declared_joint({'joints': {'drawer_1': SHUT | change}}, 'drawer_1')
    assert declared_joint({}, 'drawer_1') is None


@pytest.mark.parametrize(
    ('instruction', 'aim'),
    [
        ('open the middle drawer of the cabinet', 'open'),
        ('close the open drawer', 'close'),
        ('Shut the microwave', 'close'),
        ('turn on the stove', 'turnon'),
        ('switch the lamp off', 'turnoff'),
        ('open the closed door', 'open'),
        ('rotate the knob', ''),
    ],
)
def test_the_verb_says_the_direction(instruction, aim):
    assert aim_of(instruction) == aim


def moved(said, value, travel_m, **declared):
    """Return a trial whose drawer 'knob_1' begins at a value and moves by travel_m along y."""
    joint = SHUT | {'axis': (0, 1, 0), 'value': value}
    return acted_trial(
        [(REACH, 0), (ACT, 1), (AWAY, 1)],
        travel_m=(0, travel_m, 0),
        said=said,
        **({'target': 'knob_1', 'joints': {'knob_1': joint}} | declared),
    )


def ends_and_completed(trial, objective='open_close'):
    objective = load_objective(objective)
    track = track_from_scene(trial.scene)
    plan = plan_for(trial.info, track.names, objective.template)
    cut = segment_plan(trial, track, plan, objective.segmentation, objective.motion)
    costs = [cost.cost for cost in stage_costs(trial, track, cut, objective)]
    return cut.spans[1].stage.ends, cut.spans[1].completed, costs[1]


@pytest.mark.parametrize(
    ('said', 'value', 'travel_m', 'ends', 'done', 'cost'),
    [
        ('open the drawer', 0.0, 0.15, 'opened', True, 0.0),
        ('open the drawer', 0.0, -0.15, 'opened', False, 1.0),
        ('open the drawer', 0.15, 0.0, 'opened', False, 1.0),
        ('open the drawer', 0.0, 0.07, 'opened', False, 0.5),
        ('close the drawer', 0.15, -0.16, 'closed', True, 0.0),
        ('close the drawer', 0.15, 0.16, 'closed', False, 1.0),
        ('move the drawer', 0.0, -0.15, 'moved', True, 0.0),
    ],
)
def test_a_real_robots_drawer_is_judged_by_the_direction_of_the_verb(
    said, value, travel_m, ends, done, cost
):
    found = ends_and_completed(moved(said, value, travel_m))
    assert found == (ends, done, pytest.approx(cost))


def test_without_a_declared_joint_the_trial_is_cut_as_before():
    for goal in ('open', 'close'):
        trial = moved('', 0.0, 0.15, joints={}, goal=[[goal, 'knob_1']])
        assert ends_and_completed(trial) == ('moved', True, 0.0)


def test_turning_off_is_not_turning_on():
    for goal, turn_rad, done in (('turnon', 0.8, True), ('turnon', -0.8, False)):
        trial = acted_trial(
            [(REACH, 0), (ACT, 1)],
            turn_rad=turn_rad,
            goal=[[goal, 'knob_1']],
            joints={'knob_1': KNOB},
        )
        assert ends_and_completed(trial, 'turn_on')[:2] == ('turned_on', done)


def info(instruction='', **environment):
    return replace(make_trial().info, instruction=instruction, environment=environment)


def test_what_a_drawer_is_filled_with_waits_until_it_is_open():
    """The drawer's handle is acted on, its inside is where the bowl goes; both have one name."""
    names = ('bowl_1', 'cabinet_1', 'cabinet_1_top', 'cabinet_1_top_region')
    declared = {
        'goal': [['in', 'bowl_1', 'cabinet_1_top_region']],
        'parts': {'cabinet_1_top_region': 'cabinet_1_top'},
        'joints': {'cabinet_1_top': SHUT},
    }
    plan = plan_for(info(**declared), names)
    assert plan.template == 'open_close+pick_place'
    assert [stage.stage.ends for stage in plan.stages][:2] == ['reached', 'opened']
    roles = [(link[0].roles.target, link[0].roles.receptacle) for link in plan.links]
    assert roles == [('cabinet_1_top', ''), ('bowl_1', 'cabinet_1_top_region')]
    declared['joints'] = {'cabinet_1_top': SHUT | {'value': 0.15}}
    assert plan_for(info(**declared), names).template == 'pick_place'


def test_a_goal_that_holds_from_the_start_is_no_stage_unless_it_is_the_only_one():
    names = ('pot_1', 'stove_1', 'stove_1_knob')
    on = {'parts': {'stove_1': 'stove_1_knob'}, 'joints': {'stove_1_knob': KNOB | {'value': 1.4}}}
    goal = [['on', 'pot_1', 'stove_1'], ['turnon', 'stove_1']]
    assert plan_for(info(goal=goal, **on), names).template == 'pick_place'
    assert plan_for(info(goal=goal[1:], **on), names).template == 'turn_on'
    on['joints'] = {'stove_1_knob': KNOB}
    assert plan_for(info(goal=goal, **on), names).template == 'pick_place+turn_on'


def test_stages_with_a_direction_can_be_written_down_and_cut_by():
    trial = moved('open the drawer', 0.0, 0.15)
    objective, track = load_objective('open_close'), track_from_scene(trial.scene)
    plan = plan_for(trial.info, track.names)
    written = proposal_of_plan(plan, 'task', 'open', track.names, 'test')
    assert [stage.ends for stage in written.stages] == ['reached', 'opened']
    again = written.plan(track.names)
    settings = objective.segmentation, objective.motion
    assert segment_plan(trial, track, again, *settings).spans[1].completed
    bare = replace(trial, info=info(target='knob_1'))
    with pytest.raises(StageError, match="declares no joint of 'knob_1'.*or end the stage with"):
        segment_plan(bare, track, again, *settings)


def test_parts_and_regions_are_no_obstacles_where_the_environment_says_so():
    trial = moved('open the drawer', 0.0, 0.15)
    extra_m = np.concatenate([trial.scene.positions_m] * 3, axis=1)
    quaternions = np.concatenate([trial.scene.quaternions_xyzw] * 3, axis=1)
    names = ('knob_1', 'knob_1_region', 'milk_1')
    scene = replace(trial.scene, names=names, positions_m=extra_m, quaternions_xyzw=quaternions)
    trial = replace(trial, scene=scene)
    objective, track = load_objective('open_close'), track_from_scene(scene)

    def obstacles(environment):
        found = replace(trial, info=replace(trial.info, environment=environment))
        plan = plan_for(found.info, track.names)
        cut = segment_plan(found, track, plan, objective.segmentation, objective.motion)
        return next(states_of(found, track, cut))[1].keypoints.shape[1] - 2

    declared = trial.info.environment
    assert obstacles(declared) == 2
    assert obstacles(declared | {'not_obstacles': ['knob_1_region']}) == 1
