"""`train_tpo` on recorded bags: adapter out, resume, reference, and its refusals."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import learner_bags
import learner_policy
import pytest
import torch
from safetensors.torch import load_file

from grape_policy_node.engine import Engine
from grape_trainer.dataset import DataError
from grape_trainer.reference import PolicyMismatchError
from grape_trainer.run_folder import read_metrics
from grape_trainer.scoring.preference import PairingError
from grape_trainer.train_tpo import train_tpo
from grape_trainer.training_config import TpoConfig

CONFIG = TpoConfig(
    lr=1e-3, batch_size=2, epochs=3, lora_rank=4, lora_alpha=4, chunk_steps=8, checkpoint_every=1
)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A policy, four bags of its trials and their 2 x 2 pairs."""
    folder = tmp_path_factory.mktemp('tpo')
    learner_policy.write_policy(folder / 'policy')
    engine = Engine.load(folder / 'policy')
    bags = [
        learner_bags.write_policy_bag(
            folder / 'bags', learner_policy.made_up_trial(engine, n, t, i)
        )
        for i, (n, t) in enumerate((('a', 9), ('b', 12), ('c', 7), ('d', 10)))
    ]
    learner_bags.write_pairs_file(
        folder / 'pairs.json', [(c, r) for c in bags[:2] for r in bags[2:]]
    )
    return folder


def run(work, out, config=CONFIG, **options):
    return train_tpo(config, work / 'policy', work / 'pairs.json', out, **options)


def weights(folder):
    return load_file(folder / 'adapter_model.safetensors')


def test_pairs_become_an_adapter_that_prefers_the_chosen_trials(work, tmp_path):
    result = run(work, tmp_path / 'out')
    curve = read_metrics(tmp_path / 'out')
    assert [m['step'] for m in curve] == list(range(1, 7)) and result.steps == 6
    assert curve[0]['loss'] == pytest.approx(0.6931, abs=1e-3)
    assert curve[-1]['loss'] < 0.6 and curve[-1]['rewards/margins'] > 0.2
    assert result.recorded_difference < 1e-4
    trained = weights(tmp_path / 'out')
    assert all(t.abs().max() > 0 for name, t in trained.items() if 'lora_B' in name)
    engine = Engine.load(work / 'policy', adapter=tmp_path / 'out')
    assert engine.adapter_id == result.adapter_id


def test_finished_run_is_not_run_again(work, tmp_path):
    first = run(work, tmp_path / 'out')
    stamp = (tmp_path / 'out' / 'metrics.jsonl').stat().st_mtime_ns
    assert run(work, tmp_path / 'out') == first
    assert (tmp_path / 'out' / 'metrics.jsonl').stat().st_mtime_ns == stamp


def test_run_killed_by_sigkill_ends_in_the_same_adapter_bit_for_bit(work, tmp_path):
    run(work, tmp_path / 'whole', replace(CONFIG, torch_threads=1))
    script = (
        'import os, sys; sys.path.insert(0, sys.argv[1])\n'
        'from pathlib import Path; import test_learner_train_tpo as t\n'
        'def show(p):\n'
        '    if p.phase == "train" and p.done == 3: os.kill(os.getpid(), 9)\n'
        't.run(Path(sys.argv[2]), Path(sys.argv[3]), t.replace(t.CONFIG, torch_threads=1), '
        'progress=show)\n'
    )
    out = tmp_path / 'broken'
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, '-c', script, here, str(work), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL and not (out / 'result.json').exists()
    assert run(work, out, replace(CONFIG, torch_threads=1)).steps == 6
    whole, resumed = weights(tmp_path / 'whole'), weights(out)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_second_iteration_starts_at_the_start_adapter_and_refers_to_it(work, tmp_path):
    first = run(work, tmp_path / 'first')
    # Without them it would act in the base policy's units.
    statistics = json.dumps(learner_policy.STATISTICS)
    (tmp_path / 'first' / 'dataset_statistics.json').write_text(statistics)
    config = replace(CONFIG, verify_log_probs=False)
    second = run(work, tmp_path / 'second', config, start_adapter=tmp_path / 'first')
    assert second.reference == first.adapter_id
    assert (tmp_path / 'second' / 'dataset_statistics.json').read_text() == statistics
    start, first_start = (read_metrics(tmp_path / n)[0] for n in ('second', 'first'))
    assert start['loss'] == pytest.approx(0.6931, abs=1e-3)
    assert start['rewards/chosen'] == pytest.approx(0, abs=1e-3)
    assert start['logps/chosen'] != pytest.approx(
        read_metrics(tmp_path / 'first')[0]['logps/chosen']
    )


def test_trials_of_another_adapter_are_refused(work, tmp_path):
    run(work, tmp_path / 'first')
    with pytest.raises(PolicyMismatchError, match="sampled by adapter 'base', the reference is"):
        run(work, tmp_path / 'second', start_adapter=tmp_path / 'first')


def test_reference_is_computed_once_and_kept(work, tmp_path):
    run(work, tmp_path / 'out')
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / 'out' / 'reference').iterdir()}
    time.sleep(0.01)
    run(work, tmp_path / 'out', resume=False)
    assert len(files) == 4
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'out' / 'reference').iterdir()} == files


def test_falling_chosen_log_ratio_stops_the_run_with_the_reason(work, tmp_path):
    config = replace(CONFIG, lr=0.2, stop_chosen_log_ratio=-0.01)
    result = run(work, tmp_path / 'out', config)
    assert 'likelihood displacement' in result.stopped
    assert 0 < result.steps < result.total_steps
    assert (tmp_path / 'out' / 'adapter_model.safetensors').exists()


def test_small_pixel_cache_changes_nothing_but_time(work, tmp_path):
    config = replace(CONFIG, torch_threads=1)
    run(work, tmp_path / 'large', config)
    run(work, tmp_path / 'small', replace(config, pixel_cache_gib=1e-9))
    large, small = weights(tmp_path / 'large'), weights(tmp_path / 'small')
    assert all(torch.equal(large[n], small[n]) for n in large)


def test_unusable_pairs_are_clear_errors(work, tmp_path):
    pairs = tmp_path / 'pairs.json'
    policy, out = work / 'policy', tmp_path / 'out'
    with pytest.raises(PairingError, match="There is no pairs file.*'grape pair'"):
        train_tpo(CONFIG, policy, pairs, out)
    learner_bags.write_pairs_file(pairs, [])
    with pytest.raises(DataError, match='has no pairs'):
        train_tpo(CONFIG, policy, pairs, out)
    learner_bags.write_pairs_file(pairs, [(tmp_path / 'gone', tmp_path / 'too')])
    with pytest.raises(DataError, match='bags that are not there'):
        train_tpo(CONFIG, policy, pairs, out)


def test_expert_trials_have_no_tokens_and_are_refused(work, tmp_path):
    expert = learner_bags.write_expert_bag(tmp_path / 'bags', 'e', seed=0)
    learner_bags.write_pairs_file(tmp_path / 'pairs.json', [(expert, work / 'bags' / 'a')])
    with pytest.raises(DataError, match='expected T >= 1 images and .* tokens'):
        train_tpo(CONFIG, work / 'policy', tmp_path / 'pairs.json', tmp_path / 'out')
