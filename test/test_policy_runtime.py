"""A step eagerly, compiled or quantised: the same tokens, and a warning instead of a crash."""

import logging

import numpy as np
import pytest
import torch
from policy_tiny import MILK, observation, picture, tiny_checkpoint

from grape_policy_node.engine import Engine
from grape_policy_node.openvla import action_step
from grape_policy_node.openvla.action_step import CompiledStep, choose_runtime
from grape_policy_node.openvla.decoding import TokenChoice, exponential_noise
from grape_policy_node.openvla.quantize import quantize_language_model


def frozen(**options):
    engine = Engine(tiny_checkpoint(), **options)
    engine.set_adapter('base')
    return engine


def test_the_noise_draws_what_multinomial_draws_row_by_row():
    """Recorded trials stay reproducible: the draws are torch.multinomial's on the CPU."""
    logits = torch.randn(7, 256, generator=torch.Generator().manual_seed(1)) * 3
    noise = exponential_noise([torch.Generator().manual_seed(5)], 256, torch.device('cpu'))
    choice = TokenChoice(0, 256, noise, torch.tensor(0.7))
    drawn = [int(choice(logits[k : k + 1], k)) for k in range(7)]
    generator = torch.Generator().manual_seed(5)
    expected = [
        int(torch.multinomial(torch.softmax(row / 0.7, -1), 1, generator=generator))
        for row in logits
    ]
    assert drawn == expected


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_whole_step_is_one_graph_without_asking_the_host(monkeypatch, temperature):
    """Fullgraph: anything that waits for a value (a sync, a branch on data) would be an error."""
    monkeypatch.setattr(
        action_step, 'CompiledStep', lambda step: CompiledStep(step, backend='eager')
    )
    compiled, eager = frozen(runtime='compile'), frozen()
    observations = [observation(1), observation(2, 'go')]
    seeds = [[torch.Generator().manual_seed(k) for k in (3, 4)] for _ in range(2)]
    one = compiled.predict(observations, temperature, seeds[0])
    two = eager.predict(observations, temperature, seeds[1])
    step = compiled._acting.current()
    assert step._compiled is not None, 'it fell back'
    for ours, theirs in zip(one, two, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-6)


def test_a_failed_compilation_is_a_warning_and_the_step_is_made(monkeypatch, caplog):
    monkeypatch.setattr(
        action_step, 'CompiledStep', lambda step: CompiledStep(step, backend=_broken)
    )
    expected = frozen().predict([observation(1)])[0].token_ids
    engine = frozen(runtime='compile')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert engine.predict([observation(1)])[0].token_ids.tolist() == expected.tolist()
    said = [record.message for record in caplog.records if 'runs eagerly' in record.message]
    assert len(said) == 1 and 'no such compiler' in said[0]


def _broken(graph, inputs):
    raise RuntimeError('no such compiler')


def test_runtimes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match='auto, eager, compile, cuda_graph'):
        choose_runtime('fast', torch.device('cpu'))
    with pytest.raises(ValueError, match='expected a CUDA device'):
        choose_runtime('cuda_graph', torch.device('cpu'))
    assert choose_runtime('auto', torch.device('cpu')) == 'eager'
    assert choose_runtime('auto', torch.device('cuda')) == 'cuda_graph'


def test_warming_up_tells_how_long_a_step_takes_and_disturbs_no_draw():
    engine = frozen()
    plain = engine.predict([observation(0)], 1.0, [torch.Generator().manual_seed(1)])[0]
    assert 0 < engine.warm_up(MILK, 1.0) < 60_000
    again = engine.predict([observation(0)], 1.0, [torch.Generator().manual_seed(1)])[0]
    assert plain.token_ids.tolist() == again.token_ids.tolist()


@pytest.mark.parametrize(('bits', 'tolerance'), [(8, 0.1), (4, 1.0)])
def test_a_quantised_policy_says_nearly_the_same(bits, tolerance):
    pytest.importorskip('bitsandbytes')
    checkpoint = tiny_checkpoint()
    quantize_language_model(checkpoint.model, bits, 'cpu')
    exact, rough = frozen(), Engine(checkpoint)
    rough.set_adapter('base')
    layer = rough.model.language_model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype in (torch.int8, torch.uint8)
    tokens = exact.predict([observation(0)])[0].token_ids[None]
    with torch.no_grad():
        wanted, found = (
            e.trajectory_log_probs(picture(0)[None], MILK, tokens) for e in (exact, rough)
        )
    assert 0 < (wanted - found).abs().max() < tolerance
    assert np.isfinite(rough.predict([observation(0)])[0].log_probs).all()


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match='expected 8 or 4'):
        quantize_language_model(tiny_checkpoint().model, 3, 'cpu')
