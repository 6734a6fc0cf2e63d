"""GAE, PPO, GRPO and TGRPO against numbers worked out by hand."""

import math

import pytest
import torch

from grape_trainer.objective.advantage import gae, normalise, returns_to_go
from grape_trainer.objective.grpo import FORMS, grouped_advantages, grpo_loss, k3
from grape_trainer.objective.ppo import (
    PpoOptions,
    StepBatch,
    ValueBatch,
    explained_variance,
    policy_loss,
    ppo_loss,
    value_losses,
)
from grape_trainer.objective.tgrpo import tgrpo_form


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_gae_equals_the_sums_worked_out_by_hand():
    # delta: 0 + .5*2 - 1 = 0,  0 + .5*4 - 2 = 0,  8 + .5*6 - 4 = 7
    # A_2 = 7,  A_1 = 0 + .25*7 = 1.75,  A_0 = 0 + .25*1.75 = 0.4375
    advantages, returns = gae(t(0, 0, 8), t(1, 2, 4), gamma=0.5, lam=0.5, last_value=6.0)
    assert advantages.tolist() == [0.4375, 1.75, 7.0]
    assert returns.tolist() == [1.4375, 3.75, 11.0]


def test_gae_without_discount_is_the_reward_still_to_come_less_the_value():
    advantages, returns = gae(t(0.1, 0, 1), t(0.5, 0.25, 2), gamma=1.0, lam=1.0)
    torch.testing.assert_close(advantages, t(0.6, 0.75, -1.0))
    torch.testing.assert_close(returns, t(1.1, 1.0, 1.0))
    torch.testing.assert_close(returns_to_go(t(0.1, 0, 1), gamma=0.5), t(0.35, 0.5, 1.0))


def test_advantages_are_normalised_over_all_trials_together():
    # mean 2, population std sqrt(((-2)^2 + 0 + 2^2 + 0) / 4) = sqrt(2)
    first, second = normalise([t(0, 2), t(4, 2)])
    torch.testing.assert_close(first, t(-math.sqrt(2), 0))
    torch.testing.assert_close(second, t(math.sqrt(2), 0))
    assert [trial.tolist() for trial in normalise([t(0.3, 0.3), t(0.3)])] == [[0, 0], [0]]


def steps_of(log_ratios, advantages):
    """Build steps of two tokens whose log-ratios are given, and the log-probabilities now."""
    old = torch.full((len(log_ratios), 2), -1.0, dtype=torch.float64)
    return (old + t(*log_ratios)).requires_grad_(), StepBatch(old, t(*advantages))


def test_clipped_surrogate_of_the_step_ratio():
    # Step ratios 1.5, 1.5, 0.5, 1; only a step that would gain from going further is clipped.
    up, down = math.log(1.5) / 2, math.log(0.5) / 2
    log_probs, steps = steps_of([[up, up], [up, up], [down, down], [0, 0]], [1, -1, -1, 2])
    loss, metrics = policy_loss(log_probs, steps, PpoOptions(clip_range=0.2))
    # -(1.2 - 1.5 - 0.8 + 2) / 4
    assert loss.item() == pytest.approx(-0.9 / 4)
    assert metrics['clip'] == 0.5
    assert metrics['ratio'] == pytest.approx(4.5 / 4)
    squares = 2 * math.log(1.5) ** 2 + math.log(0.5) ** 2
    assert metrics['kl'] == pytest.approx(0.5 * squares / 4)
    loss.backward()
    # Of a clipped step no gradient; else -A ratio / B for each token.
    torch.testing.assert_close(log_probs.grad[:, 0], t(0, 1.5 / 4, 0, -2 / 4))


def test_token_ratio_clips_each_token_and_has_the_same_gradient_at_the_start():
    log_probs, steps = steps_of([[math.log(1.5), math.log(0.9)]], [1.0])
    loss, metrics = policy_loss(log_probs, steps, PpoOptions(ratio='token'))
    assert loss.item() == pytest.approx(-(1.2 + 0.9)) and metrics['clip'] == 0.5
    grads = []
    for ratio in ('step', 'token'):
        log_probs, steps = steps_of([[0, 0], [0, 0]], [1.0, -3.0])
        policy_loss(log_probs, steps, PpoOptions(ratio=ratio))[0].backward()
        grads.append(log_probs.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_value_loss_is_the_worse_of_the_plain_and_the_clipped_error():
    # From 0 to 0.5 is clipped to 0.2: (0.5-1)^2 = .25 < (0.2-1)^2 = .64; other way round below.
    value = ValueBatch(t(0.5, 0.5), t(0, 0), t(1, 0))
    losses, clipped = value_losses(value, clip=0.2)
    torch.testing.assert_close(losses, t(0.32, 0.125))
    assert clipped.tolist() == [True, False]
    torch.testing.assert_close(value_losses(value, clip=0)[0], t(0.125, 0.125))


def test_ppo_loss_adds_its_three_parts():
    log_probs, steps = steps_of([[0, 0], [0, 0]], [1.0, 3.0])
    value = ValueBatch(t(0.5, 0.5), t(0, 0), t(1, 0))
    entropy = torch.full((2, 2), 3.0, dtype=torch.float64)
    options = PpoOptions(value_clip=0.0, value_weight=2.0, entropy_weight=0.1)
    loss, metrics = ppo_loss(log_probs, entropy, steps, value, options)
    assert loss.item() == pytest.approx(-2 + 2 * 0.125 - 0.1 * 3)
    assert metrics['loss/policy_avg'] == pytest.approx(-2)
    assert metrics['loss/value_avg'] == pytest.approx(0.125)
    assert metrics['policy/entropy_avg'] == pytest.approx(3)


def test_zero_advantages_leave_the_policy_alone():
    log_probs, steps = steps_of([[0.1, 0.3], [-0.5, 0]], [0.0, 0.0])
    policy_loss(log_probs, steps, PpoOptions())[0].backward()
    assert not log_probs.grad.any()


def test_explained_variance_is_one_for_the_returns_and_none_for_a_constant():
    assert explained_variance(t(1, 2, 3), t(1, 2, 3)) == 1.0
    assert explained_variance(t(5, 5, 5), t(1, 2, 3)) == 0.0
    # residuals 1, 0, -1 on returns 0, 3, 6: 1 - (2/3) / 6
    assert explained_variance(t(-1, 3, 7), t(0, 3, 6)) == pytest.approx(8 / 9)
    assert explained_variance(t(1, 2), t(4, 4)) == 0.0


def rewards():
    """Sums 1.2, 0 and 0.6: mean 0.6, population std sqrt(0.24)."""
    return [t(0.2, 0, 1), t(0, 0), t(0, 0.6)]


def test_outcome_advantages_are_each_trials_sum_for_all_its_steps():
    found = FORMS['outcome'](rewards(), 1.0)
    high = 0.6 / math.sqrt(0.24)
    for trial, expected in zip(found, ([high] * 3, [-high] * 2, [0, 0]), strict=True):
        torch.testing.assert_close(trial, t(*expected))


def test_step_advantages_standardise_every_steps_return_over_the_group():
    # returns to go 1, 1 | 0, 0: mean 0.5, std 0.5; with gamma 0.5: .5, 1 | 0, 0
    found = FORMS['steps']([t(0, 1), t(0, 0)], 1.0)
    assert [trial.tolist() for trial in found] == [[1, 1], [-1, -1]]
    found = torch.cat(FORMS['steps']([t(0, 1), t(0, 0)], 0.5))
    std = math.sqrt((0.125**2 + 0.625**2 + 2 * 0.375**2) / 4)
    torch.testing.assert_close(found, t(0.125, 0.625, -0.375, -0.375) / std)


def test_rewards_to_go_standardise_the_paid_rewards_and_sum_them():
    # paid 0.2, 1, 0.6: mean 0.6, std sqrt(0.32 / 3)
    unit = 0.4 / math.sqrt(0.32 / 3)
    found = FORMS['rewards_to_go'](rewards(), 1.0)
    torch.testing.assert_close(found[0], t(0, unit, unit))
    assert found[1].tolist() == [0, 0]
    torch.testing.assert_close(found[2], t(0, 0))


def test_groups_are_compared_within_themselves_and_equal_ones_teach_nothing():
    trials = [t(0, 1), t(1.0), t(0.0), t(0, 1)]
    found = grouped_advantages(trials, ['a', 'b', 'b', 'a'], FORMS['outcome'])
    assert (found.groups, found.zero_groups) == (2, 1)
    assert [trial.tolist() for trial in found.advantages] == [[0, 0], [1], [-1], [0, 0]]


def test_k3_is_the_estimate_worked_out_by_hand_and_never_negative():
    # ref - pi = ln 2: 2 - ln 2 - 1;  -ln 2: 0.5 + ln 2 - 1
    found = k3(t(-1, -1, -1), t(-1 + math.log(2), -1 - math.log(2), -1))
    torch.testing.assert_close(found, t(1 - math.log(2), math.log(2) - 0.5, 0))


def test_grpo_loss_adds_the_kl_penalty_as_a_mean_over_tokens():
    log_probs, steps = steps_of([[0, 0]], [1.0])
    reference = log_probs.detach() + t(math.log(2), 0)
    loss, metrics = grpo_loss(log_probs, steps, PpoOptions(), reference, kl_weight=0.5)
    assert metrics['kl'] == pytest.approx((1 - math.log(2)) / 2)
    assert loss.item() == pytest.approx(-1 + 0.5 * (1 - math.log(2)) / 2)
    loss.backward()
    # d k3 / d log pi = 1 - exp(ref - pi) = -1 at the first token
    torch.testing.assert_close(log_probs.grad, t(-1 - 0.25, -1)[None])


def test_tgrpo_adds_the_step_and_the_trial_against_the_group():
    # Levels: first 0, 1, 1;  second 0, 0 and stays there: 0, 0, 0.
    # S: 0, 1, 1 and 0, -1;  sums 2 and 0, so T: 1 and -1.
    trials = [t(0, 1, 0), t(0, 0)]
    first, second = tgrpo_form(alpha_step=2.0, alpha_trial=0.5)(trials)
    assert first.tolist() == [0.5, 2.5, 2.5]
    assert second.tolist() == [-0.5, -2.5]


def test_tgrpo_an_early_success_is_worth_more_than_a_late_one():
    early, late = tgrpo_form()([t(0, 1), t(0, 0, 0, 1)])
    # At step 1 only the early one is there; levels 0 1 1 1 and 0 0 0 1: T = 1, -1.
    assert early.tolist() == [1, 2]
    assert late.tolist() == [-1, -2, -2, -1]


@pytest.mark.parametrize(
    ('call', 'text'),
    [
        (lambda: gae(t(), t(), 1.0, 1.0), 'T >= 1'),
        (lambda: gae(t(1, 2), t(1), 1.0, 1.0), r'expected the same \(T,\)'),
        (lambda: gae(t(1), t(1), 1.1, 1.0), 'gamma is 1.1'),
        (lambda: gae(t(1), t(1), 1.0, -0.1), 'lambda is -0.1'),
        (lambda: normalise([]), 'no advantages'),
        (lambda: PpoOptions(clip_range=0), 'clip_range'),
        (lambda: PpoOptions(ratio='word'), 'step, token'),
        (lambda: PpoOptions(value_weight=float('nan')), 'value_weight'),
        (lambda: policy_loss(t([0.0, 0]), StepBatch(t([0.0]), t(1)), PpoOptions()), r'\(B, 7\)'),
        (lambda: policy_loss(t([0.0, 0]), StepBatch(t([0.0, 0]), t(1, 2)), PpoOptions()), '1,'),
        (lambda: value_losses(ValueBatch(t(1), t(1, 2), t(1)), 0.2), r'\(B,\) for all'),
        (lambda: grouped_advantages([t(1)], [], FORMS['outcome']), '1 trials and 0 groups'),
        (lambda: grouped_advantages([t()], ['a'], FORMS['outcome']), 'T >= 1'),
        (lambda: k3(t(1), t(1, 2)), 'expected the same'),
        (lambda: grpo_loss(t([0.0]), StepBatch(t([0.0]), t(1)), PpoOptions(), None, 1.0), 'above'),
        (lambda: tgrpo_form(0.0, 0.0), 'one of them above 0'),
    ],
)
def test_wrong_shapes_and_ranges_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
