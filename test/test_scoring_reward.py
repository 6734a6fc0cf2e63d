"""The reward of a trial, Eqs. 8-11, against numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scoring_trials import CLOSE, LIFT, REACH, SUCCESS, Phase, make_trial

from grape_episode.outcome import Outcome
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.reward import (
    RewardError,
    collision_count,
    gcpg_reward,
    score_episode,
    spread_report,
)

COMPLETION = load_objective('completion')
HALFWAY = (Phase(1.0, (0.50, -0.20, 0.05 + 0.16)),)  # costs 1.0 + 1.5 + 1.25, by hand


def test_success_is_rewarded_by_hand():
    # 130 steps of 7 tokens at -1 each; a cost of 0.1 in stage 3; lambdas 0.01, 0.01, 2.
    score = score_episode(make_trial(), COMPLETION)
    assert (score.r_self, score.r_self_per_token) == (-910.0, -1.0)
    assert score.log_r_ext == pytest.approx(-0.1)
    assert (score.r_ext, score.success) == (math.exp(score.log_r_ext), True)
    assert score.r_gcpg == pytest.approx(0.01 * -910 + 0.01 * math.exp(-0.1) + 2.0)
    assert (score.steps, score.collisions, score.grasps, score.drops) == (130, 0, 1, 0)


def test_external_reward_is_the_product_over_stages():
    score = score_episode(make_trial(HALFWAY, outcome=Outcome.FAILURE), COMPLETION)
    assert score.log_r_ext == pytest.approx(-3.75)
    assert score.r_ext == pytest.approx(math.exp(-1.0) * math.exp(-1.5) * math.exp(-1.25))
    assert score.r_gcpg == pytest.approx(0.01 * -140 + 0.01 * math.exp(-3.75))


def test_reward_is_computed_in_log_space_and_never_clipped():
    """Fault G4: a product of step probabilities underflows; the sum of logarithms does not."""
    score = score_episode(make_trial(log_prob=-20.0), COMPLETION)
    assert score.r_self == -20.0 * 910  # exp of it is 0 in float64; -1 in the published code
    assert score.r_self_per_token == -20.0


def test_score_keeps_its_decimals():
    """Fault G5: scores are not rounded to integers."""
    score = score_episode(make_trial(log_prob=-0.37), COMPLETION)
    assert score.r_gcpg == pytest.approx(
        0.01 * 910 * float(np.float32(-0.37)) + 0.01 * math.exp(-0.1) + 2.0, abs=1e-9
    )
    assert score.r_gcpg != int(score.r_gcpg)


def test_per_token_self_reward_does_not_see_the_length():
    reward = COMPLETION.reward.model_copy(update={'self_reward': 'per_token'})
    objective = COMPLETION.model_copy(update={'reward': reward})
    waits = (REACH, Phase(5.0, REACH.to_m), *SUCCESS[1:])
    scores = [score_episode(make_trial(p), objective).r_gcpg for p in (SUCCESS, waits)]
    assert scores == pytest.approx([-0.01 + 0.01 * math.exp(-0.1) + 2.0] * 2)


def test_summed_self_reward_lets_a_quick_failure_outscore_a_slow_success():
    """Eq. 10 with the paper's lambdas, as docs/explanation/reward.md warns."""
    quick = make_trial((REACH,), outcome=Outcome.FAILURE)
    assert score_episode(quick, COMPLETION).r_gcpg > score_episode(make_trial(), COMPLETION).r_gcpg


def test_expert_without_log_probs_has_an_external_reward_and_no_gcpg():
    score = score_episode(make_trial(log_prob=None), COMPLETION)
    assert (score.r_self, score.r_self_per_token, score.r_gcpg) == (None, None, None)
    assert score.r_ext == pytest.approx(math.exp(-0.1))
    without_self = COMPLETION.with_lambdas(0.0, 0.01, 2.0)
    assert score_episode(make_trial(log_prob=None), without_self).r_gcpg == pytest.approx(
        2.0 + 0.01 * math.exp(-0.1)
    )


def test_errors_and_interruptions_are_never_scored():
    for outcome in (Outcome.ERROR, Outcome.INTERRUPTED):
        with pytest.raises(RewardError, match=f"ended with '{outcome}'"):
            score_episode(make_trial(outcome=outcome), COMPLETION)


def test_a_later_label_replaces_the_recorded_outcome():
    assert score_episode(make_trial(), COMPLETION, Outcome.FAILURE).success is False


def test_episode_without_scene_state_is_an_error():
    with pytest.raises(KeypointError, match='no scene_state'):
        score_episode(replace(make_trial(), scene=None), COMPLETION)


def test_keypoint_that_is_not_a_number_is_an_error():
    trial = make_trial()
    trial.scene.positions_m[5, 0, 0] = np.nan
    with pytest.raises(KeypointError, match="'target_1' is nan"):
        score_episode(trial, COMPLETION)


def test_log_prob_that_is_not_finite_is_an_error_with_its_step():
    trial = make_trial()
    trial.token_log_probs[4, 2] = -np.inf
    with pytest.raises(RewardError, match='not finite at step 4'):
        score_episode(trial, COMPLETION)


def test_one_step_trial_has_a_score():
    score = score_episode(make_trial((Phase(0.05, LIFT.to_m),)), COMPLETION)
    assert (score.steps, score.r_self) == (1, -7.0)


def test_the_nearer_a_failure_came_the_more_it_scores():
    def failure(phases):
        return score_episode(make_trial(phases, outcome=Outcome.FAILURE), COMPLETION).r_ext

    dropped = (REACH, CLOSE, LIFT, Phase(1.0, LIFT.to_m, rest_m=(0.5, -0.1, 0.05)))
    rewards = [
        failure((Phase(1.0, (0.1, 0.5, 0.3)),)),
        failure((REACH,)),
        failure(dropped),
        failure(SUCCESS[:4]),
    ]
    assert rewards == sorted(rewards) and len(set(rewards)) == 4
    assert score_episode(make_trial(), COMPLETION).r_ext > rewards[-1]


def test_a_contact_counts_once_however_long_it_lasts():
    assert collision_count([(), ('a|b',), ('a|b', 'a|c'), ('a|c',), (), ('a|b',)]) == 3


def test_same_episode_gives_the_same_score_and_hashes():
    assert score_episode(make_trial(), COMPLETION) == score_episode(make_trial(), COMPLETION)


def test_gcpg_is_the_weighted_sum():
    reward = COMPLETION.with_lambdas(0.5, 0.25, 3.0).reward
    assert gcpg_reward(-2.0, -0.1, 0.8, True, reward) == pytest.approx(-1.0 + 0.2 + 3.0)


def test_spread_report_warns_when_a_term_swamps_another():
    """Fault G4: success (or R_self) must not silently decide alone."""
    report = spread_report([-100, -300], [0.2, 0.6], [True, False], COMPLETION.reward)
    assert {term.term: term.std for term in report.terms} == pytest.approx(
        {'self': 100.0, 'ext': 0.2, 'success': 0.5}
    )
    assert [term.weighted for term in report.terms] == pytest.approx([1.0, 0.002, 1.0])
    assert len(report.warnings) == 1
    assert 'outweighs ext' in report.warnings[0]
    assert '500 times' in report.warnings[0]
    assert 'lambda_ext 5 would balance' in report.warnings[0]


def test_spread_report_says_when_a_term_does_not_rank():
    report = spread_report([-1.0, -1.2], [0.5, 0.6], [True, True], COMPLETION.reward)
    assert 'success is the same in every trial' in ' '.join(report.warnings)


def test_balanced_terms_give_no_warning():
    reward = COMPLETION.with_lambdas(0.01, 5.0, 2.0).reward
    assert spread_report([-100, -300], [0.2, 0.6], [True, False], reward).warnings == ()
    assert spread_report([-1.0], [0.5], [True], reward).warnings == ()
