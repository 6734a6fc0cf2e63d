"""TPO against numbers worked out by hand, autograd and finite differences."""

import math

import pytest
import torch

from grape_trainer.objective.tpo import (
    PairBatch,
    TpoOptions,
    pair_weights,
    preference_logit,
    tpo_loss,
    tpo_pair_losses,
)


def batch(chosen, rejected, ref_chosen, ref_rejected, steps=(10.0, 20.0), dtype=torch.float32):
    """Build one PairBatch from lists; 7 tokens a step."""

    def tensor(values):
        return torch.as_tensor(values, dtype=dtype)

    ones = torch.ones(len(ref_chosen), dtype=dtype)
    return PairBatch(
        chosen if torch.is_tensor(chosen) else tensor(chosen),
        rejected if torch.is_tensor(rejected) else tensor(rejected),
        tensor(ref_chosen),
        tensor(ref_rejected),
        steps[0] * ones,
        steps[1] * ones,
        7 * steps[0] * ones,
    )


def test_loss_of_a_pair_equals_the_number_worked_out_by_hand():
    # z = 0.1 * ((-100 + 110) - (-120 + 115)) = 0.1 * (10 + 5) = 1.5
    pair = batch([-100.0], [-120.0], [-110.0], [-115.0])
    loss, metrics = tpo_loss(pair, TpoOptions())
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-6)
    assert loss.item() == pytest.approx(0.2014133, abs=1e-6)
    assert metrics['rewards/chosen'] == pytest.approx(1.0)
    assert metrics['rewards/rejected'] == pytest.approx(-0.5)
    assert metrics['rewards/margins'] == pytest.approx(1.5)
    assert metrics['rewards/accuracies'] == 1.0
    assert metrics['logps/chosen'] == -100.0
    assert metrics['logps/rejected'] == -120.0
    assert metrics['log_ratio_per_step/chosen'] == pytest.approx(1.0)
    assert metrics['log_ratio_per_step/rejected'] == pytest.approx(-0.25)


def test_policy_equal_to_its_reference_costs_log_two():
    pair = batch([-100.0, -5.0], [-120.0, -9.0], [-100.0, -5.0], [-120.0, -9.0])
    loss, metrics = tpo_loss(pair, TpoOptions())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics['rewards/accuracies'] == 0.0


def test_per_step_mean_divides_each_trial_by_its_own_length():
    # chosen 10 / 10 steps = 1, rejected -5 / 20 steps = -0.25; z = 0.1 * 1.25
    pair = batch([-100.0], [-120.0], [-110.0], [-115.0])
    z = preference_logit(pair, TpoOptions(per_step_mean=True))
    assert z.item() == pytest.approx(0.125, abs=1e-6)


def test_label_smoothing_mixes_the_flipped_label():
    pair = batch([-100.0], [-120.0], [-110.0], [-115.0])
    loss, _ = tpo_loss(pair, TpoOptions(label_smoothing=0.1))
    expected = 0.9 * math.log(1 + math.exp(-1.5)) + 0.1 * math.log(1 + math.exp(1.5))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_nll_anchor_is_the_chosen_trials_mean_over_tokens():
    pair = batch([-100.0], [-120.0], [-110.0], [-115.0])
    plain, _ = tpo_loss(pair, TpoOptions())
    anchored, metrics = tpo_loss(pair, TpoOptions(nll_weight=0.5))
    assert metrics['loss/nll'] == pytest.approx(100 / 70)
    assert (anchored - plain).item() == pytest.approx(0.5 * 100 / 70, abs=1e-6)


def test_ipo_is_the_squared_distance_from_half_of_one_over_beta():
    # the difference of log-ratios is 15 nats, the goal 1 / (2 * 0.1) = 5
    pair = batch([-100.0], [-120.0], [-110.0], [-115.0])
    loss, metrics = tpo_loss(pair, TpoOptions(loss='ipo'))
    assert loss.item() == pytest.approx((15 - 5) ** 2, rel=1e-6)
    assert metrics['rewards/margins'] == pytest.approx(1.5)


@pytest.mark.parametrize(
    'options',
    [
        TpoOptions(),
        TpoOptions(beta=0.3, loss='ipo', per_step_mean=True),
        TpoOptions(per_step_mean=True),
        TpoOptions(label_smoothing=0.2),
        TpoOptions(beta=0.5, per_step_mean=True, label_smoothing=0.1, nll_weight=0.3),
    ],
)
def test_closed_form_weights_equal_autograd_and_finite_differences(options):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 5, generator=generator, dtype=torch.float64) * 8 - 60
    chosen = values[0].clone().requires_grad_()
    rejected = values[1].clone().requires_grad_()
    pairs = batch(chosen, rejected, values[2], values[3], dtype=torch.float64)
    tpo_pair_losses(pairs, options).sum().backward()
    weight_chosen, weight_rejected = pair_weights(pairs, options)
    torch.testing.assert_close(weight_chosen, chosen.grad)
    torch.testing.assert_close(weight_rejected, rejected.grad)

    step = 1e-5
    for which, weight in ((0, weight_chosen), (1, weight_rejected)):
        moved = [values.clone(), values.clone()]
        moved[0][which] += step
        moved[1][which] -= step
        up, down = (tpo_pair_losses(batch(*m, dtype=torch.float64), options) for m in moved)
        torch.testing.assert_close((up - down) / (2 * step), weight, rtol=1e-5, atol=1e-8)


def test_extreme_margins_keep_the_loss_and_weights_finite():
    pairs = batch([-1e4, -9e4], [-9e4, -1e4], [-5e4, -5e4], [-5e4, -5e4])
    loss, _ = tpo_loss(pairs, TpoOptions())
    assert torch.isfinite(loss)
    assert all(torch.isfinite(w).all() for w in pair_weights(pairs, TpoOptions()))


@pytest.mark.parametrize(
    'bad',
    [
        {'beta': 0.0},
        {'label_smoothing': 0.5},
        {'nll_weight': -1.0},
        {'beta': float('nan')},
        {'loss': 'hinge'},
        {'label_smoothing': 0.1, 'loss': 'ipo'},
    ],
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TpoOptions(**bad)


def test_pair_batch_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match='shapes'):
        batch([-1.0, -2.0], [-1.0], [-1.0], [-1.0])
