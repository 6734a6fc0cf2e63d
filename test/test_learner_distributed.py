"""Two gloo processes train what one trains: losses, weights, resume, errors, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import learner_bags
import learner_policy
import pytest
import yaml
from learner_ranks import DPO, LORA, SFT, TPO, dpo, interrupt_at, sft, tpo
from safetensors.torch import load_file

from grape_bringup.node_process import free_port
from grape_bringup.processes import run_in_processes
from grape_policy_node.engine import Engine
from grape_trainer.run_folder import read_metrics
from grape_trainer.training_config import ConfigError, SftConfig

RELATIVE = 1e-6  # of every step's loss; the sum over processes has another order, in float32


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """Data, and what one process and two processes made of it."""
    folder = tmp_path_factory.mktemp('distributed')
    learner_policy.write_policy(folder / 'policy')
    (folder / 'mini.yaml').write_text(yaml.safe_dump(learner_policy.ARCHITECTURE))
    for seed in range(4):
        learner_bags.write_expert_bag(folder / 'demos', f'd{seed}', seed)
    engine = Engine.load(folder / 'policy')
    bags = [
        learner_bags.write_policy_bag(
            folder / 'bags', learner_policy.made_up_trial(engine, name, steps, seed)
        )
        for seed, (name, steps) in enumerate((('a', 9), ('b', 12), ('c', 7), ('d', 10)))
    ]
    pairs = [(bags[0], bags[2]), (bags[0], bags[3]), (bags[1], bags[3])]
    learner_bags.write_pairs_file(folder / 'pairs.json', pairs)
    tpo(folder, folder / 'two' / 'begun_by_one', TPO, progress=interrupt_at(3))
    _two_processes(folder)
    sft(folder, folder / 'one' / 'sft', SFT)
    sft(folder, folder / 'one' / 'sft_fsdp', LORA)
    tpo(folder, folder / 'one' / 'tpo', TPO)
    dpo(folder, folder / 'one' / 'dpo', DPO)
    return folder


def _two_processes(folder):
    """Run learner_ranks.py in two processes."""
    command = [sys.executable, str(Path(__file__).with_name('learner_ranks.py')), str(folder)]
    place = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **place, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=280)[1] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], ''.join(said)[-4000:]


def found(work, rank):
    return json.loads((work / f'found-{rank}.json').read_text())


def losses(folder, name='loss'):
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.mark.parametrize(
    ('two', 'one'),
    [
        ('sft', 'sft'),
        ('sft_fsdp', 'sft_fsdp'),
        ('tpo', 'tpo'),
        ('tpo_fsdp', 'tpo'),
        ('dpo_fsdp', 'dpo'),
    ],
)
def test_two_processes_have_the_losses_of_one(work, two, one):
    expected = losses(work / 'one' / one)
    assert losses(work / 'two' / two) == pytest.approx(expected, rel=RELATIVE, abs=0)
    assert len(expected) >= 4 and expected[-1] < expected[0]
    norms = losses(work / 'one' / one, 'grad_norm')
    assert losses(work / 'two' / two, 'grad_norm') == pytest.approx(norms, rel=1e-4)


def test_two_processes_have_the_validation_loss_of_one(work):
    expected = losses(work / 'one' / 'sft', 'validation/loss')
    assert len(expected) == 3
    assert losses(work / 'two' / 'sft', 'validation/loss') == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize('name', ['tpo', 'tpo_fsdp', 'begun_by_one'])
def test_two_processes_save_the_adapter_of_one(work, name):
    one = load_file(work / 'one' / 'tpo' / 'adapter_model.safetensors')
    two = load_file(work / 'two' / name / 'adapter_model.safetensors')
    assert one.keys() == two.keys()
    moved = max(float(t.abs().max()) for n, t in one.items() if 'lora_B' in n)
    assert moved > 1e-3
    assert all(float((one[n] - two[n]).abs().max()) < 0.02 * moved for n in one)


def test_run_of_two_processes_goes_on_in_one_and_the_other_way_round(work):
    whole = losses(work / 'one' / 'tpo')
    assert tpo(work, work / 'two' / 'begun_by_two', TPO).steps == 8
    for name in ('begun_by_one', 'begun_by_two'):
        assert losses(work / 'two' / name) == pytest.approx(whole, rel=RELATIVE, abs=0)


def test_ctrl_c_in_one_process_ends_both_after_the_same_step_with_a_checkpoint(work):
    # The progress callback comes after step 3; both leave before the next one.
    assert found(work, 0)['interrupted'] == found(work, 1)['interrupted'] == [True, 3, 3]


def test_nan_in_one_process_stops_both_with_the_pairs_name(work):
    texts = {found(work, rank)['not_finite'] for rank in (0, 1)}
    assert len(texts) == 1 and texts.pop().startswith('pair 7: log-probabilities are not finite')


def test_shares_and_sums_of_two_processes(work):
    first, second = found(work, 0), found(work, 1)
    assert first['share'] == [['a', 1.0], ['b', 1.0], ['c', 1.0]]
    assert second['share'] == [['d', 1.0], ['e', 1.0]]
    assert first['padded'] == first['share']
    assert second['padded'] == [['d', 1.0], ['e', 1.0], ['a', 0.0]]
    for values in (first, second):
        assert values['gradients'] == [[3.0, 6.0], [5.0, 7.0], None]
        assert values['joined'] == list('abcde')
        assert values['metrics'] == {'both': 2.0, 'of 0': 2.0, 'of 1': 2.0}
        assert values['raised'] == 'of the second'


def test_full_training_is_not_sharded_and_says_so():
    with pytest.raises(ConfigError, match='trainable is all, which has none. Set trainable: lora'):
        SftConfig(parallel='fsdp')


def test_ctrl_c_on_the_command_ends_its_processes_with_a_checkpoint(work, tmp_path):
    (tmp_path / 'tpo.yaml').write_text(yaml.safe_dump({**TPO.to_dict(), 'epochs': 2000}))
    out, grape = tmp_path / 'out', [sys.executable, '-m', 'grape_bringup.cli']
    command = [*grape, 'train', 'tpo', '--processes', '2', '--policy', str(work / 'policy')]
    command += ['--pairs', str(work / 'pairs.json'), '--out', str(out)]
    command += ['--config', str(tmp_path / 'tpo.yaml')]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while run.poll() is None and not (out / 'checkpoint.pt').exists():
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and said.count('The same command goes on from here') == 1, said
    assert json.loads((out / 'run.json').read_text())['processes'] == 2
    assert len(losses(out)) >= 1 and not (out / 'result.json').exists()


def test_error_of_the_processes_is_the_commands(tmp_path, capfd):
    assert run_in_processes(2, ['train', 'tpo', '--policy', str(tmp_path)]) == 2
    assert 'Missing option' in capfd.readouterr().err
