"""A person approves a cost program for what it says about recorded trials, and only that text."""

import pytest
from scoring_trials import REACH, SUCCESS, make_trial, record
from typer.testing import CliRunner

from grape_bringup.cli import app
from grape_episode.outcome import Outcome
from grape_trainer.scoring import cost_approval, cost_review
from grape_trainer.scoring.cost_program import parse_program
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.keypoint import SceneSource
from grape_trainer.scoring.objective import load_objective

PROGRAM = """
def stage1_target_constraint1(end_effector, keypoints):
    return np.linalg.norm(end_effector - keypoints[0])

def stage1_grasp_constraint1(end_effector, keypoints, held):
    return 1.0 if held else 0.0

def stage1_path_constraint1(end_effector, keypoints):
    return 3.0

def stage1_collision_constraint1(end_effector, keypoints):
    return min(0.0, end_effector[2] - 9.0)

def stage3_target_constraint1(end_effector, keypoints):
    return np.linalg.norm(keypoints[0] - keypoints[1])
"""
COMPLETION = load_objective('completion')


@pytest.fixture(scope='module')
def found():
    """Reviews by name, of four successes and four trials that stop short of the target."""
    trials = []
    with CostSandbox() as sandbox:
        program = parse_program(PROGRAM, sandbox)
        for index in range(8):
            success = index % 2 == 0
            phases = SUCCESS if success else (REACH,)
            trial = make_trial(phases, episode_id=f'trial-{index}')
            track = SceneSource().track(trial)
            trials.append(
                cost_review.trial_costs(trial, success, track, COMPLETION, program, sandbox)
            )
    return {review.function.name: review for review in cost_review.review(program, trials)}


def test_a_distance_falls_while_its_stage_goes_on(found):
    review = found['stage1_target_constraint1']
    assert (review.trials, review.successes, review.flags) == (8, 4, ())
    assert review.monotonicity < -0.9 and review.lowest < 0.01 < 0.3 < review.highest


def test_what_rewards_the_wrong_trials_is_flagged(found):
    """Charges for holding: successes cost more than failures."""
    review = found['stage1_grasp_constraint1']
    assert review.auc == 0.0 and review.flags == (cost_review.INVERTED,)


def test_a_cost_that_says_nothing_is_flagged(found):
    assert found['stage1_path_constraint1'].flags == (cost_review.CONSTANT,)
    assert found['stage1_collision_constraint1'].flags == (cost_review.INACTIVE,)


def test_a_stage_that_failures_never_reach_has_no_auc(found):
    review = found['stage3_target_constraint1']
    assert (review.trials, review.auc) == (4, None)


def test_an_approval_is_of_one_text(tmp_path):
    file = tmp_path / 'costs.py'
    file.write_text(PROGRAM)
    with CostSandbox() as sandbox:
        program = parse_program(PROGRAM, sandbox)
        other = parse_program(PROGRAM.replace('3.0', '4.0'), sandbox)
    with pytest.raises(cost_approval.ApprovalError, match='grape costs review'):
        cost_approval.require_approval(file, program)
    given = cost_approval.approve(file, program, (), 8, 'looks right')
    assert cost_approval.require_approval(file, program) == given
    with pytest.raises(cost_approval.ApprovalError, match='changed since'):
        cost_approval.require_approval(file, other)
    (tmp_path / 'costs.py.approval.json').write_text('[{"sha256":')
    with pytest.raises(cost_approval.ApprovalError, match='damaged'):
        cost_approval.require_approval(file, program)


def test_the_command_shows_plots_and_approves_only_when_told(tmp_path):
    bags, file = tmp_path / 'bags', tmp_path / 'costs.py'
    bags.mkdir()
    file.write_text(PROGRAM)
    record(bags, make_trial(SUCCESS, episode_id='good'))
    record(bags, make_trial((REACH,), outcome=Outcome.FAILURE, episode_id='poor'))
    refused = CliRunner().invoke(app, ['costs', 'review', str(file), str(bags)], input='n\n')
    assert refused.exit_code == 1 and 'not approved' in refused.output
    assert (tmp_path / 'costs.py.review.png').stat().st_size > 10_000
    told = CliRunner().invoke(app, ['costs', 'review', str(file), str(bags), '--approve'])
    assert told.exit_code == 0 and 'approved by' in told.output, told.output
    assert [a.trials for a in cost_approval.read_approvals(file)] == [2]
