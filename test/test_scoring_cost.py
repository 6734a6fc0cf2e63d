"""Costs against numbers worked out by hand; their normalisation; the objective files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scoring_trials import (
    BASKET_M,
    CARRY,
    CLOSE,
    LIFT,
    LOWER,
    REACH,
    RELEASE,
    SUCCESS,
    TARGET_M,
    Phase,
    make_trial,
)

from grape_trainer.scoring.cost import CostError, cost_program, stage_costs
from grape_trainer.scoring.cost_builtin import BUILTIN, Signals
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import ObjectiveError, load_objective
from grape_trainer.scoring.stage import PICK_PLACE, Roles, segment

ROLES = Roles('target_1', 'basket_1', ())
COMPLETION, SAFETY, EFFICIENCY = map(load_objective, ('completion', 'safety', 'efficiency'))
OBJECTIVES = (COMPLETION, SAFETY, EFFICIENCY)


def costs(trial, objective=COMPLETION):
    track = track_from_scene(trial.scene)
    cut = segment(trial, track, ROLES, objective.segmentation)
    return {c.stage: c for c in stage_costs(trial, track, cut, objective)}


def terms(trial, objective=COMPLETION):
    return {term.name: term for cost in costs(trial, objective).values() for term in cost.terms}


def constraint(name, end_effector, keypoints, **signals):
    count = len(end_effector)
    defaults = {
        'held': np.zeros(count, bool),
        'collided': np.zeros(count, bool),
        'time_s': np.arange(count) / 20.0,
        'geometry': COMPLETION.geometry,
    }
    values = [np.array(end_effector, float), np.array(keypoints, float)]
    return BUILTIN[name](*values, Signals(**defaults | signals))


def test_target_constraints_are_the_distances_of_the_appendix():
    end_effector = [(0, 0, 0), (0.3, 0, 0.4)]
    keypoints = [[(0, 0, 0.1), (0.3, 0.4, 0.2)]] * 2
    assert constraint('stage1_target_constraint1', end_effector, keypoints) == pytest.approx(
        [0.1, np.hypot(0.3, 0.3)]
    )
    assert constraint('stage2_target_constraint1', end_effector, keypoints) == pytest.approx(0.5)
    assert constraint('stage3_target_constraint1', end_effector, keypoints) == pytest.approx(
        np.sqrt(0.09 + 0.16 + 0.01)
    )


def test_clearance_missing_sums_over_obstacles_and_counts_the_held_target():
    # 0.04 m and 0.06 m away of 0.10 m: 0.06 + 0.04 are missing; held, the target is 0.01 away.
    keypoints = [[(0.05, 0, 0), (9, 9, 9), (0.04, 0, 0), (0, 0.06, 0)]] * 2
    missing = constraint(
        'stage2_collision_constraint1',
        [(0, 0, 0)] * 2,
        keypoints,
        held=np.array([False, True]),
    )
    assert missing == pytest.approx([0.06 + 0.04, 0.09 + 0.04])
    alone = [[(0.05, 0, 0), (9, 9, 9)]]
    assert constraint('stage1_collision_constraint2', [(0, 0, 0)], alone) == pytest.approx([0.0])


def test_approach_from_above_costs_only_below_the_margin():
    keypoints = [[(0, 0, 0.10), (0, 0, 0)]] * 3
    heights = [(0, 0, 0.10), (0, 0, 0.081), (0, 0, 0.079)]
    assert constraint('stage1_collision_constraint1', heights, keypoints).tolist() == [0, 0, 1]


def test_straight_path_has_no_detour_and_a_right_angle_has_one():
    goal = [[(0.3, 0.4, 0), (0, 0, 0)]] * 3
    straight = [(0, 0, 0), (0.15, 0.2, 0), (0.3, 0.4, 0)]
    angle = [(0, 0, 0), (0.3, 0, 0), (0.3, 0.4, 0)]
    assert constraint('stage1_path_constraint1', straight, goal) == pytest.approx(0.0)
    assert constraint('stage1_path_constraint1', angle, goal)[-1] == pytest.approx(0.7 / 0.5 - 1)


def test_delay_compares_with_the_straight_path_at_the_stated_speed():
    # 0.5 m at 0.2 m/s takes 2.5 s; here 5 s went by.
    goal = [[(0.3, 0.4, 0), (0, 0, 0)]] * 2
    delay = constraint(
        'stage1_path_constraint2', [(0, 0, 0), (0.3, 0.4, 0)], goal, time_s=np.array([0.0, 5.0])
    )
    assert delay == pytest.approx([0.0, 1.0])


def test_success_costs_only_how_its_target_rests():
    # The target's keypoint rests 0.04 m above the basket's: (0.04 - 0.02) / 0.20.
    found = [cost.cost for cost in costs(make_trial()).values()]
    assert found == pytest.approx([0.0, 0.0, 0.1])


def test_trial_that_never_grasps_costs_by_hand():
    # Stays 0.16 m short: (0.16 - 0.02) / 0.28 = 0.5 of weight 1, and the grasp term's 0.5.
    trial = make_trial((Phase(1.0, (0.50, -0.20, 0.05 + 0.16)),))
    found = costs(trial)
    assert found['grasp'].cost == pytest.approx(1.0)
    assert (found['transport'].cost, found['place'].cost) == (1.5, 1.25)  # the worst
    assert not found['transport'].reached
    assert found['transport'].cost == found['transport'].worst


def test_dropped_target_costs_by_hand():
    # Held in 40 of 60 states of the transport (states 41 .. 80 of 41 .. 100), ends 0.20616 m off.
    half = replace(CARRY, seconds=1.0, to_m=(0.55, 0.0, 0.30))
    trial = make_trial((REACH, CLOSE, LIFT, half, Phase(1.0, half.to_m, rest_m=(0.55, 0, 0.05))))
    off = np.hypot(0.05, 0.20)
    found = costs(trial)['transport']
    assert [term.raw for term in found.terms] == pytest.approx([off, 20 / 60])
    assert found.cost == pytest.approx((off - 0.08) / 0.32 + 0.5 * 20 / 60)


def test_third_stage_has_a_cost_of_its_own():
    """Fault G1: stage 3 can be reached, and what happens there counts."""
    beside = replace(RELEASE, rest_m=(0.60, 0.30, 0.04))
    found = costs(make_trial((*SUCCESS[:-1], beside)))
    assert found['place'].reached
    assert found['place'].cost == pytest.approx((np.hypot(0.10, 0.04) - 0.02) / 0.20)
    never_released = costs(make_trial(SUCCESS[:-1]))['place']
    assert never_released.cost == pytest.approx((0.06 - 0.02) / 0.20 + 0.25)


def test_costs_follow_the_keypoints_through_the_episode():
    """Fault G2: the same motion with a receptacle that moves away in the end costs more."""
    basket_m = np.tile(BASKET_M, (131, 1))
    basket_m[120:, 1] += 0.14
    moved = terms(make_trial(basket_m=basket_m))['stage3_target_constraint1']
    assert moved.raw == pytest.approx(np.hypot(0.14, 0.04))
    assert moved.cost == pytest.approx((np.hypot(0.14, 0.04) - 0.02) / 0.20)


@pytest.mark.parametrize('objective', OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize('phases', [SUCCESS, SUCCESS[:2], SUCCESS[:4]], ids=len)
def test_costs_do_not_depend_on_the_control_rate(objective, phases):
    """Fault G3: twice the steps of the same motion are not twice the cost."""
    slow = costs(make_trial(phases, rate_hz=20.0), objective)
    fast = costs(make_trial(phases, rate_hz=160.0), objective)
    for stage, cost in slow.items():
        # Boundaries fall on sampled states; half a step of the motion is the tolerance.
        assert fast[stage].cost == pytest.approx(cost.cost, abs=0.05)


def test_completion_and_safety_do_not_charge_for_waiting():
    """Fault G3: an episode that goes on is not worse for it; only efficiency asks for time."""
    waits = (REACH, Phase(10.0, TARGET_M), *SUCCESS[1:])
    for objective in (COMPLETION, SAFETY):
        short, long = costs(make_trial(), objective), costs(make_trial(waits), objective)
        assert [c.cost for c in long.values()] == pytest.approx([c.cost for c in short.values()])
    long = terms(make_trial(waits), EFFICIENCY)['stage1_path_constraint2']
    assert long.cost > terms(make_trial(), EFFICIENCY)['stage1_path_constraint2'].cost


def test_safety_charges_for_contacts_and_completion_does_not():
    bumps = tuple(replace(phase, collisions=('a|robot',)) for phase in (LIFT, CARRY))
    trial = make_trial((REACH, CLOSE, *bumps, LOWER, RELEASE))
    safe, unsafe = costs(make_trial(), SAFETY), costs(trial, SAFETY)
    assert unsafe['transport'].cost == pytest.approx(safe['transport'].cost + 1.0)
    assert costs(trial)['transport'].cost == costs(make_trial())['transport'].cost


def test_support_and_receptacle_are_no_obstacles():
    trial = make_trial((Phase(1.0, (0.80, -0.40, 0.06)),))  # at the obstacle
    track = track_from_scene(trial.scene)
    names = {}
    for support in ((), ('milk_1',)):
        roles = replace(ROLES, support=support)
        cut = segment(trial, track, roles, SAFETY.segmentation)
        grasp = stage_costs(trial, track, cut, SAFETY)[0]
        names[support] = {term.name: term.raw for term in grasp.terms}
    assert names[()]['stage1_collision_constraint2'] == pytest.approx(0.09)
    assert names[('milk_1',)]['stage1_collision_constraint2'] == 0


def test_the_grippers_own_keypoint_is_no_obstacle():
    trial = make_trial((Phase(1.0, (0.80, -0.40, 0.06)),))
    own = replace(trial.scene, names=('target_1', 'basket_1', 'gripper'))
    found = terms(replace(trial, scene=own), SAFETY)
    assert found['stage1_collision_constraint2'].raw == 0


def test_detour_and_hesitation_cost_efficiency():
    detour = (Phase(1.5, (0.0, 0.5, 0.30)), Phase(1.5, TARGET_M), *SUCCESS[1:])
    straight, long = costs(make_trial(), EFFICIENCY), costs(make_trial(detour), EFFICIENCY)
    assert long['grasp'].cost > straight['grasp'].cost + 0.3
    assert long['transport'].cost == pytest.approx(straight['transport'].cost)


@pytest.mark.parametrize('objective', OBJECTIVES, ids=lambda o: o.name)
def test_every_stage_cost_lies_between_nothing_and_its_worst(objective):
    generator = np.random.default_rng(0)
    for _ in range(20):
        phases = tuple(
            replace(phase, seconds=0.5, to_m=tuple(generator.uniform(-1, 1, 3)))
            for phase in generator.permutation(np.array(SUCCESS, dtype=object))
        )
        for cost in costs(make_trial(phases), objective).values():
            assert 0 <= cost.cost <= cost.worst


def test_cost_that_is_not_finite_is_an_error_that_names_the_constraint():
    trial = make_trial()
    trial.ee_position_m[3] = np.inf
    with pytest.raises(CostError, match='stage1_path_constraint1 is inf'):
        costs(trial, EFFICIENCY)


def test_every_constraint_of_the_templates_is_built_in():
    assert {name for stage in PICK_PLACE for name in stage.constraints} == set(BUILTIN)


def test_cost_text_changes_with_a_weight_and_not_with_a_lambda():
    content = COMPLETION.model_dump()
    content['stages']['place']['stage3_target_constraint1']['weight'] = 2.0
    heavier = cost_program(type(COMPLETION).model_validate(content))
    assert heavier.sha256 != cost_program(COMPLETION).sha256
    assert 'def stage3_target_constraint1' in heavier.text
    assert 'def _normalised' in heavier.text
    other = COMPLETION.with_lambdas(1.0, 1.0, 1.0)
    assert cost_program(other).sha256 == cost_program(COMPLETION).sha256
    assert other.config_sha256 != COMPLETION.config_sha256


def changed_file(tmp_path, change):
    content = yaml.safe_load(
        (Path(__file__).parents[1] / 'config/objective/completion.yaml').read_text()
    )
    change(content)
    path = tmp_path / 'mine.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (lambda c: c.update(extra=1), 'extra: Extra inputs are not permitted'),
        (lambda c: c['reward'].update(lambda_=1), 'reward.lambda_'),
        (lambda c: c['stages'].pop('place'), 'has: grasp, transport, place'),
        (lambda c: c['stages']['grasp'].update(stage9_x={}), 'stages.grasp.stage9_x'),
        (
            lambda c: c['stages']['grasp'].update(
                stage3_target_constraint1={
                    'weight': 1.0,
                    'threshold': 0.0,
                    'worst': 1.0,
                    'reduce': 'last',
                }
            ),
            "stage 'grasp' has no constraint stage3_target_constraint1; it has: stage1_target",
        ),
        (lambda c: c['stages'].update(place={}), 'no constraint of positive weight'),
        (
            lambda c: c['stages']['grasp']['stage1_grasp_constraint1'].update(reduce='sum'),
            "'last', 'mean', 'max' or 'min'",
        ),
        (
            lambda c: c['stages']['grasp']['stage1_grasp_constraint1'].update(worst=0.0),
            'stage1_grasp_constraint1.worst',
        ),
        (lambda c: c['reward'].pop('lambda_ext'), 'reward.lambda_ext: Field required'),
    ],
)
def test_a_wrong_objective_file_is_an_error_that_names_the_key(tmp_path, change, text):
    with pytest.raises(ObjectiveError, match='mine.yaml') as caught:
        load_objective(changed_file(tmp_path, change))
    assert text in str(caught.value)


def test_unknown_objective_lists_the_known_ones():
    with pytest.raises(ObjectiveError, match='completion, efficiency'):
        load_objective('speed')
    with pytest.raises(ObjectiveError, match='no objective file'):
        load_objective('speed.yaml')
