"""Stages of two trials in LIBERO's simulator: a hand that turns the stove's knob, or fails to.

test/data/stages/ was recorded from libero_goal/7 ('turn on the stove'), initial state 0, by pushes
at fixed points: one the wrong way round, then, in the first trial, three the right way. The scene
as the bridge records it has the stove's body, which stands still; the keypoint flat_stove_1_button
was added to it, with its orientation, from the knob's own body.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scoring_trials import make_trial

from grape_trainer.scoring.cost import stage_costs
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.stage import segment_plan
from grape_trainer.scoring.stage_plan import plan_for

DATA = Path(__file__).parent / 'data' / 'stages'
KNOB = 'flat_stove_1_button'
# Runs of contact between a finger and the stove, in the first trial.
TOUCHES = ((36, 74), (117, 118), (121, 128), (137, 178), (213, 225), (231, 274), (310, 330))
TURNED = 239  # the first state at which LIBERO says that the stove is on


def trial(name, with_knob):
    """Return a recorded trial, with the knob's keypoint or as the bridge records it now."""
    data = np.load(DATA / f'libero_goal_7_{name}.npz')
    names = [str(n) for n in data['names']]
    kept = [index for index, name in enumerate(names) if with_knob or name != KNOB]
    environment = {'goal': [['turnon', 'flat_stove_1']], 'target': 'flat_stove_1'}
    if with_knob:
        environment['parts'] = {'flat_stove_1': KNOB}
    made = make_trial()
    scene = replace(
        made.scene,
        names=tuple(names[index] for index in kept),
        positions_m=data['positions_m'][:, kept].astype(float),
        quaternions_xyzw=data['quaternions_xyzw'][:, kept].astype(float),
        grasped=((),) * len(data['success']),
        contacts=tuple(tuple(json.loads(str(text))) for text in data['contacts']),
        collisions=tuple(tuple(json.loads(str(text))) for text in data['collisions']),
        success=data['success'],
    )
    return replace(
        made,
        info=replace(made.info, instruction='turn on the stove', environment=environment),
        scene=scene,
        ee_position_m=data['ee_position_m'].astype(float),
        gripper_command=data['gripper_command'].astype(float),
    )


def stages(found, objective):
    track = track_from_scene(found.scene)
    plan = plan_for(found.info, track.names)
    assert plan.template == 'turn_on'
    cut = segment_plan(found, track, plan, objective.segmentation, objective.motion)
    return cut.spans, [cost.cost for cost in stage_costs(found, track, cut, objective)]


@pytest.fixture
def objective():
    return load_objective('turn_on')


@pytest.mark.parametrize('with_knob', [False, True], ids=['body', 'knob'])
def test_the_touch_that_turned_the_knob_ends_the_approach(objective, with_knob):
    found = trial('retry', with_knob)
    (approach, turn), costs = stages(found, objective)
    assert approach.completed and turn.completed
    # The hand was at the knob within reach_m before it touched it again; no earlier touch counts.
    assert TOUCHES[-3][0] - 5 <= approach.stop <= TURNED
    assert approach.stop == turn.start and turn.stop == 330
    assert sum(costs) < 0.02


def test_the_knobs_own_rotation_says_the_same_as_libero(objective):
    found = trial('retry', True)
    quaternions = found.scene.quaternions_xyzw[:, found.scene.names.index(KNOB)]
    angle = 2 * np.arccos(np.clip(np.abs(quaternions @ quaternions[0]), 0, 1))
    by_keypoint = int(np.argmax(angle >= objective.motion.turn_rad))
    assert int(np.argmax(found.scene.success)) == TURNED
    assert abs(by_keypoint - TURNED) <= 2


@pytest.mark.parametrize('with_knob', [False, True], ids=['body', 'knob'])
def test_a_push_the_wrong_way_reaches_the_knob_and_does_not_turn_it(objective, with_knob):
    (approach, turn), costs = stages(trial('fail', with_knob), objective)
    assert approach.completed and not turn.completed
    assert approach.stop == TOUCHES[0][0]
    assert 0.9 < costs[1] <= 1.0
