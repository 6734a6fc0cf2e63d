"""Rewards of recorded trials, and the value head."""

import math

import numpy as np
import pytest
import torch
from scoring_trials import CLOSE, LIFT, REACH, SUCCESS, make_trial

from grape_trainer.learner import generator_for
from grape_trainer.objective.sparse_reward import grasp_hold_rewards, success_rewards
from grape_trainer.objective.value import (
    ValueHeadError,
    load_value_head,
    new_value_head,
    save_value_head,
    value_head_id,
)
from grape_trainer.rl_trials import trial_rewards
from grape_trainer.scoring.objective import load_objective


def test_grasp_and_hold_pay_once_and_success_at_the_last_step():
    # At 3 Hz a second is 3 states in a row: states 1, 2 do not make it, 4, 5, 6 do.
    held = np.array([0, 1, 1, 0, 1, 1, 1, 0], dtype=bool)
    paid = grasp_hold_rewards(held, success=True, rate_hz=3.0)
    assert paid.tolist() == pytest.approx([0.1, 0, 0, 0, 0, 0.1, 1.0])
    assert grasp_hold_rewards(held, False, 3.0).sum() == pytest.approx(0.2)


def test_the_difference_takes_back_what_a_grasp_gave_when_it_is_lost():
    held = np.array([0, 1, 1, 0, 1, 1, 1, 0], dtype=bool)
    paid = grasp_hold_rewards(held, success=True, rate_hz=3.0, difference=True)
    assert paid.tolist() == pytest.approx([0.1, 0, -0.1, 0.1, 0, 0.1, 0.8])


def test_a_real_segmentation_pays_the_grasp_a_second_of_holding_and_success():
    # 20 Hz: reach 1.5 s, close 0.5 s, lift 1 s ... : held from state 41 on, for a second at 60.
    trial = make_trial(SUCCESS)
    paid = trial_rewards(trial, True, 'grasp_hold', load_objective('completion'))
    assert len(paid) == 130
    assert {int(i): float(paid[i]) for i in np.flatnonzero(paid)} == pytest.approx(
        {40: 0.1, 59: 0.1, 129: 1.0}
    )


def test_stage_rewards_sum_to_the_share_of_the_way():
    objective = load_objective('completion')
    whole = trial_rewards(make_trial(SUCCESS), True, 'stage', objective)
    # Three stages and success: a quarter each, and the last two come together.
    assert whole[40] == pytest.approx(0.25) and whole.sum() == pytest.approx(1.0)
    assert whole[:40].sum() == 0.0
    grasped = trial_rewards(make_trial((REACH, CLOSE, LIFT)), False, 'stage', objective)
    assert grasped.sum() == pytest.approx(0.25)
    reached = trial_rewards(make_trial((REACH,)), False, 'stage', objective)
    assert not reached.any()


def test_rewards_of_impossible_trials_are_refused():
    with pytest.raises(ValueError, match='0 steps'):
        success_rewards(0, True)
    with pytest.raises(ValueError, match=r'held is \(1,\)'):
        grasp_hold_rewards(np.zeros(1, dtype=bool), True, 20.0)


def test_value_head_is_three_layers_drawn_from_its_generator_alone():
    head = new_value_head(8, generator_for(0, 'value_head', 0))
    torch.rand(3)
    again = new_value_head(8, generator_for(0, 'value_head', 0))
    other = new_value_head(8, generator_for(1, 'value_head', 0))
    assert value_head_id(head) == value_head_id(again) != value_head_id(other)
    # Kaiming, fan_out: std sqrt(2 / 512) of 8 x 512 weights; the last layer 0.02.
    assert head.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.05)
    assert head.fc3.weight.abs().max() < 0.1 and head.fc3.bias is None
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    by_hand = torch.nn.functional.gelu(x @ head.fc1.weight.T)
    by_hand = torch.nn.functional.gelu(by_hand @ head.fc2.weight.T) @ head.fc3.weight.T
    torch.testing.assert_close(head(x), by_hand[:, 0])


def test_value_head_comes_back_from_its_file_and_only_for_its_policy(tmp_path):
    head = new_value_head(8, generator_for(0, 'value_head', 0))
    save_value_head(head, tmp_path)
    assert value_head_id(load_value_head(tmp_path, 8)) == value_head_id(head)
    with pytest.raises(ValueHeadError, match=r'expected .*\(512, 16\)'):
        load_value_head(tmp_path, 16)
    with pytest.raises(ValueHeadError, match='grape train ppo'):
        load_value_head(tmp_path / 'nowhere', 8)
