"""One two-pass engine for TPO, DPO and KTO: exact, flat in memory, and TPO's bits as they were."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from grape_trainer.dataset import BagPair, LabelledBag, TokenTrial
from grape_trainer.objective.dpo import DpoOptions, StepPairs, align, dpo_loss
from grape_trainer.objective.kto import KtoOptions, LabelledBatch, kto_losses
from grape_trainer.objective.tpo import PairBatch, TpoOptions, pair_weights, tpo_loss
from grape_trainer.trajectory_gradient import NotFiniteError, accumulate_gradient, chunks

LENGTHS = {'a': 9, 'b': 13, 'c': 6, 'd': 11}
PAIRS = [BagPair(f'pair {c}{r}', Path(c), Path(r)) for c, r in ('ab', 'cd', 'ad')]
TRIALS = [LabelledBag(f'trial {n}', Path(n), n in 'ac') for n in 'abcd']
FEATURES, VOCABULARY = 5, 11


class ToyPolicy:
    """A linear softmax policy; a step's features lie in its picture."""

    def __init__(self, dtype=torch.float64, lengths=LENGTHS):
        generator = torch.Generator().manual_seed(0)
        numbers = np.random.default_rng(0)
        self.weights = torch.randn(FEATURES, 7 * VOCABULARY, generator=generator, dtype=dtype)
        self.weights.requires_grad_()
        self.trials = {}
        for name, steps in lengths.items():
            self.trials[Path(name)] = TokenTrial(
                episode_id=name, path=Path(name), task='test/0', init_state=0, instruction='',
                adapter_id='base',
                images=numbers.normal(size=(steps, FEATURES, 1, 1)),
                token_ids=torch.from_numpy(numbers.integers(0, VOCABULARY, (steps, 7))),
                log_probs=torch.zeros(steps, 7),
            )  # fmt: skip
        with torch.no_grad():
            found = {p: self.log_probs(t, 0, t.steps) for p, t in self.trials.items()}
        noise = torch.Generator().manual_seed(1)
        self.reference = {
            p: v + 0.3 * torch.randn(v.shape, generator=noise, dtype=dtype)
            for p, v in found.items()
        }

    def log_probs(self, trial, start, stop):
        features = torch.from_numpy(trial.images[start:stop, :, 0, 0]).to(self.weights)
        logits = (features @ self.weights).view(-1, 7, VOCABULARY).log_softmax(-1)
        return logits.gather(-1, trial.token_ids[start:stop, :, None])[..., 0]

    def whole(self, bag):
        trial = self.trials[bag]
        return self.log_probs(trial, 0, trial.steps)

    def two_pass(self, examples, objective, chunk_steps):
        self.weights.grad = None
        done = accumulate_gradient(
            examples, self.trials.get, self.log_probs, self.reference, objective, chunk_steps
        )
        return self.weights.grad.clone(), done.metrics


def naive_tpo(policy, options):
    def sums(of, bags):
        return torch.stack([of(bag).sum() for bag in bags])

    chosen, rejected = [p.chosen for p in PAIRS], [p.rejected for p in PAIRS]
    lengths = [torch.tensor([float(LENGTHS[b.name]) for b in bags]) for bags in (chosen, rejected)]
    batch = PairBatch(
        sums(policy.whole, chosen), sums(policy.whole, rejected),
        sums(policy.reference.get, chosen), sums(policy.reference.get, rejected),
        *lengths, 7 * lengths[0],
    )  # fmt: skip
    return tpo_loss(batch, options)[0]


def naive_dpo(policy, options):
    losses = []
    for pair in PAIRS:
        bags = pair.chosen, pair.rejected
        steps = align(*(LENGTHS[bag.name] for bag in bags), options, pair.name)
        live = [policy.whole(bag)[i].sum(-1) for bag, i in zip(bags, steps, strict=True)]
        ref = [policy.reference[bag][i].sum(-1) for bag, i in zip(bags, steps, strict=True)]
        losses.append(dpo_loss(StepPairs(*live, *ref, 7), options))
    return torch.stack(losses).mean()


def naive_kto(policy, options):
    batch = LabelledBatch(
        torch.stack([policy.whole(t.bag).sum() for t in TRIALS]),
        torch.stack([policy.reference[t.bag].sum() for t in TRIALS]),
        torch.tensor([float(LENGTHS[t.bag.name]) for t in TRIALS]),
        torch.tensor([t.desirable for t in TRIALS]),
    )
    return kto_losses(batch, options).mean()


@pytest.mark.parametrize('chunk_steps', [1, 4, 100])
@pytest.mark.parametrize(
    ('naive', 'examples', 'options'),
    [
        (naive_tpo, PAIRS, TpoOptions(label_smoothing=0.1, nll_weight=0.5)),
        (naive_tpo, PAIRS, TpoOptions(loss='ipo', per_step_mean=True)),
        (naive_dpo, PAIRS, DpoOptions(nll_weight=0.5)),
        (naive_dpo, PAIRS, DpoOptions(alignment='stretch', label_smoothing=0.1)),
        (naive_dpo, PAIRS, DpoOptions(alignment='random', seed=3)),
        (naive_kto, TRIALS, KtoOptions(reference_point='batch_mean', undesirable_weight=2.0)),
        (naive_kto, TRIALS, KtoOptions(per_step_mean=True, beta=1.0)),
    ],
)
def test_two_pass_gradient_equals_autograd_through_whole_trials(
    naive, examples, options, chunk_steps
):
    policy = ToyPolicy()
    loss = naive(policy, options)
    loss.backward()
    expected = policy.weights.grad.clone()
    found, metrics = policy.two_pass(examples, options, chunk_steps)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert metrics['loss'] == pytest.approx(loss.item(), rel=1e-10)


@pytest.mark.parametrize('chunk_steps', [4, 100])
@pytest.mark.parametrize('options', [TpoOptions(), TpoOptions(0.3, True, 0.1, 0.5)])
def test_tpo_gives_the_bits_of_the_scalar_weights_it_had_before(options, chunk_steps):
    """One weight a trial, the loss a chunk's sum times it: what TPO was before DPO and KTO."""
    policy = ToyPolicy(torch.float32)
    bags = [Path(n) for n in 'abcd']
    with torch.no_grad():
        total = {
            bag: torch.stack([
                policy.log_probs(policy.trials[bag], *span).double().sum()
                for span in chunks(LENGTHS[bag.name], chunk_steps)
            ]).sum()
            for bag in bags
        }  # fmt: skip

    def column(values):
        return torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])

    batch = PairBatch(
        *(column([total[b] for b in side]) for side in zip(*map(_sides, PAIRS), strict=True)),
        *(
            column([policy.reference[b].double().sum() for b in side])
            for side in zip(*map(_sides, PAIRS), strict=True)
        ),
        *(
            column([LENGTHS[b.name] for b in side])
            for side in zip(*map(_sides, PAIRS), strict=True)
        ),
        column([7 * LENGTHS[p.chosen.name] for p in PAIRS]),
    )
    factors = dict.fromkeys(bags, 0.0)
    for pair, up, down in zip(
        PAIRS, *(w.tolist() for w in pair_weights(batch, options)), strict=True
    ):
        factors[pair.chosen] += up / len(PAIRS)
        factors[pair.rejected] += down / len(PAIRS)
    for bag in bags:
        for span in chunks(LENGTHS[bag.name], chunk_steps):
            (policy.log_probs(policy.trials[bag], *span).sum() * factors[bag]).backward()
    before = policy.weights.grad.clone()
    assert torch.equal(policy.two_pass(PAIRS, options, chunk_steps)[0], before)


def _sides(pair):
    return pair.chosen, pair.rejected


@pytest.mark.parametrize(
    ('examples', 'options'),
    [
        (PAIRS, TpoOptions()),
        (PAIRS, DpoOptions(alignment='stretch')),
        (TRIALS, KtoOptions(reference_point='zero')),
    ],
)
def test_memory_that_graphs_hold_does_not_grow_with_the_trials(examples, options):
    peaks = [_peak_saved_bytes(examples, options, longer) for longer in (1, 20)]
    assert peaks[0] == peaks[1] > 0


def _peak_saved_bytes(examples, options, longer):
    """Most bytes that autograd keeps at once for the backward pass."""
    policy = ToyPolicy(lengths={name: 6 * longer for name in LENGTHS})
    held = {'now': 0, 'peak': 0}

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            held['now'] += tensor.nbytes
            held['peak'] = max(held.values())

        def __del__(self):
            held['now'] -= self.tensor.nbytes

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        policy.two_pass(examples, options, 3)
    return held['peak']


def test_steps_that_dpo_does_not_use_are_not_run_again():
    policy, calls = ToyPolicy(), []

    def counted(trial, start, stop):
        calls.append((trial.episode_id, start))
        return policy.log_probs(trial, start, stop)

    # c has 6 steps and d 11: of d's chunks at 0, 3, 6 and 9 the last two have no weight.
    accumulate_gradient(PAIRS[1:2], policy.trials.get, counted, policy.reference, DpoOptions(), 3)
    starts = [start for name, start in calls if name == 'd']
    assert sorted(starts) == [0, 0, 3, 3, 6, 9]


def test_not_finite_log_probability_names_the_trial():
    policy = ToyPolicy()
    policy.reference[Path('d')][3, 2] = -torch.inf
    with pytest.raises(NotFiniteError, match='trial d: .*ref_trial -inf'):
        policy.two_pass(TRIALS, KtoOptions(), 4)
    with pytest.raises(NotFiniteError, match='pair cd: .*ref_rejected -inf'):
        policy.two_pass(PAIRS, DpoOptions(), 4)
