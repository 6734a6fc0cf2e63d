"""`train_rl` on recorded bags: each method learns, resumes, and refuses what is not its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import learner_policy
import learner_rewarded
import pytest
import torch
from report_runs import write_round
from safetensors.torch import load_file

from grape_policy_node.adapters import adapter_id
from grape_trainer.dataset import DataError
from grape_trainer.objective.value import VALUE_HEAD
from grape_trainer.reference import PolicyMismatchError
from grape_trainer.rl_config import GrpoConfig, PpoConfig, TgrpoConfig
from grape_trainer.rl_trials import Actor, choose_bags, read_trials
from grape_trainer.run_folder import read_metrics
from grape_trainer.scoring.objective import load_objective
from grape_trainer.train_rl import train_rl
from grape_trainer.training_config import ConfigError

COMMON = {
    'lr': 3e-3, 'batch_size': 8, 'epochs': 4, 'lora_rank': 4, 'lora_alpha': 4, 'chunk_steps': 8,
    'weight_decay': 0.0, 'max_grad_norm': 1.0, 'reward': 'success', 'checkpoint_every': 1,
}  # fmt: skip
PPO = PpoConfig(**COMMON, value_warmup_steps=2, value_lr_factor=1.0)
METHODS = {
    'ppo': PPO,
    'grpo': GrpoConfig(**COMMON),
    'grpo_steps': GrpoConfig(**COMMON, advantage='steps', group='batch'),
    'tgrpo': TgrpoConfig(**COMMON),
}


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A policy and four bags of its trials, two of them successes."""
    folder = tmp_path_factory.mktemp('rl')
    learner_policy.write_policy(folder / 'policy')
    learner_rewarded.record(folder / 'policy', None, folder / 'bags')
    return folder


@pytest.fixture(scope='module')
def trained(work):
    """The adapter folder of a first round of PPO."""
    run(work, work / 'trained')
    return work / 'trained'


def run(work, out, config=PPO, bags=None, **options):
    return train_rl(config, work / 'policy', [bags or work / 'bags'], out, **options)


@pytest.mark.parametrize('name', METHODS)
def test_method_makes_the_rewarded_token_likelier(work, tmp_path, name):
    before = learner_rewarded.preference(work / 'policy')
    result = run(work, tmp_path / 'out', METHODS[name])
    after = learner_rewarded.preference(work / 'policy', tmp_path / 'out')
    # A step may become 1.2 times as likely before it is clipped; both kinds of steps move.
    assert after > before + 0.3
    assert (result.trials, result.successes, result.control_steps) == (4, 2, 16)
    assert (result.reward_mean, result.reward_std) == (0.5, 0.5)
    assert result.recorded_difference < 1e-4
    curve = read_metrics(tmp_path / 'out')
    assert len(curve) == result.steps == (10 if name == 'ppo' else 8)
    first = curve[PPO.value_warmup_steps if name == 'ppo' else 0]
    # The recorded log-probabilities are the denominators: on-policy, the first ratio is 1.
    assert first['val/ratio'] == pytest.approx(1, abs=1e-4)
    assert first['policy/approxkl_avg'] == pytest.approx(0, abs=1e-6)
    states = json.loads((tmp_path / 'out' / 'training_states.json').read_text())
    assert states == {'states': [['test/0', 0]]}


def test_second_round_goes_on_with_adapter_and_value_head(work, trained, tmp_path):
    again = learner_rewarded.record(work / 'policy', trained, tmp_path / 'bags')
    config = replace(PPO, value_warmup_steps=0, max_steps=2, lr=1e-12)
    second = run(work, tmp_path / 'second', config, again, start_adapter=trained)
    assert second.start_adapter == adapter_id(trained) and second.recorded_difference < 1e-4
    head, carried = (load_file(folder / VALUE_HEAD) for folder in (trained, tmp_path / 'second'))
    assert all(torch.allclose(head[n], carried[n], atol=1e-8) for n in head)
    assert head['fc3.weight'].abs().max() > 0.02  # trained: it was drawn with std 0.02
    preference = learner_rewarded.preference(work / 'policy', tmp_path / 'second')
    expected = learner_rewarded.preference(work / 'policy', trained)
    assert preference == pytest.approx(expected, abs=1e-4)


def test_run_killed_by_sigkill_ends_in_the_same_files_bit_for_bit(work, tmp_path):
    config = replace(PPO, torch_threads=1)
    run(work, tmp_path / 'whole', config)
    script = (
        'import os, sys; sys.path.insert(0, sys.argv[1])\n'
        'from pathlib import Path; import test_learner_train_rl as t\n'
        'def show(p):\n'
        '    if p.phase == "train" and p.done == 5: os.kill(os.getpid(), 9)\n'
        't.run(Path(sys.argv[2]), Path(sys.argv[3]), t.replace(t.PPO, torch_threads=1), '
        'progress=show)\n'
    )
    out = tmp_path / 'broken'
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, '-c', script, here, str(work), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL and not (out / 'result.json').exists()
    assert run(work, out, config).steps == 10
    for name in ('adapter_model.safetensors', VALUE_HEAD):
        assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_two_processes_train_the_adapter_and_the_head_of_one(work, tmp_path):
    config = replace(PPO, torch_threads=1, chunk_steps=2, max_steps=2)
    run(work, tmp_path / 'one', config)
    script = (
        'import sys; sys.path.insert(0, sys.argv[1])\n'
        'from pathlib import Path; import test_learner_train_rl as t\n'
        'config = t.replace(t.PPO, torch_threads=1, chunk_steps=2, max_steps=2)\n'
        't.run(Path(sys.argv[2]), Path(sys.argv[3]), config)\n'
    )
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    command = [sys.executable, '-c', script, str(Path(__file__).parent), str(work)]
    pair = [
        subprocess.Popen(
            [*command, str(tmp_path / 'two')],
            env=os.environ | common | {'RANK': rank, 'LOCAL_RANK': rank},
        )
        for rank in '01'
    ]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    for name in ('adapter_model.safetensors', VALUE_HEAD):
        one, two = (load_file(tmp_path / which / name) for which in ('one', 'two'))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5)
    assert len(read_metrics(tmp_path / 'two')) == 4
    for name, value in read_metrics(tmp_path / 'one')[-1].items():
        if name != 'step_s':
            assert read_metrics(tmp_path / 'two')[-1][name] == pytest.approx(value, abs=1e-3)


def test_trials_of_another_adapter_are_refused_or_kept_by_name(work, trained, tmp_path, caplog):
    config = replace(METHODS['grpo'], max_steps=1)
    with pytest.raises(DataError, match=r"4 of 4 trials .* their adapters are 'base' \(4\)"):
        run(work, tmp_path / 'out', config, start_adapter=trained)
    kept = replace(config, other_trials='keep')
    result = run(work, tmp_path / 'out', kept, start_adapter=trained)
    assert result.recorded_difference is None
    assert 'kept (off-policy)' in caplog.text
    # Off-policy from the first step on: the ratios are to the policy that acted.
    assert read_metrics(tmp_path / 'out')[0]['policy/approxkl_avg'] > 0.01


def test_bags_of_another_policy_under_the_same_name_are_found_out(work, tmp_path):
    learner_policy.write_policy(tmp_path / 'policy', seed=1)
    with pytest.raises(PolicyMismatchError, match='recorded log-probabilities differ'):
        train_rl(METHODS['grpo'], tmp_path / 'policy', [work / 'bags'], tmp_path / 'out')


def test_groups_of_equal_trials_alone_are_an_error(work, tmp_path):
    bags = learner_rewarded.record(work / 'policy', None, tmp_path / 'bags', trials=1)
    with pytest.raises(DataError, match='all 1 groups the trials have equal rewards'):
        run(work, tmp_path / 'out', METHODS['grpo'], bags)


def test_policy_that_went_too_far_stops_the_run_with_the_reason(work, tmp_path):
    result = run(work, tmp_path / 'out', replace(METHODS['grpo'], lr=0.05, stop_kl=0.05))
    assert 'above stop_kl 0.05' in result.stopped and 0 < result.steps < result.total_steps


def test_recorded_scenes_pay_for_grasps_and_say_whose_trials_they_are(tmp_path):
    write_round(tmp_path)  # two tasks, each a success and a trial that only reached
    bags = choose_bags([tmp_path / 'bags'], Actor('abc', 'base'), 'refuse')
    trials = read_trials(bags, 'grasp_hold', load_objective('completion'))
    assert sorted((t.success, round(t.rewards.sum().item(), 6)) for t in trials) == [
        (False, 0.0), (False, 0.0), (True, 1.2), (True, 1.2),
    ]  # fmt: skip
    assert len({t.state for t in trials}) == 2
    with pytest.raises(DataError, match='4 of 4 trials were not played by policy other'):
        choose_bags([tmp_path / 'bags'], Actor('other', 'base'), 'leave_out')


def test_finished_run_is_not_run_again(work, tmp_path):
    config = replace(METHODS['grpo'], max_steps=1)
    first = run(work, tmp_path / 'out', config)
    stamp = (tmp_path / 'out' / 'metrics.jsonl').stat().st_mtime_ns
    assert run(work, tmp_path / 'out', config) == first
    assert (tmp_path / 'out' / 'metrics.jsonl').stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ('kind', 'wrong'),
    [
        (PpoConfig, {'gae_lambda': 1.5}),
        (PpoConfig, {'clip_range': 0.0}),
        (GrpoConfig, {'advantage': 'median'}),
        (GrpoConfig, {'reward': 'praise'}),
        (TgrpoConfig, {'alpha_step': 0.0, 'alpha_trial': 0.0}),
        (TgrpoConfig, {'gae_lambda': 0.9}),
    ],
)
def test_configuration_errors_name_the_key(kind, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        kind.from_dict(wrong)


@pytest.mark.parametrize('kind', [PpoConfig, GrpoConfig, TgrpoConfig])
def test_shipped_configurations_are_valid(kind):
    config = Path(__file__).parents[1] / 'config' / 'train' / f'{kind.kind}_tiny.yaml'
    assert kind.load(config).lora_rank == 32
