"""`train_dpo` and `train_kto` on recorded bags: they learn, resume, and refuse."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import learner_bags
import learner_policy
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_scoring_preference import STAGES, row

from grape_episode.label import append_label
from grape_policy_node.engine import Engine
from grape_trainer import reference
from grape_trainer.dataset import DataError, bag_sha256
from grape_trainer.evaluation import training_states
from grape_trainer.learner import TrainingError
from grape_trainer.reference import ReferenceKey
from grape_trainer.run_folder import read_metrics
from grape_trainer.scoring.desirability import DesirabilityError, label_bags, label_scores
from grape_trainer.scoring.score_table import write_scores
from grape_trainer.train_dpo import train_dpo
from grape_trainer.train_kto import labelled_trials, objective_for, train_kto
from grape_trainer.training_config import ConfigError, DpoConfig, KtoConfig

SHARED = {
    'lr': 3e-3, 'batch_size': 2, 'epochs': 4, 'lora_rank': 4, 'lora_alpha': 4, 'chunk_steps': 8,
    'checkpoint_every': 1, 'torch_threads': 1,
}  # fmt: skip
CONFIGS = {'dpo': DpoConfig(**SHARED, beta=0.3), 'kto': KtoConfig(**SHARED)}


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A policy, four bags of its trials (two successes), their pairs and their scores."""
    folder = tmp_path_factory.mktemp('preference')
    learner_policy.write_policy(folder / 'policy')
    engine = Engine.load(folder / 'policy')
    bags = [
        learner_bags.write_policy_bag(
            folder / 'bags', learner_policy.made_up_trial(engine, n, steps, i), outcome
        )
        for i, (n, steps, outcome) in enumerate(
            (('a', 9, 'success'), ('b', 12, 'success'), ('c', 7, 'failure'), ('d', 10, 'failure'))
        )
    ]
    learner_bags.write_pairs_file(
        folder / 'pairs.json', [(c, r) for c in bags[:2] for r in bags[2:]]
    )
    rows = [
        row(bag.name, score, bag.name in 'ab', folder=folder / 'bags')
        for bag, score in zip(bags, (4.0, 1.0, 3.0, 2.0), strict=True)
    ]
    write_scores(folder / 'scores.csv', rows, STAGES)
    return folder


def run(kind, work, out, config=None, **options):
    config = config or CONFIGS[kind]
    if kind == 'dpo':
        return train_dpo(config, work / 'policy', work / 'pairs.json', out, **options)
    trials = labelled_trials(config, work / 'scores.csv')
    return train_kto(config, work / 'policy', trials, out, **options)


def weights(folder):
    return load_file(folder / 'adapter_model.safetensors')


@pytest.fixture(scope='module', params=['dpo', 'kto'])
def whole(request, work, tmp_path_factory):
    """A method's name, and the folder and result of its unbroken run."""
    out = tmp_path_factory.mktemp('whole') / request.param
    return request.param, out, run(request.param, work, out)


def test_chosen_trials_become_likelier_than_rejected_ones(whole, work):
    kind, out, result = whole
    curve = read_metrics(out)
    both = [line for line in curve if 'rewards/margins' in line]
    assert result.steps == len(curve) == 8 and result.examples == 4
    assert both[-1]['rewards/margins'] > max(0.02, both[0]['rewards/margins'])
    assert result.recorded_difference < 1e-4
    assert Engine.load(work / 'policy', adapter=out).adapter_id == result.adapter_id
    assert training_states(out) == {('test/0', 0)}


def test_run_killed_by_sigkill_ends_in_the_same_adapter_bit_for_bit(whole, work, tmp_path):
    kind, unbroken, _ = whole
    script = (
        'import os, sys; sys.path.insert(0, sys.argv[1])\n'
        'from pathlib import Path; import test_learner_train_dpo_kto as t\n'
        'def show(p):\n'
        '    if p.phase == "train" and p.done == 3: os.kill(os.getpid(), 9)\n'
        't.run(sys.argv[4], Path(sys.argv[2]), Path(sys.argv[3]), progress=show)\n'
    )
    out = tmp_path / 'broken'
    command = [sys.executable, '-c', script, str(Path(__file__).parent), str(work), str(out), kind]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (out / 'result.json').exists()
    assert run(kind, work, out).steps == 8
    first, resumed = weights(unbroken), weights(out)
    assert first.keys() == resumed.keys()
    assert all(torch.equal(first[n], resumed[n]) for n in first)


def test_nan_stops_the_run_and_names_the_trial(work, tmp_path):
    # The reference's numbers of bag d, kept whole but not finite.
    config = replace(CONFIGS['kto'], verify_log_probs=False, reference_cache=str(tmp_path / 'ref'))
    engine = Engine.load(work / 'policy')
    name = ReferenceKey(engine.policy_sha256, 'base').file_name(bag_sha256(work / 'bags' / 'd'), 8)
    (tmp_path / 'ref').mkdir()
    reference._write(tmp_path / 'ref' / name, np.full((10, 7), np.nan, np.float32))
    with pytest.raises(TrainingError, match='Step .*trial d: .*ref_trial nan'):
        run('kto', work, tmp_path / 'out', config)


def test_runs_share_a_reference_and_a_damaged_file_is_computed_again(work, tmp_path, caplog):
    cache = tmp_path / 'cache'
    config = replace(CONFIGS['dpo'], reference_cache=str(cache), max_steps=2)
    run('dpo', work, tmp_path / 'one', config)
    files = sorted(cache.iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 4 and not (tmp_path / 'one' / 'reference').exists()
    content = bytearray(files[0].read_bytes())
    content[200] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:50])
    run('dpo', work, tmp_path / 'two', config)
    assert caplog.text.count('is damaged and is computed again') == 2
    assert [file.stat().st_mtime_ns for file in files[2:]] == stamps[2:]
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_labels_come_from_success_the_tasks_median_or_a_threshold(work):
    def desirable(*rule):
        return ''.join(
            b.name for b, good in label_scores(work / 'scores.csv', *rule).items() if good
        )

    # scores a 4, b 1, c 3, d 2: the median is 2.5
    assert desirable('success') == 'ab'
    assert desirable('median') == 'ac'
    assert desirable('threshold', 1.5) == 'acd'
    with pytest.raises(DesirabilityError, match='0 desirable and 4 undesirable'):
        desirable('threshold', 9.0)


def test_median_is_of_each_task_alone(tmp_path):
    scores = {'a': 1.0, 'b': 2.0, 'x': 101.0, 'y': 102.0}
    rows = [row(n, s, task=f'libero_object/{int(s > 100)}') for n, s in scores.items()]
    write_scores(tmp_path / 'scores.csv', rows, STAGES)
    labels = label_scores(tmp_path / 'scores.csv', 'median')
    assert [bag.name for bag, good in labels.items() if good] == ['b', 'y']


def test_bags_are_labelled_by_their_outcome_or_a_persons_label(work, tmp_path):
    engine = Engine.load(work / 'policy')
    for number, outcome in enumerate(('success', 'failure', 'failure', 'error')):
        trial = learner_policy.made_up_trial(engine, f't{number}', 3, number)
        learner_bags.write_policy_bag(tmp_path, trial, outcome)
    append_label(tmp_path / 't2', 'success')
    labels = label_bags([tmp_path])
    assert {bag.name: good for bag, good in labels.items()} == {
        't0': True, 't1': False, 't2': True,
    }  # fmt: skip


def test_weights_balance_the_classes_unless_they_are_given(work):
    trials = labelled_trials(replace(CONFIGS['kto']), work / 'scores.csv')
    three = [trials[0], *trials[2:]]
    found = objective_for(CONFIGS['kto'], three)
    assert (found.desirable_weight, found.undesirable_weight) == (1.5, 0.75)
    given = replace(CONFIGS['kto'], desirable_weight=1.0, undesirable_weight=1.0)
    assert objective_for(given, three).desirable_weight == 1.0


def test_unusable_settings_and_data_are_clear_errors(work):
    with pytest.raises(ConfigError, match='expected a threshold'):
        KtoConfig(desirable='threshold')
    with pytest.raises(ConfigError, match='expected both'):
        KtoConfig(desirable_weight=1.0)
    with pytest.raises(ConfigError, match='alignment'):
        DpoConfig(alignment='time')
    median = replace(CONFIGS['kto'], desirable='median')
    with pytest.raises(DataError, match='needs R_GCPG: give a score table'):
        labelled_trials(median, bags=[work / 'bags'])
    with pytest.raises(DataError, match='not both or none'):
        labelled_trials(median)
