"""Step-wise DPO against numbers worked out by hand, autograd, and what meets what."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from grape_trainer.objective.dpo import DpoOptions, StepPairs, align, dpo_loss, step_weights
from grape_trainer.objective.weighing import TrialLogProbs


def pairs(chosen, rejected, ref_chosen, ref_rejected, tokens=7):
    values = (chosen, rejected, ref_chosen, ref_rejected)
    return StepPairs(*(torch.as_tensor(v, dtype=torch.float64) for v in values), tokens)


# z_1 = 0.1 ((-7 + 9) - (-9 + 8)) = 0.3, z_2 = 0.1 ((-8 + 7) - (-6 + 6)) = -0.1
TWO = pairs([-7, -8], [-9, -6], [-9, -7], [-8, -6])
LOSSES = math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(0.1))


def test_loss_is_the_mean_over_steps_worked_out_by_hand():
    assert dpo_loss(TWO, DpoOptions()).item() == pytest.approx(sum(LOSSES) / 2, abs=1e-12)
    assert sum(LOSSES) / 2 == pytest.approx(0.6493760, abs=1e-7)


def test_each_step_has_a_weight_of_its_own():
    chosen, rejected = step_weights(TWO, DpoOptions())
    expected = [-0.1 / (1 + math.exp(z)) / 2 for z in (0.3, -0.1)]
    assert chosen.tolist() == pytest.approx(expected, abs=1e-12)
    assert rejected.tolist() == pytest.approx([-w for w in expected], abs=1e-12)


@pytest.mark.parametrize(
    'options', [DpoOptions(), DpoOptions(beta=0.7, label_smoothing=0.2, nll_weight=0.3)]
)
def test_closed_form_weights_equal_autograd(options):
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double() * 4 - 9
    chosen, rejected = values[0].clone().requires_grad_(), values[1].clone().requires_grad_()
    batch = StepPairs(chosen, rejected, values[2], values[3], 7)
    dpo_loss(batch, options).backward()
    weights = step_weights(batch, options)
    torch.testing.assert_close(weights[0], chosen.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights[1], rejected.grad, rtol=1e-12, atol=1e-14)


def test_nll_anchor_is_the_mean_over_the_aligned_tokens():
    anchored = dpo_loss(TWO, DpoOptions(nll_weight=0.5)) - dpo_loss(TWO, DpoOptions())
    assert anchored.item() == pytest.approx(0.5 * (7 + 8) / 14)


def test_index_alignment_leaves_the_longer_trials_end_out():
    chosen, rejected = align(3, 5, DpoOptions(), 'p')
    assert chosen.tolist() == rejected.tolist() == [0, 1, 2]


def test_stretched_alignment_meets_at_both_ends():
    chosen, rejected = align(3, 5, DpoOptions(alignment='stretch'), 'p')
    assert (chosen.tolist(), rejected.tolist()) == ([0, 1, 2], [0, 2, 4])


def test_random_alignment_follows_seed_and_pair_and_repeats_no_step():
    options = DpoOptions(alignment='random', seed=1)
    first, again = align(20, 30, options, 'p'), align(20, 30, options, 'p')
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [len(set(steps.tolist())) for steps in first] == [20, 20]
    others = (align(20, 30, options, 'q'), align(20, 30, DpoOptions(alignment='random'), 'p'))
    assert all(not torch.equal(first[1], other[1]) for other in others)


@dataclass(frozen=True)
class Example:
    name: str
    chosen: Path
    rejected: Path

    @property
    def bags(self):
        return {'chosen': self.chosen, 'rejected': self.rejected}


def trial(steps, ratio):
    """A trial whose every step has this log-ratio."""
    reference = torch.full((steps, 7), -1.0)
    policy = reference + ratio / 7
    return TrialLogProbs(policy, reference, policy.double().sum())


def test_every_pair_of_a_batch_counts_the_same_whatever_its_length():
    trials = {Path('a'): trial(2, 1.0), Path('b'): trial(3, 0.0), Path('c'): trial(9, -1.0)}
    batch = [Example('ab', Path('a'), Path('b')), Example('bc', Path('b'), Path('c'))]
    weighed = DpoOptions().weigh(batch, trials)
    assert weighed.metrics['loss'] == pytest.approx(math.log(1 + math.exp(-0.1)), abs=1e-6)
    slope = 0.1 / (1 + math.exp(0.1))
    # a: half of a mean over 2 steps; b: rejected over 2 steps, chosen over 3; c: its last 6, none.
    assert weighed.factors[Path('a')].tolist() == pytest.approx([-slope / 4] * 2, rel=1e-5)
    expected = [slope / 4 - slope / 6] * 2 + [-slope / 6]
    assert weighed.factors[Path('b')].tolist() == pytest.approx(expected, rel=1e-5)
    assert weighed.factors[Path('c')].tolist() == pytest.approx(
        [slope / 6] * 3 + [0] * 6, rel=1e-5
    )
    assert weighed.metrics['rewards/margins'] == pytest.approx(0.1, rel=1e-5)
    assert weighed.metrics['rewards/accuracies'] == 1.0


@pytest.mark.parametrize(
    'bad', [{'beta': 0.0}, {'alignment': 'time'}, {'label_smoothing': 0.5}, {'nll_weight': -1.0}]
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DpoOptions(**bad)


def test_step_pairs_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match='shapes'):
        pairs([-1, -2], [-1], [-1, -2], [-1, -2])
