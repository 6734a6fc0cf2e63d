"""One node in a process of its own: started, watched, and always ended."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

STOP_SIGNALS = (
    (signal.SIGINT, 10.0),  # as Ctrl-C: the recorder closes its bag
    (signal.SIGTERM, 3.0),
    (signal.SIGKILL, 5.0),
)
KILLED_S = 30.0  # until the system has taken a killed process away, on a busy machine
TAIL_LINES = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeSpec:
    """What to run: `python -m module` with these ROS parameters, or with plain arguments."""

    name: str
    module: str
    parameters: dict[str, object] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()  # instead of parameters


class NodeProcess:
    """A running node; its output goes to FOLDER/NAME.log."""

    def __init__(self, spec: NodeSpec, environment: Mapping[str, str], folder: Path) -> None:
        """Start it.

        Args:
            spec: module and parameters.
            environment: the whole environment of the process.
            folder: for NAME.yaml (its parameters, if any) and NAME.log (appended to).

        """
        self.spec = spec
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f'{spec.name}.log'
        command = [sys.executable, '-m', 'grape_bringup.child', str(os.getpid()), spec.module]
        command += spec.arguments or _ros_arguments(spec, folder)
        with self.log_path.open('ab') as output:
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, 'PYTHONUNBUFFERED': '1'},
                # Of its own: Ctrl-C reaches the command line, which ends the nodes in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also its group's."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self._popen.poll()

    def tail(self) -> str:
        """Return the last lines that this process wrote, on one line."""
        with self.log_path.open('rb') as stream:
            stream.seek(self._log_start)
            text = stream.read().decode(errors='replace')
        lines = [' '.join(line.split()) for line in text.splitlines() if line.strip()]
        return ' | '.join(lines[-TAIL_LINES:]) or '(it wrote nothing)'

    def reason(self) -> str:
        """Say how it ended, with the end of its log and where to read the rest."""
        code = self.returncode
        how = f'was ended by {signal.Signals(-code).name}' if code and code < 0 else 'ended'
        how += f' with code {code}' if code is not None and code >= 0 else ''
        return f'{self.spec.name} {how}: {self.tail()} (log: {self.log_path})'

    def interrupt(self) -> None:
        """Ask it to end, without waiting."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and its children at once, without waiting."""
        self._signal(signal.SIGKILL)

    def stop(self) -> int:
        """End it and whatever it started: SIGINT, then SIGTERM, then SIGKILL."""
        for number, wait_s in STOP_SIGNALS:
            if self._popen.poll() is not None:
                break
            self._signal(number)
            try:
                self._popen.wait(wait_s)
            except subprocess.TimeoutExpired:
                log.warning('%s did not end %.0f s after %s', self.spec.name, wait_s, number.name)
        self._signal(signal.SIGKILL)  # children that outlived it
        return self._popen.wait(KILLED_S)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            log.debug('%s has ended', self.spec.name)


def _ros_arguments(spec: NodeSpec, folder: Path) -> list[str]:
    parameters = folder / f'{spec.name}.yaml'
    parameters.write_text(yaml.safe_dump({'/**': {'ros__parameters': spec.parameters}}))
    return ['--ros-args', '--params-file', str(parameters)]


def free_port(host: str = '127.0.0.1') -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
