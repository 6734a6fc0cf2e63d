"""`train_sft` on recorded bags: policy folder out, statistics, held-out episodes, resume."""

import json
import os
import signal
from dataclasses import replace

import learner_bags
import learner_policy
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from grape_episode.bag import read_episode, read_info
from grape_episode.contract import contract_of_policy, load_contract
from grape_policy_node.engine import Engine, Observation
from grape_trainer.dataset import DataError
from grape_trainer.evaluation import training_states
from grape_trainer.run_folder import read_metrics
from grape_trainer.train_sft import train_sft
from grape_trainer.training_config import ConfigError, SftConfig

CONFIG = SftConfig(
    lr=3e-3, batch_size=16, max_steps=12, held_out_episodes=1, validate_every=4, torch_threads=1,
    shift_px=1, brightness=0.1, checkpoint_every=3,
)  # fmt: skip


@pytest.fixture(scope='module')
def demos(tmp_path_factory):
    """Five successes and one failure of an expert, and the architecture's YAML."""
    folder = tmp_path_factory.mktemp('demos')
    for seed in range(6):
        outcome = 'failure' if seed == 2 else 'success'
        learner_bags.write_expert_bag(folder / 'bags', f'd{seed}', seed, outcome=outcome)
    (folder / 'mini.yaml').write_text(yaml.safe_dump(learner_policy.ARCHITECTURE))
    return folder


def run(demos, out, config=CONFIG, **options):
    if 'init_policy' not in options:
        options['architecture'] = demos / 'mini.yaml'
    return train_sft(config, [demos / 'bags'], out, **options)


def test_demonstrations_become_a_policy_that_imitates_them(demos, tmp_path):
    result = run(demos, tmp_path, replace(CONFIG, max_steps=250, schedule='cosine'))
    assert (result.episodes, result.held_out_episodes) == (4, 1)
    curve = read_metrics(tmp_path)
    assert curve[-1]['loss'] < 0.5 * curve[0]['loss']
    assert curve[-1]['validation/loss'] < curve[3]['validation/loss']
    assert 0 <= curve[-1]['validation/accuracy/token'] <= 1
    engine = Engine.load(tmp_path)
    episode = read_episode(demos / 'bags' / 'd0')
    images, actions = episode.policy_images(), episode.policy_actions()
    seen = [Observation(images[t], episode.info.instruction) for t in (0, len(images) - 1)]
    first, last = (p.action for p in engine.predict(seen))
    # The made-up expert moves right as the picture brightens.
    assert first[0] < last[0] and actions[0, 0] < actions[-1, 0]


def test_statistics_in_the_policy_folder_are_those_of_the_training_episodes(demos, tmp_path):
    run(demos, tmp_path, replace(CONFIG, max_steps=1, held_out_episodes=0, noop_filter='none'))
    entry = json.loads((tmp_path / 'dataset_statistics.json').read_text())['grape']
    actions = np.concatenate(
        [read_episode(demos / 'bags' / f'd{i}').policy_actions() for i in (0, 1, 3, 4, 5)]
    )
    assert entry['num_transitions'] == len(actions) and entry['num_trajectories'] == 5
    assert entry['action']['q01'] == pytest.approx(np.quantile(actions, 0.01, axis=0))
    assert entry['action']['mask'] == [True] * 6 + [False]


def test_run_paused_by_ctrl_c_ends_in_the_same_policy_bit_for_bit(demos, tmp_path):
    run(demos, tmp_path / 'whole')

    def interrupt(progress):
        if progress.phase == 'train' and progress.done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    first = run(demos, tmp_path / 'broken', progress=interrupt)
    assert first.interrupted and first.policy is None
    assert run(demos, tmp_path / 'broken').policy is not None
    whole, resumed = (load_file(tmp_path / n / 'model.safetensors') for n in ('whole', 'broken'))
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_micro_batches_give_the_large_batchs_gradient(demos, tmp_path):
    config = replace(CONFIG, max_steps=1, held_out_episodes=0)
    run(demos, tmp_path / 'large', replace(config, micro_batch_size=64))
    run(demos, tmp_path / 'small', replace(config, micro_batch_size=1))
    large, small = (read_metrics(tmp_path / n)[0] for n in ('large', 'small'))
    for name in ('loss', 'grad_norm'):
        assert small[name] == pytest.approx(large[name], rel=1e-6)


def test_lora_on_a_policy_writes_an_adapter_and_leaves_the_policy_alone(demos, tmp_path):
    base = learner_policy.write_policy(tmp_path / 'base')
    before = load_file(base / 'model.safetensors')
    config = replace(CONFIG, trainable='lora', lora_rank=4, lora_alpha=4)
    run(demos, tmp_path / 'out', config, init_policy=base)
    engine = Engine.load(base, adapter=tmp_path / 'out')
    assert engine.adapter_id.startswith('out-')
    assert not (tmp_path / 'out' / 'model.safetensors').exists()
    after = load_file(base / 'model.safetensors')
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_snapshots_are_policies_of_their_own(demos, tmp_path):
    run(demos, tmp_path, replace(CONFIG, snapshot_every=6))
    early, last = tmp_path / 'step-000006', tmp_path
    assert Engine.load(early).policy_sha256 != Engine.load(last).policy_sha256
    recorded = read_info(demos / 'bags' / 'd0').contract
    assert load_contract(contract_of_policy(early)).to_dict() == recorded
    assert training_states(early) == training_states(last) != set()
    assert (tmp_path / 'metrics.jsonl').exists()  # saving leaves the run's own files alone


def test_unusable_demonstrations_are_clear_errors(demos, tmp_path):
    learner_bags.write_expert_bag(tmp_path / 'bags', 'f', seed=0, outcome='failure')
    with pytest.raises(DataError, match="1 bags, none a success.*'grape demos'"):
        train_sft(CONFIG, [tmp_path / 'bags'], tmp_path / 'out', architecture=demos / 'mini.yaml')
    with pytest.raises(DataError, match='held out of 5'):
        run(demos, tmp_path / 'out', replace(CONFIG, held_out_episodes=5))
    with pytest.raises(ConfigError, match='not both or none'):
        train_sft(CONFIG, [demos / 'bags'], tmp_path / 'out')
    with pytest.raises(ConfigError, match='the model is fresh'):
        run(demos, tmp_path / 'out', replace(CONFIG, trainable='lora'))
