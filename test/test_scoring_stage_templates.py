"""Templates beside pick-and-place: stages reached, retried, never reached, seen through noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scoring_trials import Phase, make_trial
from stage_trials import (
    ACT,
    AWAY,
    HOME,
    KNOB_M,
    REACH,
    acted_trial,
    carried_trial,
    with_scene,
)

from grape_trainer.scoring.cost import cost_program, stage_costs
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import ObjectiveError, load_objective
from grape_trainer.scoring.stage import Roles, StageError, segment_plan
from grape_trainer.scoring.stage_plan import plan_for

# What the target does in each template: (m, rad) of its whole motion, beyond the threshold.
MOTIONS = {
    'push_button': {'travel_m': (0, 0, -0.006)},
    'knock_down': {'turn_rad': 1.5, 'travel_m': (0.05, 0, -0.06)},
    'open_close': {'travel_m': (-0.16, 0, 0)},
    'turn_on': {'turn_rad': 0.8},
}
ROOT = Path(__file__).parents[1]
LASTING = ('knock_down', 'open_close', 'turn_on')
PLACES = {'red_1': (0.5, -0.2, 0.03), 'green_1': (0.6, 0.2, 0.03)}


def cut(trial, template):
    objective = load_objective(template)
    track = track_from_scene(trial.scene)
    plan = plan_for(trial.info, track.names, objective.template)
    return segment_plan(trial, track, plan, objective.segmentation, objective.motion)


def spans(trial, template):
    return [(span.start, span.stop, span.completed) for span in cut(trial, template).spans]


def costs(trial, template):
    objective = load_objective(template)
    found = stage_costs(trial, track_from_scene(trial.scene), cut(trial, template), objective)
    return [cost.cost for cost in found]


def acted(template, phases, **changes):
    return acted_trial(phases, **MOTIONS[template] | changes)


@pytest.mark.parametrize('template', MOTIONS)
def test_a_trial_that_acts_reaches_both_stages(template):
    trial = acted(template, [(REACH, 0), (ACT, 1), (AWAY, 1)])
    (_, touch, reached), (start, stop, done) = spans(trial, template)
    # 0.287 m of way in 30 steps: within 0.05 m from step 25 on.
    assert (touch, reached) == (25, True)
    assert (start, stop, done) == (25, 70, True)
    assert costs(trial, template) == [0.0, 0.0]


@pytest.mark.parametrize('template', MOTIONS)
def test_the_touch_that_moved_the_target_ends_the_approach(template):
    phases = [(REACH, 0), (ACT, 0), (AWAY, 0), (Phase(1.0, KNOB_M), 0), (ACT, 1), (AWAY, 1)]
    (_, touch, reached), (start, _, done) = spans(acted(template, phases), template)
    # The second approach begins at step 70 and has 0.21 m to go in 20 steps: there at 86.
    assert touch == start == 86
    assert reached and done


@pytest.mark.parametrize('template', MOTIONS)
def test_attempts_that_all_fail_end_the_approach_at_the_last_one(template):
    phases = [(REACH, 0), (AWAY, 0), (Phase(1.0, KNOB_M), 0.1), (AWAY, 0.1)]
    trial = acted(template, phases, contacts=False)
    (_, touch, reached), (start, stop, done) = spans(trial, template)
    # The second approach begins at step 50; the target itself comes up to 0.016 m nearer.
    assert start == touch and 64 <= touch <= 67 and stop == 90
    assert reached and not done
    assert 0.5 < costs(trial, template)[1] < 1.0  # some of the way was made


@pytest.mark.parametrize('template', MOTIONS)
def test_a_trial_that_never_comes_near_reaches_nothing_and_costs_the_worst(template):
    trial = acted(template, [(Phase(1.0, (0.5, -0.2, 0.5)), 0), (AWAY, 0)])
    assert spans(trial, template) == [(0, 40, False), (None, None, False)]
    # It came to 0.21 m of the keypoint: (0.21 - 0.05) / 0.35 of the weight 1.
    assert costs(trial, template) == pytest.approx([0.16 / 0.35, 1.0])


@pytest.mark.parametrize('template', MOTIONS)
def test_what_is_undone_in_the_end_is_not_completed_but_for_a_button(template):
    trial = acted(template, [(REACH, 0), (ACT, 1), (ACT, 0), (AWAY, 0)])
    (_, touch, _), (_, _, done) = spans(trial, template)
    assert touch == 25
    assert done == (template not in LASTING)
    assert costs(trial, template)[1] == pytest.approx(1.0 if template in LASTING else 0.0)


@pytest.mark.parametrize('template', MOTIONS)
def test_a_motion_before_the_touch_does_not_turn_time_back(template):
    """Reversed order: something moved the target before the hand came to it."""
    there = np.array(KNOB_M) + MOTIONS[template].get('travel_m', (0, 0, 0))
    trial = acted(template, [(HOME, 1), (Phase(1.5, tuple(there)), 1), (ACT, 1)])
    (_, touch, reached), (start, stop, done) = spans(trial, template)
    assert reached and done
    assert 40 < touch == start < 50 and stop == 70


@pytest.mark.parametrize('template', ['knock_down', 'open_close', 'turn_on'])
def test_noise_of_perceived_keypoints_moves_the_cut_by_a_few_steps_only(template):
    phases = [(REACH, 0), (ACT, 1), (AWAY, 1)]
    noisy = acted(template, phases, noise_m=0.005, contacts=False)
    (_, touch, reached), (_, _, done) = spans(noisy, template)
    assert reached and done
    assert abs(touch - 25) <= 2
    idle = acted(template, [(HOME, 0), (AWAY, 0)], noise_m=0.005, contacts=False)
    assert [done for _, _, done in spans(idle, template)] == [False, False]


def test_a_fixture_that_stands_still_goes_by_the_environments_verdict():
    """LIBERO records a stove or a cabinet by its body, which stands still when it is used."""
    trial = acted_trial([(REACH, 0), (ACT, 0)])
    assert spans(trial, 'open_close')[1] == (25, 50, False)
    verdict = np.arange(51) >= 45
    won = replace(trial, scene=replace(trial.scene, success=verdict))
    assert spans(won, 'open_close')[1] == (25, 50, True)
    assert spans(won, 'turn_on')[1] == (25, 50, True)


def test_a_button_whose_travel_is_not_seen_is_pressed_by_touch():
    trial = acted_trial([(REACH, 0), (ACT, 0), (AWAY, 0)])
    assert spans(trial, 'push_button')[1][2]
    near_miss = acted_trial([(REACH, 0), (ACT, 0), (AWAY, 0)], contacts=False)
    assert not spans(near_miss, 'push_button')[1][2]


def test_turning_without_a_recorded_orientation_says_what_to_do():
    trial = acted_trial([(REACH, 0), (ACT, 1)], turn_rad=1.0)
    quaternions = np.zeros_like(trial.scene.quaternions_xyzw)
    blind = replace(trial, scene=replace(trial.scene, quaternions_xyzw=quaternions))
    with pytest.raises(StageError, match="'knob_1' has no recorded orientation"):
        cut(blind, 'turn_on')
    # A fall is seen from the height as well.
    fallen = acted_trial([(REACH, 0), (ACT, 1)], travel_m=(0.05, 0, -0.06))
    quaternions = np.zeros_like(fallen.scene.quaternions_xyzw)
    fallen = replace(fallen, scene=replace(fallen.scene, quaternions_xyzw=quaternions))
    assert spans(fallen, 'knock_down')[1][2]


def stacked(place):
    trial, tracks, grasped = carried_trial([('red_1', place)], PLACES)
    roles = {'target': 'red_1', 'receptacle': 'green_1'}
    return with_scene(trial, tracks, grasped=grasped, **roles)


def test_stacking_is_finished_on_top_and_not_beside():
    on_top, beside = stacked('green_1'), stacked((0.6, 0.26, 0.0))
    assert spans(on_top, 'stack') == spans(on_top, 'completion')
    assert [done for _, _, done in spans(on_top, 'stack')] == [True, True, True]
    # Beside is near enough for pick-and-place, and no stack.
    assert [done for _, _, done in spans(beside, 'completion')] == [True, True, True]
    assert [done for _, _, done in spans(beside, 'stack')] == [True, True, False]
    assert costs(on_top, 'stack')[2] == pytest.approx(0.0, abs=1e-9)
    # 0.06 m off: half of the weight 0.5; as high as the lower one, not below it.
    assert costs(beside, 'stack')[2] == pytest.approx(0.25)


def test_a_stack_that_falls_off_is_reached_and_not_finished():
    trial = stacked('green_1')
    positions_m = trial.scene.positions_m.copy()
    positions_m[115:, 0] = (0.6, 0.3, 0.0)
    fell = replace(trial, scene=replace(trial.scene, positions_m=positions_m))
    assert [done for _, _, done in spans(fell, 'stack')] == [True, True, False]
    # 0.1 m off costs the whole 0.5, 0.03 m below the other one 0.6 of 0.5.
    assert costs(fell, 'stack')[2] == pytest.approx(0.5 + 0.3)


@pytest.mark.parametrize('template', [*MOTIONS, 'stack'])
def test_spans_are_monotone_and_cover_the_trial_whatever_it_did(template):
    generator = np.random.default_rng(1)
    for _ in range(25):
        phases = [
            (Phase(0.5, KNOB_M if near else tuple(generator.uniform(-1, 1, 3))), share)
            for near, share in zip(
                generator.integers(0, 2, 6), generator.uniform(0, 1.2, 6), strict=True
            )
        ]
        if template == 'stack':
            order = [('red_1', tuple(generator.uniform(0.3, 0.7, 3))) for _ in range(2)]
            trial, tracks, grasped = carried_trial(order, PLACES, seconds=0.5)
            roles = {'target': 'red_1', 'receptacle': 'green_1'}
            trial = with_scene(trial, tracks, grasped=grasped, **roles)
        else:
            trial = acted(template, phases)
        found = cut(trial, template).spans
        reached = [span for span in found if span.reached]
        assert reached[0].start == 0 and reached[-1].stop == trial.info.steps
        assert all(a.stop == b.start for a, b in zip(reached, reached[1:], strict=False))
        assert all(span.start <= span.stop for span in reached)
        assert all(not span.reached for span in found[len(reached) :])
        for cost, span in zip(costs(trial, template), found, strict=True):
            assert cost >= 0 and (span.reached or cost > 0)


@pytest.mark.parametrize('template', [*MOTIONS, 'stack'])
def test_the_cost_text_of_a_template_holds_what_it_calls(template):
    program = cost_program(load_objective(template))
    for stage in load_objective(template).template_stages:
        for name in load_objective(template).stages[stage.name]:
            assert name in program.text
    if template != 'stack':
        assert 'def motion_missing' in program.text


def test_an_objective_of_a_template_without_motion_thresholds_is_an_error(tmp_path):
    content = yaml.safe_load((ROOT / 'config/objective/open_close.yaml').read_text())
    del content['motion']
    path = tmp_path / 'mine.yaml'
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ObjectiveError, match="'open_close' needs a section 'motion'"):
        load_objective(path)
    content['template'] = 'juggle'
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ObjectiveError, match='no template .juggle.; there are: pick_place, stack'):
        load_objective(path)


def test_a_trial_of_one_step_can_be_cut_by_every_template():
    for template in MOTIONS:
        trial = acted(template, [(Phase(0.05, KNOB_M), 0)])
        assert spans(trial, template)[0][:2] in ((0, 1), (0, 0))
    empty = replace(make_trial(), gripper_command=np.zeros(0))
    roles = Roles('target_1', 'basket_1', ())
    with pytest.raises(StageError, match='no control step'):
        cut(replace(empty, info=replace(empty.info, environment=vars(roles))), 'stack')
