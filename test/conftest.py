"""Fixtures: a ROS 2 environment of this test run's own, and node processes that always end."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from grape_bringup.ros_environment import claim_domain_id, ros_environment

log = logging.getLogger('ros_process')


@pytest.fixture(scope='session')
def ros_env(tmp_path_factory):
    """Set the environment of node processes in this process too; returns the variables set."""
    pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')
    with claim_domain_id() as domain_id, pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_LOG_DIR', str(tmp_path_factory.mktemp('ros_log')))
        environment = ros_environment(domain_id)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(scope='session')
def policy_server(tmp_path_factory):
    """One `grape serve` for all tests; who kills it starts it again (remote_peers.py)."""
    from remote_peers import PolicyProcess

    server = PolicyProcess(tmp_path_factory.mktemp('serve'), ['--max-message-mb', 1]).start()
    yield server.wait_healthy()
    code = server.stop()
    log.info('grape serve (%s):\n%s', code, server.output()[-4000:])
    assert code == 0


@dataclass(frozen=True)
class RosProcess:
    """A node in a process and a process group of its own; its output goes to log_path."""

    module: str
    popen: subprocess.Popen
    log_path: Path

    def output(self) -> str:
        """Return what it has written so far, stdout and stderr together."""
        return self.log_path.read_text(errors='replace')

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        """Wait until text is in its output; AssertionError when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while text not in self.output():
            code = self.popen.poll()
            assert code is None, f'{self.module} ended with {code}:\n{self.output()}'
            assert time.monotonic() < deadline, f'{self.module}: no {text!r} in {self.output()}'
            time.sleep(0.02)

    def stop(self, timeout_s: float = 10.0) -> int:
        """End it as Ctrl-C would, and by force after timeout_s; returns its exit code."""
        self._signal(signal.SIGINT)
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning('%s did not end %.0f s after SIGINT: killed', self.module, timeout_s)
            return self.kill()

    def kill(self) -> int:
        """Kill it and its children with SIGKILL; returns its exit code."""
        self._signal(signal.SIGKILL)
        return self.popen.wait(10.0)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            log.debug('%s has ended', self.module)


@pytest.fixture
def ros_process(ros_env, tmp_path):
    """Return start(module, parameters={}, arguments=(), environment={}) -> RosProcess.

    The node runs as `python -m module *arguments --ros-args -p name:=value ...`. Whatever is left
    when the test ends is stopped with its process group, and its output goes to the test's log.
    """
    with _ros_processes(tmp_path) as start:
        yield start


@pytest.fixture(scope='module')
def ros_processes(ros_env, tmp_path_factory):
    """Return the same as ros_process, for nodes that all tests of a module share."""
    with _ros_processes(tmp_path_factory.mktemp('nodes')) as start:
        yield start


@contextmanager
def _ros_processes(folder):
    """Give a function that starts nodes with their logs in a folder; end what it started."""
    started: list[RosProcess] = []

    def start(module, parameters=None, arguments=(), environment=None) -> RosProcess:
        command = [sys.executable, '-m', module, *map(str, arguments), '--ros-args']
        for name, value in (parameters or {}).items():
            value = str(value) if isinstance(value, Path) else value
            command += ['-p', f'{name}:={json.dumps(value)}']
        log_path = folder / f'{len(started)}-{module}.log'
        with log_path.open('wb') as output:
            popen = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', **(environment or {})},
                start_new_session=True,
            )
        started.append(RosProcess(module, popen, log_path))
        return started[-1]

    try:
        yield start
    finally:
        for process in reversed(started):
            process.stop()
            process._signal(signal.SIGKILL)  # children that outlived it
        for process in started:
            log.info(
                '%s (%s):\n%s', process.module, process.popen.returncode, process.output()[-4000:]
            )
        if any(process.popen.returncode == -signal.SIGKILL for process in started):
            _free_shared_memory()


def _free_shared_memory() -> None:
    """Remove what killed participants left in /dev/shm (35 MB each); living ones are kept."""
    bin_dir = Path(sys.prefix, 'bin')
    if (bin_dir / 'fastdds').is_file():
        # The tool starts whatever `python3` the path names; it needs the one that has psutil.
        path = f'{bin_dir}{os.pathsep}{os.environ["PATH"]}'
        subprocess.run(
            [bin_dir / 'fastdds', 'shm', 'clean'],
            env={**os.environ, 'PATH': path},
            capture_output=True,
            timeout=30,
            check=False,
        )
