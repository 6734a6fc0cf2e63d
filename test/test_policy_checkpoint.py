"""Checkpoint folders: everything in its place, or an error that names what is not."""

import json

import pytest
import torch
from policy_tiny import STATISTICS, observation, tiny_checkpoint
from safetensors.torch import load_file, save_file

from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import (
    CheckpointError,
    folder_sha256,
    load_checkpoint,
    parse_config,
    save_checkpoint,
)
from grape_policy_node.openvla.model import OpenVLA
from grape_policy_node.openvla.vision import PUBLISHED_TOWERS


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tiny_checkpoint(), tmp_path / 'tiny')


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


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


def test_a_missing_shard_is_named(tmp_path):
    sharded = save_checkpoint(tiny_checkpoint(), tmp_path / 'sharded', shard_bytes=100_000)
    lost = sorted(sharded.glob('model-*.safetensors'))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_checkpoint(sharded)


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    one, same, other = (tiny_checkpoint(seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one['projector.fc1.weight'], other['projector.fc1.weight'])


def test_a_missing_and_an_unexpected_weight_are_named(folder):
    state = load_file(folder / 'model.safetensors')
    state['projector.fc9.weight'] = state.pop('projector.fc1.weight')
    save_file(state, folder / 'model.safetensors')
    with pytest.raises(CheckpointError, match=r'projector\.fc1\.weight.*projector\.fc9\.weight'):
        load_checkpoint(folder)


def test_a_weight_of_another_shape_is_named(folder):
    edit_json(folder / 'config.json', pad_to_multiple_of=64)
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['vocab_size'] += 64
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r'embed_tokens\.weight: found \(1024, 48\)'):
        load_checkpoint(folder)


def test_a_truncated_file_is_an_error_that_names_it(folder):
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r'model\.safetensors is not a readable'):
        load_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r'config\.json does not exist; expected an OpenVLA'):
        load_checkpoint(tmp_path / 'nowhere')


def test_unknown_towers_without_sizes_say_what_to_add(folder):
    edit_json(folder / 'config.json', vision_configs=None)
    with pytest.raises(CheckpointError, match="Add a list 'vision_configs'"):
        load_checkpoint(folder)


def test_dataset_statistics_replace_the_configs_norm_stats(folder):
    replaced = {'mine': STATISTICS['libero_test']}
    (folder / 'dataset_statistics.json').write_text(json.dumps(replaced))
    assert Engine.load(folder).unnorm_key == 'mine'
    (folder / 'dataset_statistics.json').unlink()
    assert Engine.load(folder).unnorm_key == 'libero_test'


def test_an_unknown_unnorm_key_is_an_error_that_lists_the_keys(folder):
    with pytest.raises(CheckpointError, match="'libero_spatial'.*have: libero_test"):
        Engine.load(folder, unnorm_key='libero_spatial')


def test_two_statistics_need_a_choice():
    two = {'a': STATISTICS['libero_test'], 'b': STATISTICS['libero_test']}
    with pytest.raises(CheckpointError, match='no unnorm_key was given.*a, b'):
        Engine(tiny_checkpoint(statistics=two))
    assert Engine(tiny_checkpoint(statistics=two), 'b').unnorm_key == 'b'


def test_the_folder_hash_changes_with_weights_and_statistics(folder):
    before = folder_sha256(folder)
    assert before == folder_sha256(folder)
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
