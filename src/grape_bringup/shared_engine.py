"""One policy server for all graphs of a pool: started, watched, started again when it dies.

N policy nodes with an engine each are N copies of the model. Here `grape serve` holds it once; the
nodes ask it as they would ask a server on another machine (docs/reference/remote.md). Questions
that wait together go through the model as one batch, each with its own generator, so that the
company changes no token. While the server is away the nodes wait, and then ask the same question
again: an episode goes on bit for bit.
"""

from __future__ import annotations

import http.client
import logging
import os
import secrets
import threading
import time
from dataclasses import replace
from pathlib import Path

from grape_bringup.graph_setup import OWN, SHARED, GraphSetup
from grape_bringup.node_process import NodeProcess, NodeSpec, free_port
from grape_policy_node.remote.bearer import VARIABLE
from grape_policy_node.remote.options import RemoteOptions
from grape_policy_node.remote.protocol import HEALTH_PATH

AUTO = 'auto'
ENGINES = (AUTO, OWN, SHARED)
OWN_MAX_GIB = 1.0  # weights that every worker may hold on its own
START_TIMEOUT_S = 900.0  # 7B from a slow disk, and its first compiled step
POLL_S = 0.2

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """The engine cannot be chosen or started; the text says why."""


def choose_engine(engine: str, policy: Path, device: str) -> str:
    """Return own or shared.

    Args:
        engine: in ENGINES; auto is own for small weights on the CPU, and shared otherwise.
        policy: checkpoint folder.
        device: that the policy runs on.

    Raises:
        EngineError: an unknown engine.

    """
    if engine not in ENGINES:
        raise EngineError(f"engine '{engine}' is not one of: {', '.join(ENGINES)}")
    if engine != AUTO:
        return engine
    weights = sum(path.stat().st_size for path in policy.glob('*.safetensors'))
    return OWN if device == 'cpu' and weights <= OWN_MAX_GIB * 2**30 else SHARED


class SharedEngine:
    """The server; its process is started by the first `wait_until_ready`."""

    def __init__(self, setup: GraphSetup, logs: Path, clients: int, host: str) -> None:
        """Prepare.

        Args:
            setup: what is served: its policy, unnorm_key and device.
            logs: folder for policy_server.log.
            clients: how many graphs will ask, which is also the largest batch.
            host: address to listen on; a token made here opens it.

        """
        self._host, self._port = host, free_port(host)
        self._logs = logs.resolve()
        self.clients_environment = {VARIABLE: secrets.token_urlsafe(32)}
        self.clients_setup = replace(
            setup,
            policy=None,
            remote=RemoteOptions(url=f'ws://{host}:{self._port}'),
            engine=OWN,
            device='cpu',
        )
        arguments = {
            '--policy': setup.policy.resolve(),
            '--unnorm-key': setup.unnorm_key,
            '--device': setup.device,
            '--host': host,
            '--port': self._port,
            '--max-batch': clients,
            '--max-clients': 2 * clients + 1,  # a lost one may linger while it connects again
        }
        self._spec = NodeSpec(
            'policy_server',
            'grape_bringup.cli',
            arguments=('serve', *(str(part) for pair in arguments.items() for part in pair)),
        )
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._failure = ''
        self._thread: threading.Thread | None = None
        self.starts = 0

    def wait_until_ready(self, cancel: threading.Event) -> None:
        """Wait for the server, which is started where it was not; from any thread.

        Args:
            cancel: ends the wait.

        Raises:
            EngineError: it ended before it could be asked anything.

        """
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_up, name='shared_engine')
                self._thread.start()
        while not self._ready.wait(POLL_S) and not cancel.is_set():
            if self._failure:
                raise EngineError(f'The shared engine cannot be started: {self._failure}')

    def stop(self) -> None:
        """End the server."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_up(self) -> None:
        while not (self._failure or self._closing.is_set()):
            try:
                self._run_once()
            except OSError as error:
                self._failure = str(error)

    def _run_once(self) -> None:
        process = NodeProcess(self._spec, os.environ | self.clients_environment, self._logs)
        self.starts += 1
        try:
            self._failure = self._until_ready(process)
            if self._failure:
                return
            self._ready.set()
            while process.returncode is None:
                if self._closing.wait(POLL_S):
                    return
            log.warning('%s; it is started again', process.reason())
        finally:
            self._ready.clear()
            process.stop()

    def _until_ready(self, process: NodeProcess) -> str:
        """Return '' once the server answers, else why it will not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._closing.wait(POLL_S):
            if process.returncode is not None:
                return process.reason()
            if self._answers():
                return ''
            if time.monotonic() > deadline:
                return f'no answer after {START_TIMEOUT_S:.0f} s: {process.tail()}'
        return 'it was closed'

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=2.0)
        try:
            connection.request('GET', HEALTH_PATH)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
