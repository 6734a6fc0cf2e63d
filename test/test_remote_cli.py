"""`grape collect` and `grape evaluate` of a policy on a server, through the real graph."""

import json
from types import SimpleNamespace

import graph_run
import numpy as np
import pytest
from remote_peers import LEARNED, ForeignServer, local_backend

from grape_episode.bag import find_bags, read_episode
from grape_policy_node.backend import Seen, Start

ASK = ('--task', graph_run.TASK, '--rendering', 'fast', '--workers', 1)


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        (('--policy', 'ws://127.0.0.1:9'), 'nothing listens at ws://127.0.0.1:9'),
        (('--policy', 'ws://127.0.0.1:9', '--remote', 'colour=red'), 'token_file, protocol'),
        (('--policy', 'models/grape_tiny', '--remote', 'protocol=openpi'), 'is a folder'),
    ],
)
def test_a_server_that_cannot_be_used_is_named_before_anything_is_started(
    tmp_path, arguments, word
):
    done = graph_run.grape('collect', *arguments, '--init-states', 0, '--out', tmp_path, *ASK)
    assert done.returncode == 1 and word in done.stderr and 'Traceback' not in done.stderr


@pytest.fixture(scope='module')
def played(ros_env, policy_server, tmp_path_factory):
    """A served policy that collects and a foreign one that is evaluated, at the same time."""
    root = tmp_path_factory.mktemp('played')
    contract = graph_run.write_contract(root / 'small.yaml')
    foreign = ForeignServer(np.zeros((5, 7)))
    common = ('--max-steps', 4, '--contract', contract, *ASK)
    commands = {
        'collect': (
            '--policy', policy_server.url, '--remote', f'token_file={policy_server.token_file}',
            '--init-states', 0, '--trials', 1, '--seed', 3, '--out', root / 'trials',
        ),
        'evaluate': (
            '--policy', foreign.url, '--remote', 'protocol=openpi', '--init-states', 3,
            '--json', root / 'eval.json',
        ),
    }  # fmt: skip
    running = {
        name: graph_run.start_grape(root / f'{name}.log', name, *given, *common)
        for name, given in commands.items()
    }
    codes = {name: process.wait(120) for name, process in running.items()}
    foreign.close()
    said = {name: ' '.join((root / f'{name}.log').read_text().split()) for name in commands}
    return SimpleNamespace(root=root, codes=codes, said=said, foreign=foreign)


@pytest.mark.sim
def test_trials_of_a_served_policy_are_what_its_folder_would_have_done(played, policy_server):
    """Collected through bridge, policy node and recorder: tokens and log-probabilities equal."""
    assert played.codes['collect'] == 0, played.said['collect']
    episode = read_episode(find_bags([played.root / 'trials'])[0])
    info = episode.info
    assert info.policy['remote_url'] == policy_server.url and info.policy['has_log_probs']
    assert (info.temperature, episode.temperature, info.adapter_id) == (1.0, 1.0, 'base')
    start = Start(info.episode_id, info.instruction, 1.0, info.seed)
    player = local_backend(policy_server.folder).begin(start, lambda: True)
    for step, image in enumerate(episode.policy_images()):
        decision = player.act(Seen(step, image), lambda: True)
        np.testing.assert_array_equal(episode.action_token_ids[step], decision.token_ids)
        np.testing.assert_array_equal(episode.token_log_probs[step], decision.log_probs)
    assert step == 3


@pytest.mark.sim
def test_a_foreign_policy_is_evaluated_and_its_unknown_training_states_are_said(played):
    assert played.codes['evaluate'] == 0, played.said['evaluate']
    said = played.said['evaluate']
    assert 'gives no log-probabilities' in said and 'is not known' in said
    found = json.loads((played.root / 'eval.json').read_text())
    assert (found['n'], found['errors'], found['policy']) == (1, 0, played.foreign.url)
    assert found['training_states_unknown_of'] == ['policy']
    assert found['config']['protocol'] == 'openpi' and 'own' in found['config']['sampling']
    assert len(played.foreign.seen) == 1  # a chunk of five, four steps


@pytest.mark.sim
def test_states_that_a_server_says_its_policy_learned_from_are_not_evaluated(
    ros_env, policy_server, tmp_path
):
    done = graph_run.grape(
        'evaluate', '--policy', policy_server.url, '--json', tmp_path / 'eval.json',
        '--remote', f'token_file={policy_server.token_file}',
        '--init-states', LEARNED[0][1], *ASK,
    )  # fmt: skip
    assert done.returncode == 1 and 'share 1 initial states' in done.stderr
