"""The whole loop through real nodes and LIBERO, with a random policy and short episodes."""

import json
import signal
from types import SimpleNamespace

import graph_run
import numpy as np
import pytest
import yaml

from grape_bringup.graph import GraphSetup
from grape_bringup.manifest import read_manifest
from grape_bringup.pool import Pool
from grape_bringup.rollouts import played_by, trial_requests
from grape_episode.bag import find_bags, read_episode
from grape_trainer.evaluation import wilson_interval
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.preference import PairSettings, pair_scores
from grape_trainer.scoring.score_table import read_scores
from grape_trainer.scoring.scorer import score_bags

pytestmark = pytest.mark.sim

ARRAYS = (
    'stamps_ns', 'translation_m', 'rotation_rotvec_rad', 'gripper_command', 'action_token_ids',
    'token_log_probs', 'ee_position_m', 'ee_quaternion_xyzw', 'joint_positions',
)  # fmt: skip


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A policy and a contract with a small camera."""
    root = tmp_path_factory.mktemp('loop')
    return SimpleNamespace(
        root=root,
        policy=graph_run.write_policy(root / 'policy'),
        contract=str(graph_run.write_contract(root / 'small.yaml')),
    )


def collect(made, folder, workers):
    """Collect, score and pair; return the episodes, the score rows and the pairs."""
    setup = GraphSetup(made.policy, contract=made.contract, rendering='fast')
    asked = trial_requests([(graph_run.TASK, 0), (graph_run.TASK, 7)], 2, 3, 1.0, max_steps=10)
    with Pool(setup, folder / 'logs', workers) as pool:
        pool.run(asked, folder, played_by(made.contract, 'fast', made.policy))
    bags = find_bags(folder)
    rows = score_bags(bags, load_objective('completion'), folder / 'scores.csv').rows
    pairs = pair_scores(folder / 'scores.csv', PairSettings(), folder / 'pairs.json').pairs
    return [read_episode(bag) for bag in bags], rows, pairs


def test_two_runs_with_one_seed_give_the_same_episodes_scores_and_pairs(ros_env, made):
    """Bit for bit, whatever the number of workers and the order in which they play."""
    first, rows, pairs = collect(made, made.root / 'one', workers=1)
    second, same_rows, same_pairs = collect(made, made.root / 'two', workers=2)
    assert len(first) == len(second) == 4
    for one, two in zip(first, second, strict=True):
        assert one.info.episode_id == two.info.episode_id
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        np.testing.assert_array_equal(one.images['agentview'], two.images['agentview'])
        np.testing.assert_array_equal(one.scene.positions_m, two.scene.positions_m)
    assert len({episode.action_token_ids.tobytes() for episode in first}) == 4
    for one, two in zip(rows, same_rows, strict=True):
        assert vars(one) | {'bag': 0} == vars(two) | {'bag': 0}
    sides = [[(p.chosen.episode_id, p.rejected.episode_id, p.margin) for p in found]
             for found in (pairs, same_pairs)]  # fmt: skip
    assert sides[0] == sides[1] and len(sides[0]) >= 2


@pytest.mark.timeout(600)
def test_an_iteration_stopped_by_ctrl_c_goes_on_and_its_report_has_its_numbers(ros_env, made):
    """Collect, score, pair, train, hot swap, evaluate; nothing is played twice."""
    run, log = made.root / 'run', made.root / 'grape.log'
    config = made.root / 'experiment.yaml'
    config.write_text(
        yaml.safe_dump(
            {
                'policy': str(made.policy),
                'tasks': [graph_run.TASK],
                'out': str(run),
                'train_init_states': '0-1',
                'eval_init_states': '40',
                'trials': 2,
                'm': 1,
                'max_steps': 10,
                'contract': made.contract,
                'rendering': 'fast',
                'workers': 1,
            }
        )
    )
    stopped = graph_run.start_grape(log, 'iterate', '--config', config)
    trials = run / 'round_1' / 'bags'
    graph_run.wait_until(lambda: trials.is_dir() and read_manifest(trials), 150.0)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(60) == 130, log.read_text()
    assert 'The same command goes on' in log.read_text()
    assert graph_run.nodes_below(run) == []
    done = graph_run.grape('iterate', '--config', config, timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'base/evaluate: complete already' in done.stdout

    lines = (trials / 'episodes.jsonl').read_text().splitlines()
    assert len(lines) == 4 and len({json.loads(line)['episode_id'] for line in lines}) == 4
    assert len(read_scores(run / 'round_1' / 'scores.csv')) == 4
    before = json.loads((run / 'base' / 'eval.json').read_text())
    after = json.loads((run / 'round_1' / 'eval.json').read_text())
    for found in (before, after):
        low, high = wilson_interval(found['successes'], found['n'])
        assert (found['n'], found['errors']) == (1, 0)
        assert (found['wilson_low'], found['wilson_high']) == (low, high)
        assert found['code_version'] and found['episodes'][0]['bag']
    assert before['adapter_id'] == 'base' and after['adapter_id'].startswith('tpo-')
    bag = after['episodes'][0]['bag']
    assert read_episode(bag, images=False).info.adapter_id == after['adapter_id']
    assert graph_run.grape('report', run).returncode == 0
    assert (run / 'report.html').stat().st_size > 10_000
