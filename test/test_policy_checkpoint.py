"""Checkpoint folders: whatever the layout and the dtype, every weight in its place."""

import json
from pathlib import Path

import pytest
import torch
from policy_tiny import STATISTICS, observation, tiny_checkpoint
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import (
    CheckpointError,
    folder_sha256,
    load_checkpoint,
    parse_config,
    save_checkpoint,
    with_adapter_statistics,
)
from grape_policy_node.openvla.model import LLAMA_DEFAULTS, OpenVLA
from grape_policy_node.openvla.vision import PUBLISHED_TOWERS

SINGLE_TOWER = Path(__file__).parent / 'data' / 'openvla_single'


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tiny_checkpoint(), tmp_path / 'tiny')


def test_what_was_saved_acts_the_same_after_loading(folder):
    before = Engine(tiny_checkpoint()).predict([observation(1)])[0]
    after = Engine.load(folder).predict([observation(1)])[0]
    assert before.token_ids.tolist() == after.token_ids.tolist()
    assert before.log_probs == pytest.approx(after.log_probs, abs=1e-5)
    assert Engine.load(folder).checkpoint.statistics == STATISTICS


def test_shards_with_an_index_load_like_one_file(tmp_path, folder):
    sharded = save_checkpoint(tiny_checkpoint(), tmp_path / 'sharded', shard_bytes=100_000)
    assert len(list(sharded.glob('model-*-of-*.safetensors'))) > 2
    one = load_checkpoint(folder).model.state_dict()
    many = load_checkpoint(sharded).model.state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    one, same, other = (tiny_checkpoint(seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one['projector.fc1.weight'], other['projector.fc1.weight'])


@pytest.mark.parametrize('stored', [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_of_any_dtype_load_in_the_dtype_of_use(folder, stored, dtype):
    state = load_file(folder / 'model.safetensors')
    state = {name: weight.to(stored) for name, weight in state.items()}
    save_file(state, folder / 'model.safetensors')
    loaded = load_checkpoint(folder, dtype=dtype).model.state_dict()
    assert all(torch.equal(loaded[name], state[name].to(dtype)) for name in state)


def test_a_weight_larger_than_a_piece_is_converted_whole(folder, monkeypatch):
    monkeypatch.setattr('grape_policy_node.openvla.weights.PIECE_BYTES', 1000)
    state = load_file(folder / 'model.safetensors')
    loaded = load_checkpoint(folder, dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(loaded[name], state[name].bfloat16()) for name in state)


def test_timms_name_of_layer_scale_and_old_rotary_buffers_are_taken(folder):
    state = load_file(folder / 'model.safetensors')
    renamed = {name.replace('scale_factor', 'gamma'): weight for name, weight in state.items()}
    renamed['language_model.model.layers.0.self_attn.rotary_emb.inv_freq'] = torch.ones(6)
    assert len(renamed) == len(state) + 1 and set(renamed) & set(state) != set(state)
    save_file(renamed, folder / 'model.safetensors')
    loaded = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_single_tower_saves_and_loads(tmp_path):
    """Version 0.1: SigLIP alone, two projector layers, Vicuna's prompt."""
    loaded = load_checkpoint(SINGLE_TOWER, vision_configs=[{'num_heads': 4}])
    assert loaded.model.projector.fc3 is None
    assert loaded.processor.pixel_values([observation(0).image]).shape == (1, 3, 112, 112)
    again = load_checkpoint(save_checkpoint(loaded, tmp_path / 'again')).model.state_dict()
    state = loaded.model.state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_the_language_models_name_decides_the_prompt():
    raw = {
        'model_type': 'openvla',
        'timm_model_ids': ['vit_so400m_patch14_siglip_224'],
        'image_sizes': [224],
        'llm_backbone_id': 'vicuna-v15-7b',
    }
    assert parse_config(raw, 'v01').prompt_template == 'vicuna'
    assert parse_config(raw | {'llm_backbone_id': 'llama2-7b-pure'}, 'x').prompt_template == 'pure'
    assert parse_config(raw | {'prompt_template': 'pure'}, 'x').prompt_template == 'pure'


def test_what_a_text_config_leaves_out_is_what_the_reference_takes():
    """No version of transformers may change a checkpoint's numbers; today's agrees."""
    now = LlamaConfig()
    for key, value in LLAMA_DEFAULTS.items():
        held = now.rope_parameters['rope_theta'] if key == 'rope_theta' else getattr(now, key)
        assert held == value, key


def test_tied_words_are_one_weight(tmp_path):
    checkpoint = tiny_checkpoint()
    folder = save_checkpoint(checkpoint, tmp_path / 'tied')
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['tie_word_embeddings'] = True
    (folder / 'config.json').write_text(json.dumps(config))
    state = load_file(folder / 'model.safetensors')
    del state['language_model.lm_head.weight']
    save_file(state, folder / 'model.safetensors')
    model = load_checkpoint(folder).model
    assert (
        model.language_model.lm_head.weight is model.language_model.get_input_embeddings().weight
    )
    save_checkpoint(load_checkpoint(folder), tmp_path / 'again')
    assert 'language_model.lm_head.weight' not in load_file(tmp_path / 'again/model.safetensors')


def test_dataset_statistics_replace_the_configs_norm_stats(folder):
    replaced = {'mine': STATISTICS['libero_test']}
    (folder / 'dataset_statistics.json').write_text(json.dumps(replaced))
    assert Engine.load(folder).unnorm_key == 'mine'
    (folder / 'dataset_statistics.json').unlink()
    assert Engine.load(folder).unnorm_key == 'libero_test'


def test_an_adapters_own_statistics_replace_the_policys(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    assert with_adapter_statistics(checkpoint, tmp_path) is checkpoint
    mine = {'mine': {'action': {'q01': [0.0] * 7, 'q99': [2.0] * 7}}}
    (tmp_path / 'dataset_statistics.json').write_text(json.dumps(mine))
    adapted = with_adapter_statistics(checkpoint, tmp_path)
    key, statistics = adapted.norm_stats(None)
    assert key == 'mine' and statistics.q99.tolist() == [2.0] * 7
    assert adapted.model is checkpoint.model and checkpoint.norm_stats(None)[0] == 'libero_test'
    with pytest.raises(CheckpointError, match=f'{tmp_path} have: mine'):
        adapted.norm_stats('libero_test')


def test_the_folder_hash_changes_with_weights_and_statistics(folder):
    before = folder_sha256(folder)
    assert before == folder_sha256(folder)
    (folder / 'golden.safetensors').write_bytes(b'no weights')
    assert folder_sha256(folder) == before
    (folder / 'dataset_statistics.json').write_text(json.dumps({}))
    assert folder_sha256(folder) != before


def test_the_published_7b_config_has_the_published_shapes():
    """The sizes of openvla-7b, built without memory on the meta device."""
    raw = {
        'model_type': 'openvla',
        'timm_model_ids': list(PUBLISHED_TOWERS),
        'image_sizes': [224, 224],
        'text_config': {'model_type': 'llama', 'pad_token_id': 32000, 'vocab_size': 32064},
    }
    spec = parse_config(raw, 'openvla-7b')
    with torch.device('meta'):
        state = OpenVLA(spec).state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in state.items()}
    assert spec.vocab_size == 32000
    assert shapes['projector.fc1.weight'] == (8704, 2176)
    assert shapes['projector.fc3.weight'] == (4096, 4096)
    assert shapes['vision_backbone.featurizer.pos_embed'] == (1, 256, 1024)
    assert shapes['vision_backbone.featurizer.blocks.23.ls2.scale_factor'] == (1024,)
    assert shapes['vision_backbone.fused_featurizer.blocks.26.mlp.fc1.weight'] == (4304, 1152)
    assert shapes['vision_backbone.fused_featurizer.attn_pool.latent'] == (1, 1, 1152)
    assert shapes['language_model.model.layers.31.mlp.down_proj.weight'] == (4096, 11008)
    assert shapes['language_model.lm_head.weight'] == (32064, 4096)
    assert sum(weight.numel() for weight in state.values()) == pytest.approx(7.54e9, rel=0.01)
