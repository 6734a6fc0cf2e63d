"""Algorithm 1 by nodes, as train.launch.py starts them: rounds, the trainer, the switch."""

import graph_run
import pytest

from grape_bringup.manifest import read_manifest
from grape_episode.bag import find_bags, read_info
from grape_policy_node.adapters import adapter_id

pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')

TPO = 'lora_rank: 4\nlora_alpha: 4\nbatch_size: 2\n'
ROUNDS = {'tasks': graph_run.TASK, 'init_states': '0', 'rounds': 2, 'trials': 2, 'max_steps': 5}


@pytest.mark.sim
def test_each_round_samples_with_the_adapter_that_the_round_before_trained(ros_process, tmp_path):
    policy = graph_run.write_policy(tmp_path / 'policy')
    contract = graph_run.write_contract(tmp_path / 'small.yaml')
    (tmp_path / 'tpo.yaml').write_text(TPO)
    bags, out = tmp_path / 'bags', tmp_path / 'out'
    shared = {'contract': contract}
    ros_process('sim_bridge.bridge_node', shared | {'rendering': 'fast'})
    ros_process('grape_episode.recorder_node', shared | {'output_dir': bags})
    ros_process('grape_policy_node.policy_node', shared | {'policy': policy, 'autostart': True})
    training = {'bags_dir': bags, 'out_dir': out, 'policy': policy, 'tpo': tmp_path / 'tpo.yaml'}
    ros_process('grape_trainer.trainer_node', shared | training)
    rounds = ros_process('grape_bringup.iteration_node', ROUNDS | {'output_dir': bags})
    assert rounds.popen.wait(250.0) == 0, rounds.output()
    infos = sorted((read_info(bag) for bag in find_bags(bags)), key=lambda info: info.episode_id)
    assert [info.episode_id[-5:] for info in infos] == ['t0-s1', 't0-s2', 't1-s1', 't1-s2']
    first = adapter_id(out / 'update_1' / 'tpo')
    assert [info.adapter_id for info in infos] == ['base', first, 'base', first]
    assert adapter_id(out / 'update_2' / 'tpo') != first and not read_manifest(bags)
    again = ros_process('grape_bringup.iteration_node', ROUNDS | {'output_dir': bags})
    assert again.popen.wait(60.0) == 1 and 'holds bags already' in again.output()


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'tasks': ''}, "'tasks' is empty"),
        ({'trials': 1}, "'trials' is 1; expected 2 or more"),
        ({'temperature': 0.0}, 'greedy trials are equal'),
    ],
)
def test_rounds_that_could_give_no_pair_are_refused(changes, word):
    from grape_bringup.iteration_node import IterationNodeConfig

    with pytest.raises(ValueError, match=word):
        IterationNodeConfig(**ROUNDS | {'output_dir': '/bags'} | changes)


def test_each_round_has_seeds_of_its_own_as_grape_iterate_does():
    from grape_bringup.iteration_node import IterationNodeConfig

    config = IterationNodeConfig(**ROUNDS | {'output_dir': '/bags', 'seed': 7})
    one, two = config.requests(1), config.requests(2)
    assert [r.episode_id[-8:] for r in one + two] == [
        't0-s7001', 't1-s7001', 't0-s7002', 't1-s7002',
    ]  # fmt: skip
    assert len({r.seed for r in one + two}) == 4
