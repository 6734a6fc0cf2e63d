"""Real processes and sockets for the remote policy's tests.

What speaks openpi here is written from its description, apart from ours: it shares no code with
grape_policy_node.remote.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import graph_run
import msgpack
import numpy as np
from websockets.sync.client import connect
from websockets.sync.server import serve

from grape_bringup.node_process import free_port

TOKEN = 'a-token-of-a-test-0123456789'
LEARNED = [['libero_object/0', 3]]
START_TIMEOUT_S = 60.0


class PolicyProcess:
    """`grape serve` in a process of its own, which can be killed and started again."""

    def __init__(self, root, arguments=()):
        self.folder = root / 'policy'
        self.adapter = root / 'other'
        if not self.folder.exists():
            graph_run.write_policy(self.folder)
            (self.folder / 'training_states.json').write_text(json.dumps({'states': LEARNED}))
            self.adapter_id = graph_run.write_adapter(self.folder, self.adapter)
        self.token_file = root / 'token'
        self.token_file.touch(0o600)
        self.token_file.write_text(TOKEN + '\n')
        self.port = free_port()
        self.url = f'ws://127.0.0.1:{self.port}'
        self.log = root / f'serve-{self.port}.log'
        self._arguments = arguments
        self.process = None

    def start(self):
        command = [
            sys.executable, '-m', 'grape_bringup.cli', 'serve', '--policy', self.folder,
            '--port', self.port, '--token-file', self.token_file, *self._arguments,
        ]  # fmt: skip
        with self.log.open('ab') as output:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'},
                start_new_session=True,
            )  # fmt: skip
        return self

    def wait_healthy(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.health() != (200, 'ok\n'):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return self

    def health(self):
        """Return (status, body), or None where nothing listens."""
        try:
            with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/healthz', timeout=2) as got:
                return got.status, got.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def output(self):
        return self.log.read_text(errors='replace')

    def kill(self):
        """As a machine that loses its power: kill -9."""
        self.process.kill()
        self.process.wait(10)

    def stop(self):
        """As Ctrl-C; returns the exit code."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def options(self, **changes):
        from grape_policy_node.remote.options import RemoteOptions

        return RemoteOptions(
            **{'url': self.url, 'token_file': str(self.token_file), 'timeout_s': 10.0} | changes
        )


def openpi_pack(content):
    """Encode as openpi's clients do."""

    def default(value):
        if isinstance(value, np.ndarray):
            return {
                b'__ndarray__': True, b'data': value.tobytes(), b'dtype': value.dtype.str,
                b'shape': value.shape,
            }  # fmt: skip
        if isinstance(value, np.generic):
            return {b'__npgeneric__': True, b'data': value.item(), b'dtype': value.dtype.str}
        raise TypeError(type(value))

    return msgpack.packb(content, default=default)


def openpi_unpack(data):
    """Decode as openpi's clients do."""

    def hook(found):
        if b'__ndarray__' in found:
            return np.ndarray(found[b'shape'], np.dtype(found[b'dtype']), found[b'data'])
        if b'__npgeneric__' in found:
            return np.dtype(found[b'dtype']).type(found[b'data'])
        return found

    return msgpack.unpackb(data, object_hook=hook)


class OpenpiClient:
    """What openpi's WebsocketClientPolicy does, with an API key."""

    def __init__(self, url, token=TOKEN):
        headers = {'Authorization': f'Api-Key {token}'} if token else {}
        self.socket = connect(url, compression=None, max_size=None, additional_headers=headers)
        self.socket.__enter__()
        self.metadata = openpi_unpack(self.socket.recv(timeout=10))

    def infer(self, observation):
        return self.exchange(openpi_pack(observation))

    def exchange(self, data):
        self.socket.send(data)
        answer = self.socket.recv(timeout=10)
        return answer if isinstance(answer, str) else openpi_unpack(answer)

    def close(self):
        self.socket.close()


class ForeignServer:
    """An openpi server of another policy: chunks of actions, no log-probabilities."""

    def __init__(self, actions, metadata=None, port=0):
        self.seen = []
        self.actions = np.asarray(actions)
        self._metadata = metadata or {'robot': 'somebody else'}
        self._server = serve(self._handle, '127.0.0.1', port, compression=None, max_size=None)
        self.port = self._server.socket.getsockname()[1]
        self.url = f'ws://127.0.0.1:{self.port}'
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _handle(self, socket):
        socket.send(openpi_pack(self._metadata))
        for data in socket:
            self.seen.append(openpi_unpack(data))
            timing = {'infer_ms': np.float32(1.5)}
            socket.send(openpi_pack({'actions': self.actions, 'server_timing': timing}))

    def close(self):
        self._server.shutdown()
        self._thread.join(10)


def local_backend(folder: Path, adapter=''):
    """The same policy in this process."""
    from grape_policy_node.local_backend import LocalBackend

    return LocalBackend.load(str(folder), str(adapter))
