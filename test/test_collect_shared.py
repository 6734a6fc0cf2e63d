"""Collection through one shared engine, in processes and on Ray: what dies, and what it costs.

Real nodes, servers and simulators. The trials of a pool whose nodes hold the policy themselves are
what everything else has to equal.
"""

import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import graph_run
import numpy as np
import psutil
import pytest

from grape_bringup.graph_setup import SHARED, GraphSetup
from grape_bringup.manifest import read_manifest
from grape_bringup.pool import Pool
from grape_bringup.rollouts import played_by, trial_requests
from grape_bringup.shared_engine import EngineError, SharedEngine, choose_engine
from grape_episode.bag import find_bags, read_episode, read_info
from grape_episode.outcome import Outcome

STEPS = 16
LONG_S = 280.0  # for what takes 10 s on a quiet machine
RECORDED_BYTES = 8_000  # of a bag in the middle of an episode
CELL = (graph_run.TASK, 0)
REQUESTS = trial_requests([CELL], 4, 3, 1.0, STEPS)


@pytest.fixture(scope='module')
def made(ros_env, tmp_path_factory):
    """A policy, an adapter, and the trials of nodes with an engine each."""
    root = tmp_path_factory.mktemp('collect')
    policy = graph_run.write_policy(root / 'policy')
    graph_run.write_adapter(policy, root / 'other')
    contract = str(graph_run.write_contract(root / 'small.yaml'))
    setup = GraphSetup(policy, contract=contract, rendering='fast')
    with Pool(setup, root / 'logs', 1) as pool:
        records = pool.run(REQUESTS, root / 'own', played_by(contract, 'fast', policy))
        other = play_adapted(pool, root / 'own_other', setup, root / 'other')
    return SimpleNamespace(
        root=root,
        policy=policy,
        adapter=root / 'other',
        setup=setup,
        own={record.episode_id: read_episode(root / 'own' / record.bag) for record in records},
        own_other=other,
    )


def play_adapted(pool, folder, setup, adapter):
    by = played_by(setup.contract, 'fast', setup.policy, adapter)
    (record,) = pool.run(REQUESTS[:1], folder, by, adapter)
    return read_episode(folder / record.bag)


def assert_same(found, expected, tolerance=0.0):
    """The same trial, and as good to learn from."""
    np.testing.assert_array_equal(found.action_token_ids, expected.action_token_ids)
    np.testing.assert_allclose(found.token_log_probs, expected.token_log_probs, 0, tolerance)
    np.testing.assert_array_equal(found.policy_images()[-1], expected.policy_images()[-1])
    for name in ('policy_sha256', 'adapter_id', 'unnorm_key', 'has_log_probs'):
        assert found.info.policy.get(name) == expected.info.policy.get(name), name
    assert found.info.adapter_id == expected.info.adapter_id


def assert_each_once(folder, own, tolerance=0.0):
    """In the manifest and, but for errors, among the bags; equal to the nodes' own."""
    records = read_manifest(folder)
    assert sorted(r.episode_id for r in records) == sorted(own)
    assert all(r.decided for r in records)
    for record in records:
        assert_same(read_episode(folder / record.bag), own[record.episode_id], tolerance)
    bags = [read_info(bag) for bag in find_bags(folder)]
    decided = [info.episode_id for info in bags if info.outcome != Outcome.ERROR]
    assert sorted(decided) == sorted(record.bag for record in records)


def is_recording(folder, name='*'):
    """Whether a bag is in the middle of its episode."""
    return any(
        not (path.parent / 'metadata.yaml').exists() and path.stat().st_size > RECORDED_BYTES
        for path in folder.glob(f'{name}/*.mcap')
    )


def processes(*words):
    """The living processes whose command line has all of these words."""
    found = []
    for process in psutil.process_iter(['cmdline', 'status']):
        line = ' '.join(process.info['cmdline'] or [])
        if process.info['status'] != psutil.STATUS_ZOMBIE and all(word in line for word in words):
            found.append(process)
    return found


@pytest.mark.sim
def test_whatever_is_killed_every_trial_is_collected_once_and_as_with_own_engines(made):
    """SIGKILL for the bridge and the server, one a trial; test_graph_nodes.py has all nodes."""
    folder, logs = made.root / 'shared', made.root / 'shared_logs'
    setup = replace(made.setup, engine=SHARED)
    requests, victims = REQUESTS[:2], ['bridge_node.yaml', 'serve']

    def kill_one_after_the_other():
        for request, victim in zip(requests, victims, strict=True):
            graph_run.wait_until(
                lambda name=request.episode_id: is_recording(folder, name), LONG_S
            )
            where = made.policy if victim == 'serve' else logs
            for process in processes('grape_bringup.child', victim, str(where)):
                process.kill()

    killer = threading.Thread(target=kill_one_after_the_other)
    killer.start()
    with Pool(setup, logs, 1) as pool:
        pool.run(requests, folder, played_by(setup.contract, 'fast', made.policy))
        killer.join()
        assert pool._engine.starts == 2
        adapted = play_adapted(pool, made.root / 'shared_other', setup, made.adapter)
    assert_each_once(folder, {r.episode_id: made.own[r.episode_id] for r in requests})
    assert_same(adapted, made.own_other)
    errors = [bag for bag in find_bags(folder) if read_info(bag).outcome == Outcome.ERROR]
    # Of the bridge. The server's trial outlives it (test_remote_node.py), unless a busy machine
    # takes longer than 30 s to start it again.
    assert 1 <= len(errors) <= 2
    assert not processes('grape_bringup.child', str(made.policy))


@pytest.mark.sim
def test_a_killed_ray_worker_and_ctrl_c_lose_nothing_and_another_kind_of_pool_goes_on(made):
    """`grape collect --ray local`, then the same command without Ray."""
    pytest.importorskip('ray', reason="Ray is not installed: pip install '.[ray]'")
    folder, log = made.root / 'ray', made.root / 'ray.log'
    command = [
        'collect', '--policy', made.policy, '--task', graph_run.TASK, '--init-states', 0,
        '--trials', len(REQUESTS), '--seed', 3, '--max-steps', STEPS, '--rendering', 'fast',
        '--contract', made.setup.contract, '--engine', 'shared', '--out', folder,
    ]  # fmt: skip
    running = graph_run.start_grape(log, *command, '--ray', 'local', '--workers', 2)
    try:
        worker = graph_run.wait_until(playing_in_ray, LONG_S)
        worker.kill()
        graph_run.wait_until(lambda: read_manifest(folder), LONG_S)
        running.send_signal(signal.SIGINT)
        assert running.wait(LONG_S) == 130, log.read_text()
    finally:
        running.kill()
    assert 'the Ray worker died' in ' '.join(log.read_text().split())
    graph_run.wait_until(
        lambda: not processes('grape-ray-') and not processes('ray::Graph'), LONG_S
    )
    assert all(record.decided for record in read_manifest(folder))
    done = graph_run.grape(*command, '--workers', 1, timeout_s=LONG_S)
    assert done.returncode == 0, done.stderr
    assert_each_once(folder, made.own, tolerance=1e-5)  # two workers: batches of two


def playing_in_ray():
    """Return a Ray worker whose nodes are in the middle of an episode."""
    for recorder in processes('grape-ray-', 'recorder_node.yaml'):
        scratch = recorder.info['cmdline'][-1].split('/logs')[0]
        if is_recording(Path(scratch, 'bags')):
            return recorder.parent()
    return None


def test_large_weights_and_gpus_are_shared_unless_a_person_says_otherwise(tmp_path):
    small, large = tmp_path / 'small', tmp_path / 'large'
    for folder, size in ((small, 2**20), (large, 2**30 + 1)):
        folder.mkdir()
        with (folder / 'model.safetensors').open('wb') as stream:
            stream.truncate(size)
    chosen = [choose_engine('auto', small, 'cpu'), choose_engine('auto', large, 'cpu')]
    assert [*chosen, choose_engine('auto', small, 'cuda:1')] == ['own', 'shared', 'shared']
    assert choose_engine('own', large, 'cuda') == 'own'
    with pytest.raises(EngineError, match="'both' is not one of: auto, own, shared"):
        choose_engine('both', small, 'cpu')


def test_a_policy_that_cannot_be_served_ends_the_wait_with_the_servers_reason(tmp_path):
    engine = SharedEngine(GraphSetup(tmp_path / 'nothing'), tmp_path, 2, '127.0.0.1')
    try:
        with pytest.raises(EngineError, match='policy_server ended with code 1: .*config.json'):
            engine.wait_until_ready(threading.Event())
    finally:
        engine.stop()
