"""`grape checkpoint verify` and `info`: a difference is found and named, whatever the folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from policy_tiny import tiny_checkpoint
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from grape_bringup.cli import app
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import CheckpointError, folder_sha256, save_checkpoint
from grape_policy_node.openvla.info import describe_folder
from grape_policy_node.openvla.verify import verify_folder

DATA = Path(__file__).parent / 'data'


@pytest.fixture
def folder(tmp_path):
    """A small folder with golden files, free to be changed."""
    return Path(shutil.copytree(DATA / 'openvla_gqa', tmp_path / 'gqa'))


def change(path, name, by):
    state = load_file(path)
    state[name] = by(state[name])
    save_file(state, path)


def failed(reports):
    return {c.quantity for report in reports for c in report.comparisons if not c.ok}


def test_the_micro_checkpoint_equals_the_reference_and_says_by_which_frequencies():
    base, adapter = verify_folder(DATA / 'openvla_micro')
    assert base.ok and base.frequencies == 'rounded to bfloat16'
    assert any('with exact rotary frequencies the logits differ' in note for note in base.notes)
    assert "actions are un-normalised with 'bridge_orig'" in base.notes
    assert adapter.ok and adapter.frequencies == 'exact'
    compared = {c.quantity: c.cases for c in base.comparisons}
    assert compared == dict.fromkeys(
        ('pixel_values', 'projected_patches', 'last_logits', 'action_token_logits',
         'greedy_tokens', 'greedy_logprobs', 'action'), 4,
    )  # fmt: skip


def test_other_forms_of_the_family_equal_the_reference():
    """Grouped queries, one tower, no registers, 112 px, other vocabularies, dtypes and files."""
    base, adapter = verify_folder(DATA / 'openvla_gqa')
    assert base.ok and adapter.ok and base.frequencies == adapter.frequencies == 'exact'
    assert "actions are un-normalised with 'two'" in base.notes
    (single,) = verify_folder(DATA / 'openvla_single')
    assert single.ok and any('no action ids' in note for note in single.notes)


def test_sizes_that_no_file_declares_are_measured(folder):
    """Only the heads cannot be read off the weights."""
    (folder / 'golden.json').write_text(
        json.dumps({'dino': {'num_heads': 3}, 'siglip': {'num_heads': 2, 'strange': 1}})
    )
    assert all(report.ok for report in verify_folder(folder))


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('language_model.model.layers.1.mlp.up_proj.weight', 'last_logits'),
        ('projector.fc3.bias', 'projected_patches'),
    ],
)
def test_a_changed_weight_is_found(folder, name, found):
    change(folder / 'model.safetensors', name, lambda weight: weight * 1.05)
    reports = verify_folder(folder)
    assert found in failed(reports)
    assert any('no rotary frequencies match' in note for note in reports[0].notes)


@pytest.mark.parametrize(
    ('quantity', 'by'),
    [
        ('pixel_values', lambda x: x + 2e-6),
        ('last_logits', lambda x: x + 2e-4),
        ('greedy_tokens', lambda x: torch.cat([x[:6], x[6:] - 1])),
        ('action', lambda x: x + 1e-6),
        ('greedy_logprobs', lambda x: x * float('nan')),
    ],
)
def test_each_quantity_has_its_own_tolerance(folder, quantity, by):
    change(folder / 'golden.safetensors', f'1.{quantity}', by)
    assert quantity in failed(verify_folder(folder))


def test_a_changed_adapter_is_found(folder):
    name = 'base_model.model.projector.fc2.lora_B.weight'
    change(folder / 'adapter' / 'adapter_model.safetensors', name, lambda weight: weight * 1.5)
    base, adapter = verify_folder(folder)
    assert base.ok and not adapter.ok


def test_an_adapters_own_statistics_count_for_its_actions(folder):
    """And its golden actions are those of its own units."""
    statistics = {'mine': {'action': {'q01': [0.0] * 7, 'q99': [2.0] * 7}}}
    (folder / 'adapter' / 'dataset_statistics.json').write_text(json.dumps(statistics))
    path = folder / 'golden_adapter.safetensors'
    golden = load_file(path)
    index = (512 - golden['0.adapter.greedy_tokens'] - 1).clip(0, 254)
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
    golden['0.adapter.action'] = ((edges[:-1] + edges[1:]) / 2)[index] + 1.0
    save_file(golden, path)
    _, adapter = verify_folder(folder)
    assert adapter.ok and "actions are un-normalised with 'mine'" in adapter.notes


def test_a_folder_without_golden_files_says_what_was_expected(tmp_path):
    saved = save_checkpoint(tiny_checkpoint(), tmp_path / 'tiny')
    with pytest.raises(CheckpointError, match=r'has no golden\.safetensors.*model\.safetensors'):
        verify_folder(saved)


def test_golden_values_of_another_model_are_an_error_with_both_shapes(folder):
    change(folder / 'golden.safetensors', '0.last_logits', lambda x: x[:-64].clone())
    with pytest.raises(CheckpointError, match=r'last_logits is \(512,\); .* \(576,\)'):
        verify_folder(folder)


def test_a_truncated_golden_file_is_named(folder):
    path = folder / 'golden.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r'golden\.safetensors has .*truncated'):
        verify_folder(folder)


def test_the_command_prints_the_largest_differences_and_its_exit_code_tells(folder):
    run = CliRunner()
    equal = run.invoke(app, ['checkpoint', 'verify', str(folder)])
    assert equal.exit_code == 0 and 'equals the reference' in equal.stdout
    assert re.search(r'last_logits\s*│\s*2\s*│\s*\d\.\d+e[+-]\d+\s*│\s*1e-04', equal.stdout)
    change(folder / 'golden.safetensors', '0.last_logits', lambda x: x + 0.5)
    differs = run.invoke(app, ['checkpoint', 'verify', str(folder)])
    assert differs.exit_code == 1 and 'FAIL' in differs.stdout and '5.00e-01' in differs.stdout


def test_info_tells_sizes_statistics_and_the_hash_of_a_policy(tmp_path):
    saved = save_checkpoint(tiny_checkpoint(), tmp_path / 'tiny')
    rows = dict(describe_folder(saved))
    assert rows['sha256'] == folder_sha256(saved) == Engine.load(saved).policy_sha256
    assert rows['can be loaded'] == 'yes'
    assert '960 words and 64 rows' in rows['vocabulary'] and '704..959' in rows['vocabulary']
    assert '28 x 28' in rows['image'] and 'width 48' in rows['language model']
    assert 'dx -0.9..0.9' in rows['  libero_test'] and 'gripper as it is' in rows['  libero_test']


def test_info_reads_no_weights(folder, monkeypatch):
    """A file of zeros behind the right header is enough, and so is 15 GB."""
    path = folder / 'model.safetensors'
    header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], 'little')]
    size = path.stat().st_size
    with path.open('wb') as file:
        file.write(header)
        file.truncate(size)
    rows = dict(describe_folder(folder, hash_weights=False))
    assert rows['can be loaded'].startswith('yes') and 'not computed' in rows['sha256']
    assert 'float32' in rows['weights'] and '8 heads (2 key/value)' in rows['language model']


def test_info_says_why_a_folder_cannot_be_loaded(folder):
    (folder / 'golden.json').unlink()
    rows = dict(describe_folder(folder))
    assert "Add a list 'vision_configs'" in rows['can be loaded']
    assert 'one, two' in rows['statistics']


def test_info_of_an_adapter_tells_rank_base_and_statistics(folder):
    rows = dict(describe_folder(folder / 'adapter'))
    assert 'rank 32, alpha 16' in rows['LoRA'] and 'qkv' in rows['layers']
    assert rows['id'].startswith('adapter-') and 'no dataset_statistics.json' in rows['statistics']
    shown = CliRunner().invoke(app, ['checkpoint', 'info', str(folder / 'adapter')])
    assert shown.exit_code == 0 and 'rank 32' in shown.stdout
