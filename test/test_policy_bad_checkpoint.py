"""Checkpoints that cannot be used: the error names what is wrong, and comes before any command."""

import json

import pytest
import torch
from policy_tiny import STATISTICS, edit_json, tiny_checkpoint
from safetensors.torch import load_file, save_file

from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tiny_checkpoint(), tmp_path / 'tiny')


def test_a_missing_shard_is_named(tmp_path):
    sharded = save_checkpoint(tiny_checkpoint(), tmp_path / 'sharded', shard_bytes=100_000)
    lost = sorted(sharded.glob('model-*.safetensors'))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_checkpoint(sharded)


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


@pytest.mark.parametrize(
    ('kept', 'message'),
    [
        (
            slice(-1),
            r'model\.safetensors has \d+ bytes, its header says \d+: the file is truncated',
        ),
        (slice(5000), r'model\.safetensors is not a readable'),
        (slice(4), r'model\.safetensors is not a readable'),
    ],
)
def test_a_truncated_file_is_an_error_that_names_it(folder, kept, message):
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[kept])
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_truncated_shard_is_found_before_any_weight_is_read(tmp_path, monkeypatch):
    sharded = save_checkpoint(tiny_checkpoint(), tmp_path / 'sharded', shard_bytes=100_000)
    last = sorted(sharded.glob('model-*.safetensors'))[-1]
    last.write_bytes(last.read_bytes()[:-7])
    monkeypatch.setattr('grape_policy_node.openvla.checkpoint.load_weights', pytest.fail)
    with pytest.raises(CheckpointError, match=last.name):
        load_checkpoint(sharded)


def test_a_quantised_checkpoint_is_refused(folder):
    state = load_file(folder / 'model.safetensors')
    state['projector.fc1.weight'] = state['projector.fc1.weight'].to(torch.int8)
    save_file(state, folder / 'model.safetensors')
    with pytest.raises(CheckpointError, match=r'fc1\.weight.* is I8; expected one of'):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model_type': 'llava'}, "model_type 'llava'.*expected 'openvla'"),
        ({'text_config': {'model_type': 'mistral'}}, "text_config.model_type 'mistral'"),
        ({'text_config': {'hidden_act': 'gelu'}}, "hidden_act 'gelu'; expected 'silu'"),
        ({'timm_override_act_layers': ['quick_gelu', None]}, 'quick_gelu'),
        ({'timm_model_ids': ['a', 'b', 'c']}, 'one tower or two'),
        ({'use_fused_vision_backbone': False}, 'expected true for two towers'),
        ({'prompt_template': 'chatml'}, "'chatml' is not one of: pure, vicuna"),
        ({'image_sizes': [28, 42]}, 'image_sizes says 42 px; they must agree'),
    ],
)
def test_another_architecture_is_refused_by_name(folder, change, message):
    edit_json(folder / 'config.json', **change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_relatives_of_a_checkpoint_are_told_apart(folder, tmp_path):
    """An OFT checkpoint, an adapter given as the policy, pickled weights."""
    (folder / 'action_head--50000_checkpoint.pt').touch()
    with pytest.raises(CheckpointError, match='OpenVLA-OFT'):
        load_checkpoint(folder)
    adapter = tmp_path / 'adapter'
    adapter.mkdir()
    (adapter / 'adapter_config.json').write_text(
        '{"base_model_name_or_path": "openvla/openvla-7b"}'
    )
    with pytest.raises(
        CheckpointError, match=r'LoRA adapter.*Give its base \(openvla/openvla-7b\)'
    ):
        load_checkpoint(adapter)
    (folder / 'action_head--50000_checkpoint.pt').unlink()
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='pickled weights, which are not read'):
        load_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r'config\.json does not exist; expected an OpenVLA'):
        load_checkpoint(tmp_path / 'nowhere')


def test_unknown_towers_without_sizes_say_what_to_add(folder):
    edit_json(folder / 'config.json', vision_configs=None)
    with pytest.raises(CheckpointError, match="Add a list 'vision_configs'"):
        load_checkpoint(folder)


def test_an_unknown_unnorm_key_is_an_error_that_lists_the_keys(folder):
    with pytest.raises(CheckpointError, match="'libero_spatial'.*have: libero_test"):
        Engine.load(folder, unnorm_key='libero_spatial')


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'proprio': {}}, "expected an entry 'action'"),
        ({'action': {'mean': [0.0] * 7}}, r"lack \['q01', 'q99'\]; found \['mean'\]"),
        ({'action': {'q01': [0.0] * 6, 'q99': [1.0] * 6}}, r'expected \(7,\) each'),
    ],
)
def test_statistics_without_percentiles_say_what_they_have(folder, entry, message):
    (folder / 'dataset_statistics.json').write_text(json.dumps({'mine': entry}))
    with pytest.raises(CheckpointError, match=message):
        Engine.load(folder)


def test_two_statistics_need_a_choice():
    two = {'a': STATISTICS['libero_test'], 'b': STATISTICS['libero_test']}
    with pytest.raises(CheckpointError, match='no unnorm_key was given.*a, b'):
        Engine(tiny_checkpoint(statistics=two))
    assert Engine(tiny_checkpoint(statistics=two), 'b').unnorm_key == 'b'
