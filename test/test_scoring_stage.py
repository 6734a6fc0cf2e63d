"""Stages: every one can be reached (fault G1), in order, whatever the trial did."""

from dataclasses import replace

import numpy as np
import pytest
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

from grape_trainer.scoring.keypoint import KeypointError, KeypointTrack, track_from_scene
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.stage import TEMPLATES, Roles, StageError, segment

ROLES = Roles('target_1', 'basket_1', ())
SETTINGS = load_objective('completion').segmentation
DROPPED_M = (0.55, 0.00, 0.05)


def cut(trial, roles=ROLES):
    return segment(trial, track_from_scene(trial.scene), roles, SETTINGS)


def spans(trial):
    return [(span.start, span.stop, span.completed) for span in cut(trial).spans]


def test_success_reaches_all_three_stages_at_the_grasp_and_at_the_arrival():
    # Grasp: first held state is 41 (the lift begins at 2.0 s, 20 Hz). Arrival: on the way of
    # 0.412 m in 40 steps from state 60, the first state within 0.08 m is 60 + 33.
    trial = make_trial()
    assert spans(trial) == [(0, 41, True), (41, 93, True), (93, 130, True)]
    assert [span.stage.name for span in cut(trial).spans] == ['grasp', 'transport', 'place']


def test_trial_that_never_grasps_reaches_no_further_stage():
    trial = make_trial((REACH, CLOSE, replace(LIFT, holds=False)))
    assert spans(trial) == [(0, 60, False), (None, None, False), (None, None, False)]
    assert cut(trial).grasps == 0
    with pytest.raises(StageError, match="'transport' was never reached"):
        _ = cut(trial).spans[1].states


def test_drop_without_retry_keeps_transport_open_to_the_end():
    fall = Phase(1.0, CARRY.to_m, rest_m=DROPPED_M)
    half = replace(CARRY, seconds=1.0, to_m=(0.55, 0.0, 0.30))
    trial = make_trial((REACH, CLOSE, LIFT, half, fall))
    assert spans(trial) == [(0, 41, True), (41, 100, False), (None, None, False)]
    assert (cut(trial).grasps, cut(trial).drops) == (1, 1)


def test_drop_and_regrasp_is_cut_at_the_grasp_that_arrived():
    half = replace(CARRY, seconds=1.0, to_m=(0.55, 0.0, 0.30))
    fall = Phase(0.5, half.to_m, rest_m=DROPPED_M)
    again = (Phase(1.0, DROPPED_M), Phase(0.5, DROPPED_M, closed=True))
    lift = Phase(0.5, half.to_m, closed=True, holds=True)
    trial = make_trial((REACH, CLOSE, LIFT, half, fall, *again, lift, CARRY, LOWER, RELEASE))
    result = cut(trial)
    assert (result.grasps, result.drops) == (2, 1)
    # 1.5 + 0.5 + 1.0 + 1.0 + 0.5 + 1.0 + 0.5 s = 6.0 s before the second lift begins.
    assert result.spans[0].stop == 121
    assert [span.completed for span in result.spans] == [True, True, True]


def test_after_an_arrival_a_later_touch_does_not_undo_the_stages():
    again = Phase(0.5, RELEASE.to_m, closed=True, holds=True)
    trial = make_trial((*SUCCESS, again))
    result = cut(trial)
    assert [span.start for span in result.spans] == [0, 41, 93]
    assert not result.spans[2].completed  # still held at the end


def test_object_let_go_just_short_that_falls_in_has_arrived():
    near = replace(CARRY, to_m=(0.60, 0.10, 0.30))
    fall = Phase(0.5, near.to_m, rest_m=(0.60, 0.15, 0.04))
    assert spans(make_trial((REACH, CLOSE, LIFT, near, fall)))[2] == (101, 110, True)


def test_touch_shorter_than_the_minimum_hold_is_no_grasp():
    touch = replace(LIFT, seconds=0.1)
    trial = make_trial((REACH, CLOSE, touch, Phase(0.5, LIFT.to_m)))
    assert cut(trial).grasps == 0


def test_flicker_of_the_finger_contacts_is_no_drop():
    trial = make_trial(touched=False)
    grasped = list(make_trial().scene.grasped)
    grasped[50] = grasped[51] = ()
    scene = replace(trial.scene, grasped=tuple(grasped))
    assert cut(replace(trial, scene=scene)).grasps == 1


def test_rim_grasp_without_contacts_is_found_from_lift_and_distance():
    trial = make_trial(touched=False)
    # Lifted by 0.02 m from 0.05 on, in 20 steps of 0.0125 m: the second state of the lift.
    assert spans(trial)[0] == (0, 42, True)


def test_a_real_robots_trial_without_a_scene_is_cut_by_keypoints_alone():
    trial = make_trial()
    track = track_from_scene(trial.scene)
    found = segment(replace(trial, scene=None), track, ROLES, SETTINGS)
    assert [(s.start, s.stop) for s in found.spans] == [(0, 42), (42, 93), (93, 130)]
    assert found.spans[2].completed


def test_open_gripper_that_touches_the_target_does_not_hold_it():
    trial = make_trial((REACH, Phase(1.0, TARGET_M, closed=False, holds=True)))
    assert cut(trial).grasps == 0


def test_one_step_episode_is_cut_and_an_empty_one_refused():
    trial = make_trial((Phase(0.05, TARGET_M),))
    assert spans(trial) == [(0, 1, False), (None, None, False), (None, None, False)]
    empty = replace(trial, gripper_command=np.zeros(0))
    with pytest.raises(StageError, match='no control step'):
        cut(empty)


def test_lost_messages_are_an_error_with_the_counts():
    trial = make_trial()
    scene = replace(trial.scene, positions_m=trial.scene.positions_m[:-2])
    with pytest.raises(
        StageError, match='130 policy steps need 131 states; found scene_state: 129'
    ):
        cut(replace(trial, scene=scene))


def test_keypoint_that_is_not_a_number_is_an_error_with_name_and_step():
    trial = make_trial()
    positions_m = trial.scene.positions_m.copy()
    positions_m[7, 1, 2] = np.nan
    with pytest.raises(KeypointError, match="'basket_1' is nan .z. at step 7"):
        track_from_scene(replace(trial.scene, positions_m=positions_m))


def test_unknown_keypoint_lists_the_known_ones():
    with pytest.raises(KeypointError, match='target_1, basket_1, milk_1'):
        cut(make_trial(), Roles('spoon_1', 'basket_1', ()))


def test_track_refuses_a_wrong_shape_and_repeated_names():
    with pytest.raises(KeypointError, match='expected .2, 1, 3.'):
        KeypointTrack(('a',), np.zeros((2, 2, 3)), 'privileged')
    with pytest.raises(KeypointError, match='repeat'):
        KeypointTrack(('a', 'a'), np.zeros((2, 2, 3)), 'privileged')


def test_roles_are_read_from_the_environment_and_missing_ones_named():
    roles = {'target': 'a', 'receptacle': 'b', 'support': ['c', 'd']}
    assert Roles.from_environment({'roles': roles}) == Roles('a', 'b', ('c', 'd'))
    assert Roles.from_environment(roles | {'pixels': 224}) == Roles('a', 'b', ('c', 'd'))
    with pytest.raises(StageError, match='no target and no receptacle; it has: nothing'):
        Roles.from_environment({})
    with pytest.raises(StageError, match='no receptacle; it has: target, receptacle'):
        Roles.from_environment({'roles': {'target': 'a', 'receptacle': ''}})


def test_moving_the_receptacle_moves_the_arrival():
    """Fault G2: keypoints are tracked, not frozen at reset."""
    basket_m = np.tile(BASKET_M, (131, 1))
    basket_m[50:, 1] = 1.0
    assert spans(make_trial(basket_m=basket_m))[2] == (None, None, False)


def test_every_constraint_of_a_template_is_named_for_its_stage():
    for stages in TEMPLATES.values():
        for stage in stages:
            assert all(name.startswith(f'stage{stage.number}_') for name in stage.constraints)
