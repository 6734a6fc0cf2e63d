"""The manager over DDS: the order of the stack, and what happens when one of its nodes goes."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from recorder_peer import wait_until, write_contract

from grape_bringup.robot.stack_watch import StackConfig, StackError, StackWatch

MANAGER = 'grape_bringup.robot.manager_node'
NODES = ['camera_node', 'recorder_node', 'guard_node', 'policy_node', 'trial_node']


class Peers:
    """manager_peer.py in a process."""

    def __init__(self, names):
        script = Path(__file__).with_name('manager_peer.py')
        self.said = []
        self._popen = subprocess.Popen(
            [sys.executable, script, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        self.said.extend(iter(self._popen.stdout.readline, ''))

    def tell(self, order):
        self._popen.stdin.write(f'{order}\n')
        self._popen.stdin.flush()
        self.wait_for(f'{order} done')

    def wait_for(self, text):
        wait_until(lambda: any(text in line for line in list(self.said)), 60.0)

    def order(self):
        return [line.strip() for line in self.said if not line.endswith('done\n')]

    def close(self):
        self._popen.kill()
        self._popen.wait()
        self._popen.stdout.close()
        self._popen.stdin.close()


@pytest.fixture
def peers(ros_env):
    started = []

    def start(*names):
        started.append(Peers(names))
        return started[-1]

    yield start
    for each in started:
        each.close()


def manage(ros_process, **parameters):
    settings = {'nodes': NODES, 'start_timeout_s': 30.0, 'heartbeat_timeout_s': 8.0} | parameters
    return ros_process(MANAGER, settings)


def test_stack_comes_up_in_order_and_goes_down_with_the_guard_disarmed_first(ros_process, peers):
    others = peers('trial_node', 'policy_node', 'guard_node')  # in another order
    manager = manage(ros_process)
    others.tell('start recorder_node')
    time.sleep(1.0)
    assert 'is up' not in manager.output()
    others.tell('start camera_node')
    manager.wait_for('the stack is up', 60.0)
    up = [line.split(' is up')[0].split()[-1] for line in manager.output().splitlines()
          if ' is up (' in line]  # fmt: skip
    assert up == NODES
    assert others.order() == ['policy_node configured', 'policy_node activated']
    manager.popen.send_signal(signal.SIGTERM)
    assert manager.popen.wait(30) == 0
    assert others.order()[2:] == ['guard_node armed False', 'policy_node deactivated']


def test_node_that_dies_takes_the_stack_down_and_the_exit_code_names_it(ros_process, peers):
    others = peers(*NODES)
    manager = manage(ros_process)
    manager.wait_for('the stack is up', 60.0)
    others.tell('end recorder_node')
    assert manager.popen.wait(30) == 31  # 30 + its place
    assert 'recorder_node is not there any more' in manager.output()
    assert others.order()[2:] == ['guard_node armed False', 'policy_node deactivated']


def test_node_that_hangs_is_noticed_by_its_silence(ros_process, peers):
    others = peers(*NODES)
    manager = manage(ros_process, heartbeat_timeout_s=3.0)
    manager.wait_for('the stack is up', 60.0)
    others.tell('hang trial_node')
    assert manager.popen.wait(30) == 34
    assert 'trial_node has said nothing on /diagnostics for 3' in manager.output()


def test_recorder_killed_by_sigkill_takes_the_stack_down(ros_process, peers, tmp_path):
    """The real recorder, and what the middleware knows of a process that said no goodbye."""
    others = peers('guard_node')
    recorder = ros_process(
        'grape_episode.recorder_node',
        {'output_dir': tmp_path / 'bags', 'contract': write_contract(tmp_path / 'c.yaml')},
    )
    manager = manage(ros_process, nodes=['recorder_node', 'guard_node'], lifecycle=[''])
    manager.wait_for('the stack is up', 60.0)
    recorder.kill()
    assert manager.popen.wait(30) == 30
    assert 'guard_node armed False' in others.order()


def test_node_that_never_appears_is_named_with_its_deadline(ros_process, peers):
    others = peers('camera_node', 'recorder_node', 'guard_node')
    manager = manage(ros_process, start_timeout_s=5.0)
    assert manager.popen.wait(60) == 13  # 10 + its place
    assert 'policy_node did not appear in the ROS graph' in manager.output()
    assert '(after 5 s)' in manager.output() and 'Traceback' not in manager.output()
    assert others.order() == ['guard_node armed False']


def test_policy_that_cannot_be_configured_ends_the_start(ros_process, peers):
    others = peers(*NODES)
    others.tell('refuse policy_node')
    manager = manage(ros_process)
    assert manager.popen.wait(60) == 13
    assert 'policy_node could not configure; look at its log' in manager.output()


def test_guard_that_is_gone_is_answered_by_the_advice_to_press_the_hardware_stop(
    ros_process, peers
):
    others = peers(*NODES)
    manager = manage(ros_process)
    manager.wait_for('the stack is up', 60.0)
    others.tell('end guard_node')
    assert manager.popen.wait(30) == 32
    assert 'press the hardware stop' in manager.output()


@pytest.mark.parametrize(
    ('parameters', 'word'),
    [({'nodes': ['a', 'a']}, 'each once'),
     ({'lifecycle': ['arm_node']}, 'lifecycle has arm_node'),
     ({'heartbeat_timeout_s': 0.0}, 'expected more than 0')],
)  # fmt: skip
def test_stack_that_makes_no_sense_is_refused(parameters, word):
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in parameters.items()}
    with pytest.raises(ValueError, match=word):
        StackConfig(**values)


def test_silence_of_a_driver_that_never_speaks_is_no_fault():
    watch = StackWatch(StackConfig(('driver', 'guard_node'), (), ('driver',)))
    watch.see(['driver', 'guard_node'])
    watch.hear('left/guard_node: loop', 0.0)
    for node in ('driver', 'guard_node'):
        watch.came_up(node, 0.0)
    watch.check(6.0)
    with pytest.raises(StackError, match='guard_node has said nothing') as caught:
        watch.check(6.1)
    assert caught.value.code == 31
