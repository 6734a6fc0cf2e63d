"""LoRA adapters: which one acts, which one learns, and what is written."""

import json

import numpy as np
import pytest
import torch
from policy_tiny import MILK, observation, picture, tiny_checkpoint
from safetensors.torch import load_file, save_file

from grape_policy_node.adapters import AdapterError, adapter_id
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import CheckpointError, save_checkpoint

IDS = np.full((1, 7), 800)


@pytest.fixture
def engine():
    return Engine(tiny_checkpoint())


def log_probs(engine):
    with torch.no_grad():
        return engine.trajectory_log_probs(picture(0)[None], MILK, IDS)


def train(engine, name, seed=0):
    """Move an adapter away from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in engine.adapters.parameters(name):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def trainable(engine):
    return {name for name, p in engine.model.named_parameters() if p.requires_grad}


def test_a_new_adapter_equals_the_base_and_only_it_is_trainable(engine):
    base = log_probs(engine)
    engine.adapters.new('tpo', seed=0)
    assert torch.equal(log_probs(engine), base)
    assert engine.adapter_id == 'tpo'
    assert trainable(engine) and all('.tpo.' in name for name in trainable(engine))


def test_every_linear_layer_that_runs_learns_and_the_tail_has_no_adapter(engine):
    engine.adapters.new('tpo', seed=0)
    engine.trajectory_log_probs(picture(0)[None], MILK, IDS).sum().backward()
    parameters = engine.adapters.parameters('tpo')
    assert all(p.grad is not None for p in parameters)
    names = ' '.join(trainable(engine))
    for layer in ('patch_embed.proj', 'attn.qkv', 'mlp.fc2', 'projector.fc3', 'k_proj', 'lm_head'):
        assert layer in names
    assert 'attn_pool' not in names and 'featurizer.blocks.2.' not in names


def test_the_seed_decides_an_adapters_start_and_leaves_the_global_generator():
    starts = []
    for seed in (1, 1, 2):
        engine = Engine(tiny_checkpoint())
        torch.manual_seed(7)
        engine.adapters.new('a', seed)
        drawn = torch.rand(1)
        torch.manual_seed(7)
        assert torch.equal(drawn, torch.rand(1))
        starts.append(engine.adapters.parameters('a')[0].detach().clone())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_what_was_saved_acts_the_same_in_a_fresh_engine(engine, tmp_path):
    engine.adapters.new('tpo', seed=0)
    train(engine, 'tpo')
    expected = log_probs(engine)
    saved = engine.adapters.save('tpo', tmp_path / 'iteration1')
    assert saved == adapter_id(tmp_path / 'iteration1') and saved.startswith('iteration1-')
    fresh = Engine(tiny_checkpoint())
    assert fresh.load_adapter(tmp_path / 'iteration1') == saved
    assert fresh.adapter_id == 'base'
    fresh.set_adapter(saved)
    torch.testing.assert_close(log_probs(fresh), expected, atol=1e-6, rtol=0)


def test_acting_and_scoring_agree_with_an_adapter(engine):
    engine.adapters.new('tpo', seed=0)
    train(engine, 'tpo')
    engine.set_adapter('tpo')
    prediction = engine.predict([observation(0)])[0]
    with torch.no_grad():
        scored = engine.trajectory_log_probs(picture(0)[None], MILK, prediction.token_ids[None])
    np.testing.assert_allclose(scored[0].numpy(), prediction.log_probs, atol=1e-4)


def test_several_resident_adapters_switch_back_and_forth(engine):
    base = log_probs(engine)
    outputs = {'base': base}
    for seed, name in enumerate(('sft', 'tpo')):
        engine.adapters.new(name, seed)
        train(engine, name, seed)
        outputs[name] = log_probs(engine)
    assert not torch.allclose(outputs['sft'], outputs['tpo'])
    for name in ('sft', 'base', 'tpo', 'sft', 'base'):
        engine.set_adapter(name)
        assert torch.equal(log_probs(engine), outputs[name])
        decoded = engine.predict([observation(0)])[0]
        assert engine.adapter_id == name and np.isfinite(decoded.log_probs).all()
        assert not trainable(engine)


def test_acting_follows_the_adapter(engine):
    engine.adapters.new('tpo', seed=0)
    train(engine, 'tpo')
    engine.set_adapter('tpo')
    with_adapter = engine.predict([observation(0)])[0].log_probs
    engine.set_adapter('base')
    assert not np.allclose(engine.predict([observation(0)])[0].log_probs, with_adapter)
    engine.set_adapter('tpo')
    np.testing.assert_array_equal(engine.predict([observation(0)])[0].log_probs, with_adapter)


def test_an_adapter_trained_further_acts_as_it_is_now(engine):
    """Fused optimizers do not count their changes; the merged copy must still be made again."""
    engine.adapters.new('tpo', seed=0)
    engine.set_adapter('tpo')
    before = engine.predict([observation(0)])[0]
    engine.adapters.activate('tpo', trainable=True)
    optimizer = torch.optim.AdamW(engine.adapters.parameters('tpo'), lr=0.05, fused=True)
    for _ in range(3):
        engine.trajectory_log_probs(picture(0)[None], MILK, IDS).sum().backward()
        optimizer.step()
    learning = engine.predict([observation(0)])[0]
    engine.set_adapter('tpo')
    after = engine.predict([observation(0)])[0]
    assert not np.allclose(before.log_probs, after.log_probs)
    np.testing.assert_allclose(learning.log_probs, after.log_probs, atol=1e-4)


@pytest.mark.parametrize('reference', ['base', 'sft'])
def test_the_reference_is_frozen_and_leaves_the_gradients_alone(engine, reference):
    base = log_probs(engine)
    engine.adapters.new('sft', seed=0)
    train(engine, 'sft')
    expected = {'base': base, 'sft': log_probs(engine)}[reference]
    engine.adapters.new('tpo', seed=1)
    train(engine, 'tpo', seed=1)
    asked = trainable(engine)
    policy = engine.trajectory_log_probs(picture(0)[None], MILK, IDS)
    with engine.adapters.reference(reference):
        frozen = engine.trajectory_log_probs(picture(0)[None], MILK, IDS)
        assert not frozen.requires_grad and torch.equal(frozen, expected)
    assert engine.adapter_id == 'tpo' and trainable(engine) == asked
    policy.sum().backward()
    assert all(p.grad is not None for p in engine.adapters.parameters('tpo'))
    assert all(p.grad is None for p in engine.adapters.parameters('sft'))


def test_an_id_names_the_content(engine, tmp_path):
    engine.adapters.new('tpo', seed=0)
    first = engine.adapters.save('tpo', tmp_path / 'a')
    train(engine, 'tpo')
    second = engine.adapters.save('tpo', tmp_path / 'a')
    assert first != second and first[:2] == second[:2] == 'a-'


def test_loading_the_same_adapter_twice_keeps_one(engine, tmp_path):
    engine.adapters.new('tpo.1', seed=0)
    engine.adapters.save('tpo.1', tmp_path / 'v1.0')
    first, second = engine.load_adapter(tmp_path / 'v1.0'), engine.load_adapter(tmp_path / 'v1.0')
    assert first == second and engine.adapters.names == ('tpo.1', first)


def test_loading_another_adapter_leaves_the_learning_one_learning(engine, tmp_path):
    engine.adapters.new('sft', seed=0)
    engine.adapters.save('sft', tmp_path / 'sft')
    engine.adapters.new('tpo', seed=1)
    asked = trainable(engine)
    engine.load_adapter(tmp_path / 'sft')
    assert engine.adapter_id == 'tpo' and trainable(engine) == asked


def test_a_folder_without_adapter_says_what_was_expected(engine, tmp_path):
    with pytest.raises(AdapterError, match=r'expected adapter_config\.json'):
        engine.load_adapter(tmp_path)


def test_a_pickled_adapter_says_what_to_do(engine, tmp_path):
    (tmp_path / 'adapter_config.json').write_text('{}')
    (tmp_path / 'adapter_model.bin').touch()
    with pytest.raises(AdapterError, match='save the adapter with safetensors'):
        engine.load_adapter(tmp_path)


@pytest.mark.filterwarnings('ignore:Unexpected keyword')
@pytest.mark.parametrize(
    ('change', 'kind'), [({'use_dora': True}, 'DoRA'), ({'peft_type': 'IA3'}, 'IA3')]
)
def test_an_adapter_of_another_kind_is_refused(engine, tmp_path, change, kind):
    engine.adapters.new('tpo', seed=0)
    engine.adapters.save('tpo', tmp_path / 'a')
    path = tmp_path / 'a' / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=f'{kind}; expected plain LoRA'):
        engine.load_adapter(tmp_path / 'a')


def test_an_unknown_name_lists_the_residents(engine):
    engine.adapters.new('tpo', seed=0)
    with pytest.raises(AdapterError, match=r"'dpo' is not resident; resident: \('base', 'tpo'\)"):
        engine.set_adapter('dpo')


def test_a_foreign_adapter_is_refused_and_changes_nothing(engine, tmp_path):
    engine.adapters.new('tpo', seed=0)
    train(engine, 'tpo')
    before = log_probs(engine)
    engine.adapters.save('tpo', tmp_path / 'a')
    weights = tmp_path / 'a' / 'adapter_model.safetensors'
    state = load_file(weights)
    lost = sorted(state)[0]
    del state[lost]
    save_file(state, weights)
    with pytest.raises(AdapterError, match='not an adapter of this model: missing'):
        engine.load_adapter(tmp_path / 'a')
    assert engine.adapters.names == ('tpo',) and engine.adapter_id == 'tpo'
    assert torch.equal(log_probs(engine), before)


def test_an_adapter_that_carries_another_bases_weights_is_refused(engine, tmp_path):
    """Peft saves the head along when it is a target; it must not replace this base's."""
    engine.adapters.new('tpo', seed=0)
    engine.adapters.save('tpo', tmp_path / 'a')
    weights = tmp_path / 'a' / 'adapter_model.safetensors'
    head = 'base_model.model.language_model.lm_head.base_layer.weight'
    own = engine.model.state_dict()['language_model.lm_head.base_layer.weight']
    state = load_file(weights)
    save_file({**state, head: own.clone()}, weights)
    engine.load_adapter(tmp_path / 'a')
    save_file({**state, head: own + 1.0}, weights)
    with pytest.raises(AdapterError, match='trained on another base'):
        engine.load_adapter(tmp_path / 'a')


def test_a_base_with_adapters_attached_is_not_saved_as_a_checkpoint(engine, tmp_path):
    engine.adapters.new('tpo', seed=0)
    with pytest.raises(CheckpointError, match='LoRA layers attached'):
        save_checkpoint(engine.checkpoint, tmp_path / 'merged')
