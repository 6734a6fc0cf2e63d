"""Which stages a task has, and tasks of several goals: chained templates, done in any order."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from scoring_trials import make_trial, record
from stage_trials import carried_trial, with_scene

from grape_episode.outcome import Outcome
from grape_trainer.scoring.cost import stage_costs
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import ObjectiveError, load_objective
from grape_trainer.scoring.scorer import score_bags
from grape_trainer.scoring.stage import Roles, StageError, segment_plan
from grape_trainer.scoring.stage_plan import keypoint_of, plan_for, templates_in
from grape_trainer.scoring.stage_templates import template_stages

KEYPOINTS = (
    'soup_1', 'cheese_1', 'basket_1', 'cabinet_1', 'cabinet_1_top_region', 'stove_1', 'pot_1',
    'gripper',
)  # fmt: skip
PLACES = {
    'soup_1': (0.5, -0.2, 0.05),
    'cheese_1': (0.4, -0.3, 0.05),
    'basket_1': (0.6, 0.2, 0.0),
}
BOTH = [['in', 'soup_1', 'basket_1_contain_region'], ['in', 'cheese_1', 'basket_1']]
TWICE = load_objective('completion+completion')


def info(instruction='', **environment):
    return replace(make_trial().info, instruction=instruction, environment=environment)


@pytest.mark.parametrize(
    ('goal', 'template', 'roles'),
    [
        ([['in', 'soup_1', 'basket_1_contain_region']], 'pick_place', [('soup_1', 'basket_1')]),
        ([['On', 'pot_1', 'stove_1_cook_region']], 'pick_place', [('pot_1', 'stove_1')]),
        ([['open', 'cabinet_1_top_region']], 'open_close', [('cabinet_1_top_region', '')]),
        ([['close', 'cabinet_1_bottom_region']], 'open_close', [('cabinet_1', '')]),
        (
            [['turnon', 'stove_1'], ['on', 'pot_1', 'stove_1_cook_region']],
            'turn_on+pick_place',
            [('stove_1', ''), ('pot_1', 'stove_1')],
        ),
        (BOTH, 'pick_place+pick_place', [('soup_1', 'basket_1'), ('cheese_1', 'basket_1')]),
    ],
)
def test_goals_in_liberos_form_become_templates(goal, template, roles):
    plan = plan_for(info('whatever it says', goal=goal), KEYPOINTS)
    assert plan.template == template
    found = [(link[0].roles.target, link[0].roles.receptacle) for link in plan.links]
    assert found == roles


@pytest.mark.parametrize(
    ('instruction', 'templates'),
    [
        ('pick up the alphabet soup and place it in the basket', ['pick_place']),
        ('pick up the black bowl on the stove and place it on the plate', ['pick_place']),
        ('put the wine bottle on top of the cabinet', ['pick_place']),
        ('open the middle drawer of the cabinet', ['open_close']),
        ('open the top drawer and put the bowl inside', ['open_close', 'pick_place']),
        ('turn on the stove and put the moka pot on it', ['turn_on', 'pick_place']),
        ('put the black bowl in the bottom drawer and close it', ['pick_place', 'open_close']),
        ('stack the green cube on the yellow cube', ['stack']),
        ('pick up the red cube and stack it on the blue cube', ['pick_place']),
        ('push the red button', ['push_button']),
        ('Knock over the bottle', ['knock_down']),
        ('push the can over', ['knock_down']),
        ('rotate the knob', ['turn_on']),
        ('wave', []),
    ],
)
def test_verbs_of_an_instruction_become_templates(instruction, templates):
    assert templates_in(instruction) == templates


def test_without_a_goal_the_instruction_and_the_declared_roles_say_the_plan():
    plan = plan_for(info('push the red button', target='stove_1'), KEYPOINTS)
    assert (plan.template, plan.reason) == ('push_button', 'instruction')
    assert plan.stages[0].roles == Roles('stove_1', '', ())
    roles = {'target': 'soup_1', 'receptacle': 'cheese_1', 'support': 'table'}
    stacked = plan_for(info('stack the soup on the cheese', roles=roles), KEYPOINTS)
    assert stacked.template == 'stack'
    assert stacked.stages[2].roles == Roles('soup_1', 'cheese_1', ('table',))


def test_what_cannot_be_planned_says_what_to_declare():
    with pytest.raises(StageError, match="which stages 'wave' has.*Name a template: knock_down"):
        plan_for(info('wave', target='soup_1'), KEYPOINTS)
    with pytest.raises(StageError, match='declares no target; it has: nothing'):
        plan_for(info('push the red button'), KEYPOINTS)
    with pytest.raises(StageError, match='turn_on.pick_place.*Declare a goal'):
        plan_for(info('turn on the stove and put the pot on it', target='stove_1'), KEYPOINTS)
    with pytest.raises(StageError, match='has no template; there are templates for: in, on'):
        plan_for(info(goal=[['upright', 'soup_1']]), KEYPOINTS)
    with pytest.raises(StageError, match="'goal' is 'soup'; expected a list"):
        plan_for(info(goal='soup'), KEYPOINTS)
    with pytest.raises(StageError, match='does not fit the goal.*pick_place.pick_place'):
        plan_for(info(goal=BOTH), KEYPOINTS, 'pick_place+turn_on')
    with pytest.raises(StageError, match="no template 'juggle'; there are: pick_place"):
        plan_for(info(goal=BOTH), KEYPOINTS, 'juggle')


def test_a_person_may_name_another_template_than_the_goal_says():
    declared = {'goal': BOTH, 'target': 'cheese_1', 'receptacle': 'basket_1'}
    plan = plan_for(info(**declared), KEYPOINTS, 'pick_place')
    assert [item.roles.target for item in plan.stages] == ['cheese_1'] * 3
    turned = plan_for(info(goal=[['turnon', 'stove_1']], target='pot_1'), KEYPOINTS, 'push_button')
    assert turned.template == 'push_button'
    assert turned.stages[0].roles.target == 'pot_1'


def test_a_part_that_the_environment_names_comes_before_the_body():
    parts = {'parts': {'stove_1': 'stove_1_knob'}}
    assert keypoint_of('stove_1', parts, KEYPOINTS) == 'stove_1_knob'
    assert keypoint_of('stove_1', {}, KEYPOINTS) == 'stove_1'
    assert keypoint_of('cabinet_1_top_region', {}, KEYPOINTS) == 'cabinet_1_top_region'
    assert keypoint_of('cabinet_1_middle_region', {}, KEYPOINTS) == 'cabinet_1'
    assert keypoint_of('table_region', {}, KEYPOINTS) == 'table_region'


def test_a_chain_numbers_and_names_its_stages_on():
    stages = template_stages('turn_on+pick_place+pick_place')
    assert [stage.number for stage in stages] == list(range(1, 9))
    assert [stage.name for stage in stages] == [
        'approach', 'turn', 'grasp_2', 'transport_2', 'place_2', 'grasp_3', 'transport_3',
        'place_3',
    ]  # fmt: skip
    assert 'stage8_target_constraint1' in stages[-1].constraints
    assert all(n.startswith(f'stage{s.number}_') for s in stages for n in s.constraints)


def test_objectives_chain_and_those_that_differ_do_not():
    chained = load_objective('turn_on+completion')
    assert chained.template == 'turn_on+pick_place'
    assert list(chained.stages) == ['approach', 'turn', 'grasp_2', 'transport_2', 'place_2']
    alone = load_objective('completion').stages['place']
    assert chained.stages['place_2'] == {
        name.replace('stage3', 'stage5'): term for name, term in alone.items()
    }
    assert chained.motion == load_objective('turn_on').motion
    assert load_objective('completion').config_sha256 != TWICE.config_sha256
    with pytest.raises(ObjectiveError, match="no objective 'nope'"):
        load_objective('completion+nope')


def test_objectives_with_other_thresholds_do_not_chain(tmp_path):
    content = load_objective('turn_on').model_dump()
    content['segmentation']['near_m'] = 0.2
    path = tmp_path / 'mine.yaml'
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ObjectiveError, match="differ in their section 'segmentation'"):
        load_objective(f'completion+{path}')


def two_goals(*carries, seconds=1.0):
    trial, tracks, grasped = carried_trial(carries, PLACES, seconds=seconds)
    return with_scene(trial, tracks, grasped=grasped, goal=BOTH)


def cut(trial):
    track = track_from_scene(trial.scene)
    plan = plan_for(trial.info, track.names, TWICE.template)
    return segment_plan(trial, track, plan, TWICE.segmentation, TWICE.motion)


def stages(trial):
    return [(s.stage.name, s.start, s.stop, s.completed) for s in cut(trial).spans]


def costs(trial):
    found = stage_costs(trial, track_from_scene(trial.scene), cut(trial), TWICE)
    return {cost.stage: cost.cost for cost in found}


def test_two_objects_are_carried_one_after_the_other():
    found = stages(two_goals(('soup_1', 'basket_1'), ('cheese_1', 'basket_1')))
    assert [name for name, *_ in found] == [
        'grasp', 'transport', 'place', 'grasp_2', 'transport_2', 'place_2',
    ]  # fmt: skip
    assert all(completed for *_, completed in found)
    # Held from 41 on; let go after step 100, which begins the second link; again 120 later.
    assert [start for _, start, _, _ in found][:1] == [0]
    assert found[0][2] == 41 and found[3][1] == 101 and found[3][2] == 161
    assert found[-1][2] == 240


def test_goals_reached_in_the_other_order_are_cut_in_that_order():
    there = two_goals(('soup_1', 'basket_1'), ('cheese_1', 'basket_1'))
    back = two_goals(('cheese_1', 'basket_1'), ('soup_1', 'basket_1'))
    found = stages(back)
    assert [name for name, *_ in found] == [
        'grasp_2', 'transport_2', 'place_2', 'grasp', 'transport', 'place',
    ]  # fmt: skip
    assert all(completed for *_, completed in found)
    assert sum(costs(back).values()) == pytest.approx(sum(costs(there).values()))


def test_a_goal_that_was_never_tried_costs_the_worst_after_the_one_that_was():
    found = stages(two_goals(('cheese_1', 'basket_1')))
    assert found[2][3] and found[3][0] == 'grasp'
    assert found[4:] == [('transport', None, None, False), ('place', None, None, False)]
    cost = costs(two_goals(('cheese_1', 'basket_1')))
    assert (cost['transport'], cost['place']) == (1.5, 1.25)
    assert cost['grasp_2'] == cost['transport_2'] == 0


def test_a_dropped_first_object_does_not_hide_that_the_second_arrived():
    trial = two_goals(('soup_1', (0.55, -0.1, 0.0)), ('cheese_1', 'basket_1'))
    found = {name: completed for name, _, _, completed in stages(trial)}
    assert [found[name] for name in ('grasp_2', 'transport_2', 'place_2')] == [True] * 3
    assert not found['place']
    assert (cut(trial).grasps, cut(trial).drops) == (2, 1)


def test_touching_the_other_goals_object_is_no_collision():
    """The bridge knows one target: to it, the second one is something not to be touched."""
    trial = two_goals(('soup_1', 'basket_1'), ('cheese_1', 'basket_1'))
    safe = load_objective('safety+safety')
    track = track_from_scene(trial.scene)
    collisions = [()] * 241
    collisions[161:220] = [('cheese_1|finger_left',)] * 59
    touched = replace(trial, scene=replace(trial.scene, collisions=tuple(collisions)))
    bumped = replace(trial, scene=replace(trial.scene, collisions=(('milk_1|robot',),) * 241))
    found = [
        sum(c.cost for c in stage_costs(t, track, cut(t), safe)) for t in (trial, touched, bumped)
    ]
    assert found[0] == found[1] < found[2]


def test_a_chain_is_scored_into_one_row_with_a_column_a_stage(tmp_path):
    trial = two_goals(('soup_1', 'basket_1'), seconds=0.5)
    trial = replace(trial, info=replace(trial.info, outcome=Outcome.FAILURE))
    report = score_bags([record(tmp_path, trial)], TWICE, tmp_path / 'scores.csv')
    row = report.rows[0]
    assert row.status == 'scored', row.detail
    assert list(row.stage_costs) == [s.stage.name for s in cut(trial).spans]
    header = (tmp_path / 'scores.csv').read_text().split('\n')[0]
    assert 'cost_grasp,cost_transport,cost_place,cost_grasp_2' in header
    assert np.isclose(row.log_r_ext, -sum(costs(trial).values()), atol=1e-3)
