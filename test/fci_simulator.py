"""The simulator of the Franka Control Interface for tests, one server on a loopback address."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PORT = 1337  # of the protocol
VENV = ROOT / '.venv-franka-sim'


def install() -> None:
    """Make .venv-franka-sim; skips where it cannot be made."""
    done = subprocess.run(
        [ROOT / 'tools/franka_sim.sh'],
        env={**os.environ, 'PYTHON': sys.executable},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if done.returncode:
        pytest.skip(f'franka-sim could not be installed: {done.stderr[-500:]}')


def free_address() -> str:
    """Return a loopback address whose FCI port nobody listens on: the port itself is fixed."""
    # Neighbouring runs start at different places: the server lets two bind to one address.
    for number in range(os.getpid(), os.getpid() + 250):
        host = f'127.0.7.{2 + number % 250}'
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, PORT))
            except OSError:
                continue
        return host
    pytest.skip('port 1337 is taken on all of 127.0.7.2 to 127.0.7.251')


class FrankaSim:
    """One server; `start` again after `kill`."""

    def __init__(self, log: Path, *options: str) -> None:
        self.host = free_address()
        self._log = log
        self._options = options
        self._popen = None

    def start(self) -> None:
        with self._log.open('wb') as output:
            self._popen = subprocess.Popen(
                [VENV / 'bin/python', ROOT / 'test/fci_server.py', self.host]
                + list(self._options),
                stdout=output,
                stderr=subprocess.STDOUT,
                # Nothing of ours: the rendering that LIBERO is told to use is not there.
                env={'PATH': os.environ['PATH'], 'FR3_MJCF': str(VENV / 'fr3/fr3.xml')},
                start_new_session=True,
            )
        deadline = time.monotonic() + 60.0
        while True:
            assert self._popen.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, 'franka-sim does not listen'
            if 'running in background' in self._log.read_text(errors='replace'):
                return
            time.sleep(0.05)

    def push(self) -> None:
        """Push against the arm: a reflex."""
        self._popen.send_signal(signal.SIGUSR1)

    def freeze(self, is_frozen: bool) -> None:
        """Stop the process, or let it go on."""
        self._popen.send_signal(signal.SIGSTOP if is_frozen else signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        if self._popen is not None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait(10.0)
            self._popen = None
