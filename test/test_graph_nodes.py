"""The graph of real nodes with the real simulator: faults, hot swaps, parity."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import graph_run
import numpy as np
import pytest

from grape_bringup.graph import EpisodeRequest, Graph, GraphError, GraphSetup
from grape_episode.bag import read_episode, read_info
from grape_episode.outcome import Outcome
from grape_policy_node.engine import Engine

pytestmark = pytest.mark.sim


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A policy, an adapter and a contract."""
    root = tmp_path_factory.mktemp('graph')
    policy = graph_run.write_policy(root / 'policy')
    adapter_id = graph_run.write_adapter(policy, root / 'other')
    return SimpleNamespace(
        root=root,
        policy=policy,
        adapter=root / 'other',
        adapter_id=adapter_id,
        contract=str(graph_run.write_contract(root / 'small.yaml')),
    )


@pytest.fixture(scope='module')
def graph(ros_env, made):
    """One graph for all tests: starting one takes seconds."""
    setup = GraphSetup(
        made.policy,
        contract=made.contract,
        rendering='fast',
        dump_tensors=str(made.root / 'tensors'),
    )
    with Graph(setup, made.root / 'bags', made.root / 'logs') as running:
        yield running


def ask(name, **options):
    return EpisodeRequest(
        name, graph_run.TASK, **{'init_state': 0, 'seed': 5, 'max_steps': 8} | options
    )


def test_tensors_that_the_policy_saw_equal_those_rebuilt_from_the_bag(graph, made):
    """The parity test: contract transform, resize and normalisation once, bit for bit."""
    result = graph.run_episode(ask('parity', temperature=1.0))
    assert (result.outcome, result.steps) == (Outcome.FAILURE, 8)
    episode = read_episode(result.bag)
    rebuilt = Engine.load(made.policy).processor.pixel_values(list(episode.policy_images()))
    live = [np.load(f) for f in sorted((made.root / 'tensors' / 'parity').glob('*.npy'))]
    assert len(live) == 8
    np.testing.assert_array_equal(np.stack(live), rebuilt.numpy())


def test_an_adapter_is_switched_into_the_running_policy_node(graph, made):
    graph.start()
    before = graph.pids
    graph.use_adapter(made.adapter)
    swapped = read_info(graph.run_episode(ask('swapped', max_steps=2)).bag)
    graph.use_adapter(None)
    base = read_info(graph.run_episode(ask('base', max_steps=2)).bag)
    assert (swapped.adapter_id, base.adapter_id) == (made.adapter_id, 'base')
    assert graph.pids == before


def test_a_folder_that_is_no_adapter_is_refused_with_the_policy_nodes_reason(graph, tmp_path):
    graph.start()
    with pytest.raises(GraphError, match='adapter_config.json'):
        graph.use_adapter(tmp_path)
    graph.use_adapter(None)


def test_the_recorder_changes_folders_while_the_simulator_stays(graph, made):
    graph.start()
    bridge = graph.pids['bridge_node']
    graph.record_to(made.root / 'elsewhere')
    result = graph.run_episode(ask('moved', max_steps=2))
    assert result.bag.parent == made.root / 'elsewhere' and result.outcome == Outcome.FAILURE
    assert graph.pids['bridge_node'] == bridge
    graph.record_to(made.root / 'bags')


def test_an_unknown_task_is_an_error_result_with_the_choices(graph):
    result = graph.run_episode(EpisodeRequest('unknown', 'libero_nope/0', 0, 0))
    assert result.outcome == Outcome.ERROR and 'libero_spatial' in result.detail


def test_cancelling_ends_an_episode_as_interrupted_and_the_nodes_live_on(graph):
    graph.start()
    before, cancel = graph.pids, threading.Event()
    threading.Timer(1.5, cancel.set).start()
    result = graph.run_episode(ask('cancelled', max_steps=5000), cancel)
    assert result.outcome == Outcome.INTERRUPTED and graph.pids == before


@pytest.mark.parametrize('victim', ['bridge_node', 'policy_node'])
def test_a_node_killed_mid_episode_gives_an_error_and_the_next_episode_works(graph, made, victim):
    """No hang, a bag that says error, and new nodes."""
    graph.start()
    pid, name = graph.pids[victim], f'killed_{victim}'

    def kill_after_some_steps():
        tensors = made.root / 'tensors' / name
        graph_run.wait_until(lambda: len(list(tensors.glob('*.npy'))) >= 5)
        os.killpg(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_after_some_steps)
    killer.start()
    began = time.monotonic()
    result = graph.run_episode(ask(name, max_steps=5000))
    killer.join()
    assert time.monotonic() - began < 60
    assert result.outcome == Outcome.ERROR and f'{victim} was ended by SIGKILL' in result.detail
    info = read_info(result.bag)
    assert info.outcome == Outcome.ERROR and info.steps >= 4
    assert ('vanished' if victim == 'bridge_node' else 'SIGKILL') in info.detail
    after = graph.run_episode(ask(f'after_{victim}', max_steps=2))
    assert after.outcome == Outcome.FAILURE and graph.pids[victim] != pid


def test_a_missing_checkpoint_stops_the_start_with_the_nodes_reason(ros_env, tmp_path):
    with Graph(GraphSetup(tmp_path / 'nothing'), tmp_path / 'bags', tmp_path / 'logs') as broken:
        with pytest.raises(GraphError, match='policy_node ended with code 1: .*config.json'):
            broken.start()
        assert broken.pids == {}


def test_nodes_do_not_outlive_a_killed_command_line(ros_env, tmp_path):
    program = (
        'import sys, time; from pathlib import Path; from grape_bringup.graph import *\n'
        f'root = Path({str(tmp_path)!r})\n'
        'graph = Graph(GraphSetup(), root / "bags", root / "logs"); graph.start()\n'
        'print("ready", flush=True); time.sleep(600)'
    )
    parent = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == 'ready\n'
    assert len(graph_run.nodes_below(tmp_path)) == 2
    parent.kill()
    parent.wait()
    graph_run.wait_until(lambda: not graph_run.nodes_below(tmp_path), 20.0)
