"""Two passes in flat memory give the gradient of the naive loss over whole trials."""

import math
from pathlib import Path

import learner_policy
import numpy as np
import pytest
import torch

from grape_trainer.dataset import BagPair, pixel_values, resize_images
from grape_trainer.objective.tpo import PairBatch, TpoOptions, tpo_loss
from grape_trainer.preference_run import policy_log_probs
from grape_trainer.trajectory_gradient import NotFiniteError, accumulate_gradient

LENGTHS = {'a': 9, 'b': 13, 'c': 6, 'd': 11}
PAIRS = [BagPair(f'pair {c}{r}', Path(c), Path(r)) for c, r in ('ab', 'cd', 'ad')]


@pytest.fixture(scope='module')
def case():
    """An adapter that has moved off its reference, four trials, the reference's numbers."""
    engine = learner_policy.fresh_engine()
    trials = {
        Path(n): learner_policy.made_up_trial(engine, n, steps, seed)
        for seed, (n, steps) in enumerate(LENGTHS.items())
    }
    reference = {path: trial.log_probs.clone() for path, trial in trials.items()}
    engine.adapters.new('trained', seed=3, rank=4, alpha=4)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if 'lora_B' in name:
                parameter.normal_(0, 0.05, generator=generator)
    return engine, trials, reference


def naive(case, pairs, options):
    """One graph over all steps of all trials; returns (loss, metrics)."""
    engine, trials, reference = case
    log_probs = policy_log_probs(engine)

    def total(bag):
        return log_probs(trials[bag], 0, trials[bag].steps).double().sum()

    def column(values):
        return torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])

    batch = PairBatch(
        chosen=column([total(p.chosen) for p in pairs]),
        rejected=column([total(p.rejected) for p in pairs]),
        ref_chosen=column([reference[p.chosen].double().sum() for p in pairs]),
        ref_rejected=column([reference[p.rejected].double().sum() for p in pairs]),
        chosen_steps=column([trials[p.chosen].steps for p in pairs]),
        rejected_steps=column([trials[p.rejected].steps for p in pairs]),
        chosen_tokens=column([7 * trials[p.chosen].steps for p in pairs]),
    )
    return tpo_loss(batch, options)


def gradients(case, run):
    """Run and return the trained parameters' gradients."""
    trained = {n: p for n, p in case[0].model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.grad = None
    run()
    return {n: p.grad.clone() for n, p in trained.items()}


def two_pass(case, pairs, options, chunk_steps, parameters=()):
    engine, trials, reference = case
    return accumulate_gradient(
        pairs, trials.get, policy_log_probs(engine), reference, options, chunk_steps,
        parameters=parameters,
    )  # fmt: skip


@pytest.mark.parametrize('chunk_steps', [1, 4, 100])
@pytest.mark.parametrize(
    'options',
    [TpoOptions(), TpoOptions(per_step_mean=True, label_smoothing=0.1, nll_weight=0.5)],
)
def test_two_pass_gradient_equals_the_naive_one(case, options, chunk_steps):
    found = {}
    whole = gradients(case, lambda: naive(case, PAIRS, options)[0].backward())
    parts = gradients(
        case, lambda: found.update(two_pass(case, PAIRS, options, chunk_steps).metrics)
    )
    assert max(g.abs().max() for g in whole.values()) > 1e-4
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)
    expected = naive(case, PAIRS, options)[1]
    assert found.keys() == expected.keys()
    assert all(found[n] == pytest.approx(expected[n], abs=1e-4) for n in found)


@pytest.mark.parametrize(
    'options',
    [TpoOptions(), TpoOptions(per_step_mean=True, label_smoothing=0.1, nll_weight=0.5)],
)
def test_one_pass_gradient_equals_that_of_two(case, options):
    parameters = case[0].adapters.parameters('trained')
    done = []
    two = gradients(case, lambda: done.append(two_pass(case, PAIRS, options, 4)))
    one = gradients(case, lambda: done.append(two_pass(case, PAIRS, options, 4, parameters)))
    assert done[0].metrics == done[1].metrics
    for name in two:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_one_pass_adds_to_the_gradient_that_is_there(case):
    parameters, options = case[0].adapters.parameters('trained'), TpoOptions()
    once = gradients(case, lambda: two_pass(case, PAIRS, options, 4, parameters))
    twice = gradients(
        case, lambda: [two_pass(case, PAIRS, options, 4, parameters) for _ in range(2)]
    )
    for name in once:
        torch.testing.assert_close(twice[name], 2 * once[name])


def test_gradient_descends_the_loss(case):
    options = TpoOptions()
    trained = {n: p for n, p in case[0].model.named_parameters() if p.requires_grad}
    gradient = gradients(case, lambda: two_pass(case, PAIRS, options, 4))
    direction = {
        n: torch.randn(p.shape, generator=torch.Generator().manual_seed(7))
        for n, p in trained.items()
    }
    slope = sum((gradient[n] * direction[n]).sum().item() for n in trained)
    values, step = [], 1e-3
    for sign in (1, -2):
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.add_(direction[name], alpha=sign * step)
            values.append(naive(case, PAIRS, options)[0].item())
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.add_(direction[name], alpha=step)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=2e-2)


def test_batches_of_one_accumulate_to_the_large_batch(case):
    options = TpoOptions()
    large = gradients(case, lambda: two_pass(case, PAIRS, options, 4))
    small = gradients(case, lambda: [two_pass(case, [p], options, 4) for p in PAIRS])
    for name in large:
        torch.testing.assert_close(small[name] / len(PAIRS), large[name], rtol=1e-4, atol=1e-6)


def test_trial_shared_by_pairs_is_run_once(case):
    engine, trials, reference = case
    calls = []

    def counted(trial, start, stop):
        calls.append(trial.episode_id)
        return policy_log_probs(engine)(trial, start, stop)

    result = accumulate_gradient(PAIRS, trials.get, counted, reference, TpoOptions(), 100)
    assert sorted(calls) == sorted(2 * list('abcd'))
    assert set(result.factors) == {Path(n) for n in 'abcd'}


def test_policy_at_its_reference_costs_log_two_and_moves_every_parameter():
    engine = learner_policy.fresh_engine()
    trials = {
        Path(n): learner_policy.made_up_trial(engine, n, 5, seed) for seed, n in enumerate('ab')
    }
    reference = {path: trial.log_probs for path, trial in trials.items()}
    engine.adapters.new('trained', seed=0, rank=4, alpha=4)
    case = engine, trials, reference
    loss = []
    gradient = gradients(
        case, lambda: loss.append(two_pass(case, PAIRS[:1], TpoOptions(), 2).metrics['loss'])
    )
    assert loss[0] == pytest.approx(math.log(2), abs=1e-5)
    assert all(g.abs().max() > 0 for n, g in gradient.items() if 'lora_B' in n)


def test_not_finite_log_probability_names_the_pair(case):
    engine, trials, reference = case
    broken = {**reference, Path('d'): reference[Path('d')] * float('nan')}
    with pytest.raises(NotFiniteError, match='pair cd: .*ref_rejected nan'):
        accumulate_gradient(PAIRS, trials.get, policy_log_probs(engine), broken, TpoOptions(), 4)


def test_batched_pixels_equal_the_processors_bit_for_bit():
    engine = learner_policy.fresh_engine()
    frames = np.random.default_rng(0).integers(0, 256, (3, 61, 47, 3), dtype=np.uint8)
    expected = engine.processor.pixel_values(frames)
    resized = resize_images(frames, engine.processor.pixels.image_size)
    found = pixel_values(torch.from_numpy(resized), engine.processor.pixels)
    assert torch.equal(found, expected)
