"""The sandbox of cost programs: its walls, its deadline, its worker's life, its messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hostile_costs import body, cost
from test_costs_python import random_inputs

from grape_trainer.scoring import cost_sandbox
from grape_trainer.scoring.cost_channel import Channel, Ended, Late
from grape_trainer.scoring.cost_form import StageInputs
from grape_trainer.scoring.cost_program import parse_program
from grape_trainer.scoring.cost_sandbox import CostSandbox, Limits, SandboxError
from grape_trainer.scoring.cost_source import ProgramError

SOURCES = Path(cost_sandbox.__file__).parents[2]
# What a program could do that had found its way out of the interpreter.
ESCAPES = """
import ctypes, json, mmap, os, resource, signal, socket, sys
sys.path.append(sys.argv[1])
from grape_trainer.scoring.cost_lockdown import lock_down
answers = os.dup(1)
libc = ctypes.CDLL(None, use_errno=True)
walls = lock_down(os.dup(0), answers, 64 * 2**20, 60)
def attempt(action):
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return 'done'
def native(name, *arguments):
    return lambda: (_ for _ in ()).throw(OSError()) if getattr(libc, name)(*arguments) < 0 else 0
found = {
    'open': attempt(lambda: open('/etc/passwd')),
    'write': attempt(lambda: open('canary', 'w')),
    'list': attempt(lambda: os.listdir('/')),
    'remove': attempt(lambda: os.remove(sys.argv[2])),
    'dup': attempt(lambda: os.dup(answers)),
    'pipe': attempt(os.pipe),
    'fork': attempt(os.fork),
    'exec': attempt(lambda: os.execv('/bin/true', ['true'])),
    'socket': attempt(socket.socket),
    'kill': attempt(lambda: os.kill(os.getppid(), 0)),
    'root': attempt(lambda: os.setuid(0)),
    'limits': attempt(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))),
    'ptrace': attempt(native('ptrace', 16, os.getppid(), 0, 0)),
    'executable': attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)),
    'memory': attempt(lambda: bytearray(512 * 2**20)),
    'other_file': attempt(lambda: os.write(2, b'x')),
}
os.write(answers, json.dumps([walls, found]).encode())
os._exit(0)
"""


@pytest.fixture(scope='module')
def sandbox():
    with CostSandbox() as sandbox:
        yield sandbox


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the walls are those of Linux')
def test_behind_the_walls_even_python_itself_can_do_nothing(tmp_path):
    precious = tmp_path / 'precious'
    precious.touch()
    precious.chmod(0o666)
    (tmp_path / 'empty').mkdir()
    done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', ESCAPES, str(SOURCES), str(precious)],
        capture_output=True, cwd=tmp_path / 'empty', env={}, check=True, timeout=60,
    )  # fmt: skip
    walls, found = json.loads(done.stdout)
    assert walls['seccomp'] and walls['unprivileged']
    assert [name for name, result in found.items() if result == 'done'] == []
    assert found['memory'] == 'MemoryError'
    assert precious.exists() and done.stderr == b''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_the_worker_has_no_files_no_environment_and_no_privileges(sandbox):
    sandbox.start()
    process = Path('/proc') / str(sandbox.pid)
    links = [os.readlink(link) for link in (process / 'fd').iterdir()]
    assert len(links) == 5 and all('pipe' in link or 'null' in link for link in links)
    status = dict(line.split(':\t', 1) for line in (process / 'status').read_text().splitlines())
    assert status['Uid'].split()[0] != '0' and status['NoNewPrivs'] == '1'
    assert status['Seccomp'] == '2' and int(status['CapEff'], 16) == 0
    environment = (process / 'environ').read_bytes().decode().split('\0')
    assert all(line.endswith('_NUM_THREADS=1') for line in environment if line)
    assert os.getsid(sandbox.pid) == sandbox.pid != os.getsid(0)


def test_a_worker_that_hangs_is_killed_at_the_deadline_and_replaced():
    with CostSandbox(Limits(deadline_s=0.3)) as sandbox:
        program = parse_program(cost('1.0'), sandbox)
        first = sandbox.pid
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(ProgramError, match='did not end within 0.3 s'):
            sandbox.evaluate(program, {1: random_inputs(seed=1)})
        assert time.monotonic() - began < 1.0
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert len(sandbox.evaluate(program, {1: random_inputs(seed=1)})) == 1
        assert sandbox.starts == 2


def test_what_uses_up_its_time_is_stopped_and_named():
    # Within the steps of every state, but there are many states.
    slow = body('x = 0.0', 'for i in range(3000): x += 1.0')
    with CostSandbox(Limits(deadline_s=0.3, per_state_s=0.0)) as sandbox:
        program = parse_program(cost('1.0') + slow.replace('target', 'path'), sandbox)
        with pytest.raises(ProgramError, match='stage1_path_constraint1: stopped: it did not end'):
            sandbox.evaluate(program, {1: random_inputs(seed=1, states=2000)})


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_died_between_requests_is_replaced_unnoticed(number):
    with CostSandbox() as sandbox:
        program = parse_program(cost('1.0'), sandbox)
        os.kill(sandbox.pid, number)
        while sandbox.pid is not None:
            time.sleep(0.01)
        assert sandbox.evaluate(program, {1: random_inputs(seed=1)})
        assert sandbox.starts == 2


def test_one_worker_serves_a_thousand_episodes(sandbox):
    program = parse_program(cost('np.linalg.norm(end_effector - keypoints[0])'), sandbox)
    started, inputs = sandbox.starts, random_inputs(seed=1)
    expected = np.linalg.norm(inputs.end_effector - inputs.keypoints[:, 0], axis=-1)
    for _ in range(1000):
        (costs,) = sandbox.evaluate(program, {1: inputs}).values()
    assert np.allclose(costs, expected, rtol=0, atol=1e-15)
    assert sandbox.starts - started <= 1000 / sandbox.limits.requests


def test_costs_come_as_one_finite_number_a_state_of_the_stages_asked_for(sandbox):
    text = cost('end_effector[0]') + cost('end_effector[1]').replace('stage1', 'stage2')
    program = parse_program(text, sandbox)
    first, second = random_inputs(seed=1), random_inputs(seed=2, states=7, keypoints=2)
    both = sandbox.evaluate(program, {1: first, 2: second, 5: first})
    assert list(both) == ['stage1_target_constraint1', 'stage2_target_constraint1']
    assert np.array_equal(both['stage1_target_constraint1'], first.end_effector[:, 0])
    assert np.array_equal(both['stage2_target_constraint1'], second.end_effector[:, 1])
    assert both['stage1_target_constraint1'].dtype == np.float64
    assert sandbox.evaluate(program, {3: first}) == {}
    assert list(sandbox.evaluate(program, {1: first, 2: second}, ['stage2_target_constraint1']))


@pytest.mark.parametrize(
    ('expression', 'text'),
    [
        ('np.inf if end_effector[0] > 0.0 else 0.0', 'state 3: it returns inf; expected a finite'),
        ('end_effector if end_effector[0] > 0.0 else 1', r'state 3: .* array of shape \(3,\)'),
        ('None if end_effector[0] > 0.0 else 1', 'state 3: it returns nothing'),
    ],
)
def test_a_cost_that_is_no_finite_number_is_refused_with_its_state(sandbox, expression, text):
    inputs = random_inputs(seed=1)
    inputs.end_effector[:, 0] = -1.0
    inputs.end_effector[3:, 0] = 1.0
    with pytest.raises(ProgramError, match='stage1_target_constraint1: ' + text):
        sandbox.evaluate(parse_program(cost(expression), sandbox), {1: inputs})


def test_a_stage_without_progress_says_so(sandbox):
    text = cost('1.0 - progress').replace('keypoints)', 'keypoints, progress)')
    inputs = random_inputs(seed=1)
    without = StageInputs(**vars(inputs) | {'progress': None})
    program = parse_program(text, sandbox)
    assert len(sandbox.evaluate(program, {1: inputs})) == 1
    with pytest.raises(ProgramError, match='no progress in this stage'):
        sandbox.evaluate(program, {1: without})


def test_states_that_do_not_belong_together_are_an_error():
    good = vars(random_inputs(seed=1))
    with pytest.raises(ValueError, match=r'held is \(3,\), expected \(20,\)'):
        StageInputs(**good | {'held': np.zeros(3)})
    with pytest.raises(ValueError, match='there is none'):
        StageInputs(np.zeros((0, 3)), np.zeros((0, 2, 3)), [], [], [])


def test_a_worker_that_cannot_start_is_no_refusal(monkeypatch):
    monkeypatch.setattr(cost_sandbox, '_START', 'raise SystemExit(3)')
    with CostSandbox() as sandbox, pytest.raises(SandboxError, match='did not start'):
        parse_program(cost('1.0'), sandbox)


def test_closing_leaves_neither_process_nor_folder():
    with CostSandbox() as sandbox:
        sandbox.start()
        pid, folder = sandbox.pid, sandbox._folder
        assert folder.is_dir() and list(folder.iterdir()) == []
    assert not folder.exists() and sandbox.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\xff\xff\xff\xff',
        b'\0\0\0\x02[]',
        b'\0\0\0\x02{}',
        b'\0\0\0\x05{"a":',
        b'\0\0\0\x03abc',
    ],
)
def test_what_is_no_message_ends_the_conversation(content):
    read_fd, write_fd = os.pipe()
    os.write(write_fd, content)
    os.close(write_fd)
    with pytest.raises(Ended):
        Channel(read_fd, -1).receive()
    os.close(read_fd)


def test_a_message_that_does_not_come_is_late():
    read_fd, write_fd = os.pipe()
    began = time.monotonic()
    with pytest.raises(Late):
        Channel(read_fd, write_fd).receive(time.monotonic() + 0.1)
    assert time.monotonic() - began < 1.0
    os.close(read_fd)
    os.close(write_fd)
