"""Recorders killed with SIGKILL at random moments: at most one chunk is lost, each time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import _free_shared_memory
from recorder_peer import Peer, wait_until
from recorder_streams import JOINTS, ROBOT, Stream, streamed

from grape_episode.bag import BagError, read_episode, read_info, recover
from grape_episode.outcome import Outcome

SEEDS = 12
CHUNK_S = 0.1
# From a message's publication to its place in a chunk, on a machine that is busy.
UNDER_WAY_S = 0.4


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def forks(ros_env):
    """Start recorders with start(*arguments) -> process id."""
    script = Path(__file__).with_name('recorder_forks.py')
    parent = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert parent.stdout.readline() == 'ready\n'

    def start(*arguments):
        parent.stdin.write(json.dumps(arguments) + '\n')
        parent.stdin.flush()
        return int(parent.stdout.readline())

    yield start
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    _free_shared_memory()


@pytest.fixture(scope='module')
def robot(ros, forks, tmp_path_factory):
    """A peer, a stream, and recorders that are started for each seed."""
    folder = tmp_path_factory.mktemp('killed')
    (folder / 'contract.yaml').write_text(yaml.safe_dump(ROBOT.to_dict()))
    peer, stream = Peer(ros, contract=ROBOT), Stream(ros, JOINTS)
    peer.bags, peer.stream = folder / 'bags', stream
    events = peer.contract.topic('episode_event').name
    parameters = {
        'output_dir': peer.bags,
        'contract': folder / 'contract.yaml',
        'chunk_s': CHUNK_S,
    }
    arguments = ['--ros-args']
    for name, value in parameters.items():
        arguments += ['-p', f'{name}:={value}']

    def ends():
        """Return the recorders' ends of all topics; the killed ones' stay for a while."""
        node = peer.node
        found = node.get_publishers_info_by_topic(events)
        for topic in ROBOT.topics:
            found += node.get_subscriptions_info_by_topic(topic.name)
        return {bytes(end.endpoint_gid) for end in found if end.node_name == 'recorder_node'}

    def start(name):
        """Start a recorder and wait until it has the episode open."""
        before = ends()
        pid = forks(*arguments)
        wait_until(lambda: len(ends() - before) > len(ROBOT.topics), 60.0)
        time.sleep(0.3)  # until it sees us as well
        peer.start(name)
        return pid

    peer.start_recorder = start
    yield peer
    stream.close()
    peer.close()


@pytest.mark.parametrize('seed', range(SEEDS))
def test_recorder_killed_at_a_random_moment_loses_at_most_one_chunk(robot, seed):
    name = f'killed-{seed}'
    pid = robot.start_recorder(name)
    random = np.random.default_rng(seed)
    lifetime_s = random.uniform(0.6, 1.4)
    began, sent, first = time.monotonic(), [], robot.stream.sent
    while time.monotonic() - began < lifetime_s:
        robot.step(name, len(sent))
        robot.stream.send()
        sent.append(time.monotonic())
        time.sleep(random.uniform(0.0, 0.01))
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    bag = robot.bags / name
    with pytest.raises(BagError, match='grape bag recover'):
        read_episode(bag)
    recover(bag)
    old_enough = sum(at < killed - CHUNK_S - UNDER_WAY_S for at in sent)
    episode = read_episode(bag)
    assert episode.info.outcome is Outcome.INTERRUPTED
    assert old_enough <= episode.info.steps == len(episode.images['agentview'])
    numbers, times = streamed(bag, JOINTS)
    kept = [number for number in numbers if number >= first]
    assert kept == list(range(first, first + len(kept))) and len(kept) >= old_enough
    assert times == sorted(times)
    assert not (bag / '.reserve').exists() and read_info(bag).steps == episode.info.steps
