"""A replayed episode is recorded and scored anew, with the file's own numbers."""

import json

import graph_run
import numpy as np
import pytest
import yaml
from report_runs import write_round

from grape_bringup.graph import EpisodeRequest, Graph, GraphSetup
from grape_episode.bag import find_bags, read_episode, read_info
from grape_trainer.scoring.objective import load_scored_objective
from grape_trainer.scoring.score_table import read_scores
from grape_trainer.scoring.scorer import score_bags

pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')

STAMPS = {'bag', 'code_version'}
# Of the stages that a short trial is in; place keeps the built-in costs.
COSTS = """
costs:
  - {stage: 1, class: target, kind: distance, to: target}
  - {stage: 1, class: path, kind: delay, to: target}
  - {stage: 1, class: collision, kind: contact}
  - {stage: 2, class: grasp, kind: gripper, state: held}
"""


@pytest.mark.sim
def test_scores_of_replayed_topics_equal_those_of_the_file(ros_process, tmp_path):
    contract = str(graph_run.write_contract(tmp_path / 'small.yaml'))
    setup = GraphSetup(graph_run.write_policy(tmp_path / 'policy'), contract=contract)
    with Graph(setup, tmp_path / 'bags', tmp_path / 'logs') as graph:
        bag = graph.run_episode(
            EpisodeRequest('one', graph_run.TASK, 0, seed=1, temperature=1.0, max_steps=15)
        ).bag
    costs = tmp_path / 'costs.yaml'
    costs.write_text(COSTS)
    objective = load_scored_objective('', costs, allow_unapproved=True)
    (expected,) = score_bags([bag], objective, tmp_path / 'file.csv').rows
    assert expected.approval == 'unapproved' and expected.stage_costs['grasp'] > 0
    again, scores = tmp_path / 'again', tmp_path / 'scores'
    recorder = ros_process(
        'grape_episode.recorder_node', {'output_dir': str(again), 'contract': contract}
    )
    trainer = ros_process(
        'grape_trainer.trainer_node',
        {
            'bags_dir': str(again),
            'out_dir': str(scores),
            'costs': str(costs),
            'allow_unapproved': True,
            'contract': contract,
        },
    )
    recorder.wait_for('recording to')
    trainer.wait_for('scoring', 120)  # it imports torch
    player = ros_process('grape_episode.player_node', {'bag': str(bag), 'rate': 4.0})
    assert player.popen.wait(60) == 0, player.output()
    assert 'was recorded again' in player.output()
    graph_run.wait_until((scores / 'scores.csv').is_file)
    graph_run.wait_until(lambda: len(read_scores(scores / 'scores.csv')) == 1)
    (row,) = read_scores(scores / 'scores.csv')
    ours, files = ({k: v for k, v in vars(r).items() if k not in STAMPS} for r in (row, expected))
    assert json.dumps(ours, default=str) == json.dumps(files, default=str)
    one, two = read_episode(bag), read_episode(row.bag)
    for name, pictures in one.images.items():
        np.testing.assert_array_equal(pictures, two.images[name])


def test_a_player_without_recorder_says_who_is_missing(ros_process, tmp_path):
    write_round(tmp_path)
    parameters = {'bag': str(find_bags(tmp_path)[0]), 'timeout_s': 1.0}
    player = ros_process('grape_episode.player_node', parameters)
    assert player.popen.wait(30) == 1
    assert 'no a recorder' not in player.output() and 'recorder_node' in player.output()


def test_replay_where_a_guard_listens_is_refused(ros_process, tmp_path):
    """What is played again would be commands to the arm."""
    import rclpy

    write_round(tmp_path)
    bag = find_bags(tmp_path)[0]
    contract = tmp_path / 'contract.yaml'
    contract.write_text(yaml.safe_dump(read_info(bag).contract))
    recorder = ros_process(
        'grape_episode.recorder_node', {'output_dir': tmp_path / 'again', 'contract': contract}
    )
    recorder.wait_for('recording to')
    context = rclpy.Context()
    rclpy.init(context=context)
    guard = rclpy.create_node('guard_node', context=context)
    player = ros_process('grape_episode.player_node', {'bag': str(bag)})
    assert player.popen.wait(60) == 1
    assert 'guard_node is running' in player.output()
    guard.destroy_node()
    rclpy.shutdown(context=context)


def test_what_is_no_bag_is_refused_by_name(ros_process, tmp_path):
    player = ros_process('grape_episode.player_node', {'bag': str(tmp_path)})
    assert player.popen.wait(30) == 1
    assert str(tmp_path) in player.output() and 'Traceback' not in player.output()
