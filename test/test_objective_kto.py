"""KTO on whole trials against numbers worked out by hand and autograd."""

import math
from dataclasses import replace

import pytest
import torch

from grape_trainer.objective.kto import (
    KtoOptions,
    LabelledBatch,
    balanced_weights,
    kto_losses,
    kto_metrics,
    reference_point,
    trial_weights,
)


def batch(ratios, desirable, steps=10.0):
    ratios = torch.as_tensor(ratios, dtype=torch.float64)
    reference = torch.full_like(ratios, -100.0)
    return LabelledBatch(
        reference + ratios, reference, torch.full_like(ratios, steps), torch.tensor(desirable)
    )


def sigma(x):
    return 1 / (1 + math.exp(-x))


# Log-ratios 8 (desirable) and -2 (undesirable): z0 = max(0, 3) = 3.
TWO = batch([8.0, -2.0], [True, False])


def test_losses_equal_the_numbers_worked_out_by_hand():
    options = KtoOptions(desirable_weight=2.0)
    found = kto_losses(TWO, options).tolist()
    # desirable: 2 (1 - sigma(0.1 (8 - 3))); undesirable: 1 - sigma(0.1 (3 + 2))
    assert found == pytest.approx([2 * (1 - sigma(0.5)), 1 - sigma(0.5)], abs=1e-12)
    assert found == pytest.approx([0.7550813, 0.3775407], abs=1e-7)


def test_reference_point_is_clamped_a_baseline_or_nothing():
    sunk = batch([-8.0, -2.0], [True, False])
    points = [
        reference_point(sunk, KtoOptions(reference_point=name)).item()
        for name in ('kl', 'batch_mean', 'zero')
    ]
    assert points == [0.0, -5.0, 0.0]
    assert reference_point(TWO, KtoOptions()).item() == 3.0


def test_policy_equal_to_its_reference_costs_half_of_each_weight():
    still = batch([0.0, 0.0], [True, False])
    assert kto_losses(still, KtoOptions(undesirable_weight=3.0)).tolist() == [0.5, 1.5]


def test_weights_pull_the_desirable_up_and_push_the_undesirable_down():
    slope = 0.1 * sigma(0.5) * sigma(-0.5)
    assert trial_weights(TWO, KtoOptions()).tolist() == pytest.approx([-slope, slope], abs=1e-12)


@pytest.mark.parametrize(
    'options',
    [
        KtoOptions(),
        KtoOptions(reference_point='batch_mean', desirable_weight=0.7, undesirable_weight=1.9),
        KtoOptions(beta=2.0, per_step_mean=True, reference_point='zero'),
    ],
)
def test_closed_form_weights_equal_autograd(options):
    generator = torch.Generator().manual_seed(0)
    ratios = torch.randn(6, generator=generator, dtype=torch.float64) * 9 + 4
    labels = [True, False, True, True, False, False]
    leaf = (ratios - 100).requires_grad_()
    steps = torch.tensor([5.0, 9, 3, 12, 7, 1], dtype=torch.float64)
    trials = replace(batch(ratios, labels), log_probs=leaf, steps=steps)
    kto_losses(trials, options).sum().backward()
    torch.testing.assert_close(trial_weights(trials, options), leaf.grad, rtol=1e-12, atol=1e-14)


def test_per_step_mean_divides_the_log_ratio_by_the_steps():
    options = KtoOptions(per_step_mean=True, reference_point='zero')
    assert kto_losses(TWO, options)[0].item() == pytest.approx(1 - sigma(0.08), abs=1e-12)


def test_a_long_trial_saturates_a_sum_and_not_a_mean():
    far = batch([-400.0, 0.0], [True, False], steps=100.0)
    summed = trial_weights(far, KtoOptions())[0].item()
    mean = trial_weights(far, KtoOptions(per_step_mean=True))[0].item()
    assert abs(summed) < 1e-15 and mean == pytest.approx(-0.1 / 100 * sigma(-0.4) * sigma(0.4))


def test_balanced_weights_give_both_classes_the_same_say():
    good, bad = balanced_weights(5, 20)
    assert (good, bad) == (2.5, 0.625)
    assert good * 5 == bad * 20 and (good * 5 + bad * 20) / 25 == 1.0
    with pytest.raises(ValueError, match='0 desirable and 4 undesirable'):
        balanced_weights(0, 4)


def test_metrics_have_trls_names_and_leave_out_a_class_that_is_absent():
    both = kto_metrics(TWO, KtoOptions())
    assert both['kl'] == 3.0 and both['logps/rejected'] == -102.0
    assert both['rewards/chosen'] == pytest.approx(0.8)
    assert both['rewards/margins'] == pytest.approx(1.0)
    assert both['log_ratio_per_step/chosen'] == pytest.approx(0.8)
    alone = kto_metrics(batch([1.0], [False]), KtoOptions())
    assert alone['count/chosen'] == 0 and alone['count/rejected'] == 1
    assert not {'rewards/chosen', 'rewards/margins', 'logps/chosen'} & set(alone)


@pytest.mark.parametrize(
    'bad', [{'beta': 0.0}, {'desirable_weight': 0.0}, {'reference_point': 'median'}]
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        KtoOptions(**bad)


def test_batch_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match='shapes'):
        batch([1.0, 2.0], [True])
