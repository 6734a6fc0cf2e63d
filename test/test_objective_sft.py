"""SFT's loss against numbers worked out by hand."""

import math

import pytest
import torch

from grape_trainer.objective.sft import sft_loss


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
