"""A GRAPE policy on another machine, behind the policy node's boundary.

It chooses what the same policy would choose here: the generator of an episode travels with the
questions (protocol.py), so a server that was killed and started again goes on where it was. What
must not happen unseen is that another policy or adapter answers after a reconnection: that is an
error, not a continuation.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from grape_policy_node.backend import (
    BackendError,
    Decision,
    Health,
    Player,
    Seen,
    Start,
    Wanted,
)
from grape_policy_node.remote import protocol
from grape_policy_node.remote.connection import POLL_S, Connection, RefusedError
from grape_policy_node.remote.options import RemoteOptions
from grape_policy_node.remote.session import Session


class RemoteBackend:
    """Acts by asking a GRAPE server."""

    has_log_probs = True
    needs_state = False

    def __init__(self, options: RemoteOptions, adapter: str = '', unnorm_key: str = '') -> None:
        """Connect.

        Args:
            options: of the server.
            adapter: folder on the server's machine; '' takes the server's own.
            unnorm_key: that the server must use; '' takes any.

        Raises:
            ValueError: options that cannot be used.
            BackendError: nobody there, a wrong token, not the expected server, no such adapter.
        """
        self.metadata: dict[str, Any] = {}
        self.adapter_about: dict[str, Any] = {}  # the server's answer to load_adapter
        self._options = options
        self._unnorm_key = unnorm_key
        self._adapter_path: str | None = adapter or None  # None: the server's own
        self._adapter_id = ''
        self._turn = threading.Lock()  # the step in progress, or a switch of adapters
        self._session = Session(options, self._welcome)
        self._session.open()

    @property
    def adapter_id(self) -> str:
        """Id of the adapter that acts for this client."""
        return self._adapter_id

    def describe(self) -> dict[str, object]:
        """Return the server's description of its policy, with where it runs."""
        return {
            **self.metadata['policy'],
            'adapter_id': self._adapter_id,
            'has_log_probs': True,
            'remote_url': self._options.url,
        }

    def begin(self, start: Start, wanted: Wanted) -> Player | None:
        """Have the server check the instruction."""
        question = {
            protocol.KIND: protocol.PREPARE,
            protocol.PROMPT_KEY: start.instruction,
            'temperature': start.temperature,
        }
        with self._turn:
            answer = self._session.ask(question, None, wanted)
        return None if answer is None else _RemotePlayer(self, start)

    def load_adapter(self, path: str) -> str:
        """Switch between two steps; waits for one in progress, not for a lost connection."""
        until_s = time.monotonic() + self._options.timeout_s
        while not self._turn.acquire(timeout=POLL_S):
            if not self._session.connected or time.monotonic() > until_s:
                raise BackendError(
                    f'the policy server is busy or away ({self._session.problem}); try again later'
                )
        try:
            answer = self._session.ask(_loading(path), until_s, lambda: True)
            if answer is None:
                raise BackendError('the policy node is closing')
            self._adapter_path, self._adapter_id = path, str(answer['adapter_id'])
            self.adapter_about = answer
            return self._adapter_id
        finally:
            self._turn.release()

    def health(self) -> Health:
        """Say whether the connection stands."""
        problem = self._session.problem
        values = {
            'remote_url': self._options.url,
            'connected': self._session.connected,
            'reconnects': self._session.reconnects,
            'policy_sha256': self.metadata['policy'].get('policy_sha256', ''),
        }
        return Health(not problem, problem, self._options.url, values)

    def close(self) -> None:
        """End the connection."""
        self._session.close()

    def ask(self, request: protocol.InferRequest, seen: Seen, wanted: Wanted) -> dict | None:
        """Put one observation to the server."""
        with self._turn:
            return self._session.ask(request.to_message(), seen.deadline_s, wanted)

    def _welcome(self, connection: Connection) -> None:
        found, known = connection.metadata, self.metadata
        url = self._options.url
        if found.get('protocol') != protocol.NAME or found.get('version') != protocol.VERSION:
            raise RefusedError(
                f'{url} does not speak the protocol {protocol.NAME} {protocol.VERSION}; it says '
                f'protocol {found.get("protocol")!r}, version {found.get("version")!r}. For an '
                'openpi server (pi0, Octo) set remote_protocol (--remote protocol=openpi).'
            )
        if self._unnorm_key not in ('', found.get('unnorm_key')):
            raise RefusedError(
                f"{url} un-normalises by '{found.get('unnorm_key')}', not by unnorm_key "
                f"'{self._unnorm_key}'. Start it with: grape serve --unnorm-key {self._unnorm_key}"
            )
        if known:
            for name in ('policy_sha256', 'dtype', 'unnorm_key'):
                before, now = known['policy'].get(name), found['policy'].get(name)
                if before != now:
                    raise RefusedError(
                        f'another policy answers at {url} now ({name} was {before}, is {now}); '
                        'configure the policy node again to act with it'
                    )
        adapter_id, about = found['adapter_id'], {}
        if self._adapter_path is not None:
            limit_s = time.monotonic() + self._options.timeout_s
            about = connection.request(_loading(self._adapter_path), limit_s)
            adapter_id = about['adapter_id']
        if known and adapter_id != self._adapter_id:
            raise RefusedError(
                f'another adapter acts at {url} now ({self._adapter_id} before, {adapter_id} '
                'now); load the adapter again, or configure the policy node again'
            )
        self.metadata, self.adapter_about, self._adapter_id = found, about, adapter_id


@dataclass
class _RemotePlayer:
    backend: RemoteBackend
    start: Start
    rng_state: bytes | None = None

    def act(self, seen: Seen, wanted: Wanted) -> Decision | None:
        start = self.start
        request = protocol.InferRequest(
            seen.image, start.instruction, start.temperature, start.seed, self.rng_state
        )
        answer = self.backend.ask(request, seen, wanted)
        if answer is None:
            return None
        decision, self.rng_state = protocol.read_decision(answer)
        return decision


def _loading(path: str) -> dict[str, str]:
    return {protocol.KIND: protocol.LOAD_ADAPTER, 'path': path}
