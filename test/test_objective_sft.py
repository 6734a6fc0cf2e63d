"""SFT's loss against numbers worked out by hand."""

import math

import pytest
import torch

from grape_trainer.objective.sft import sft_loss, smoothed_target_loss


def test_loss_is_the_mean_over_all_tokens():
    log_probs = torch.log(torch.tensor([[0.5, 0.25], [1.0, 0.125]]))
    ids = torch.tensor([[3, 4], [5, 6]])
    loss, metrics = sft_loss(log_probs, ids.clone(), ids)
    assert loss.item() == pytest.approx((1 + 2 + 0 + 3) * math.log(2) / 4, abs=1e-6)
    assert metrics['accuracy/token'] == 1.0


def test_accuracy_counts_tokens_and_whole_steps_apart():
    ids = torch.tensor([[3, 4], [5, 6]])
    predicted = torch.tensor([[3, 4], [5, 7]])
    _, metrics = sft_loss(torch.zeros(2, 2), predicted, ids)
    assert metrics['accuracy/token'] == 0.75
    assert metrics['accuracy/step'] == 0.5


def test_gradient_of_a_token_is_minus_one_over_the_count():
    log_probs = torch.zeros(2, 7, requires_grad=True)
    sft_loss(log_probs, None, torch.zeros(2, 7, dtype=torch.int64))[0].backward()
    torch.testing.assert_close(log_probs.grad, torch.full((2, 7), -1 / 14))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match='expected the same'):
        sft_loss(torch.zeros(2, 7), None, torch.zeros(2, 6, dtype=torch.int64))


def test_smoothed_targets_prefer_a_near_bin_to_a_far_one_and_tend_to_cross_entropy() -> None:
    bins = torch.tensor([[100]])
    near, far = torch.full((1, 1, 256), -9.0), torch.full((1, 1, 256), -9.0)
    near[0, 0, 102], far[0, 0, 180] = 5.0, 5.0
    near, far = near.log_softmax(-1), far.log_softmax(-1)
    assert smoothed_target_loss(near, bins, 4.0) < smoothed_target_loss(far, bins, 4.0)
    assert smoothed_target_loss(near, bins, 0.05).item() == pytest.approx(-near[0, 0, 100].item())
    with pytest.raises(ValueError, match='above 0'):
        smoothed_target_loss(near, bins, 0.0)
