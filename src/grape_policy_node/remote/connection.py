"""One connection to a policy server: opened with a token, asked one question at a time.

A question whose answer came too late is not forgotten: its answer still arrives, before the next
one's, and is dropped then. A peer that is gone without a word is noticed by the kernel (TCP
keep-alive), not by websocket pings, which servers that compute in their event loop leave
unanswered for as long as a step takes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)
from websockets.sync.client import ClientConnection, connect

from grape_policy_node.backend import BackendError, Wanted
from grape_policy_node.remote import bearer, wire

POLL_S = 0.1  # how often a waiting client looks whether its question is still wanted
CLOSE_S = 1.0
PORTS = {'ws': 80, 'wss': 443}
# A dead peer is noticed after about 3 + 3 x 2 s of silence, or 10 s of unacknowledged data.
KEEP_ALIVE = (
    (socket.IPPROTO_TCP, 'TCP_NODELAY', 1),
    (socket.SOL_SOCKET, 'SO_KEEPALIVE', 1),
    (socket.IPPROTO_TCP, 'TCP_KEEPIDLE', 3),
    (socket.IPPROTO_TCP, 'TCP_KEEPINTVL', 2),
    (socket.IPPROTO_TCP, 'TCP_KEEPCNT', 3),
    (socket.IPPROTO_TCP, 'TCP_USER_TIMEOUT', 10_000),
)
# Closed with one of these, the next connection would end the same way (RFC 6455, section 7.4.1).
FATAL_CODES = {1002, 1003, 1007, 1008, 1009, 1010}


class UnreachableError(BackendError):
    """Nobody answers at the address; it may be tried again."""


class RefusedError(BackendError):
    """The server does not want this client, or is not the one expected; to be told to a person."""


class LostError(BackendError):
    """The connection ended."""


class LateError(BackendError):
    """The answer did not come in time; the connection stands."""


class PolicyServerError(BackendError):
    """The server answered with an error; this is its text."""


class Connection:
    """An open connection; used by one thread at a time."""

    def __init__(self, websocket: ClientConnection, url: str, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        self._websocket = websocket
        self._url = url
        self._owed = 0  # answers that are still to come
        self._limit = metadata.get('max_message_bytes')

    def request(
        self, content: Mapping[str, Any], deadline_s: float, wanted: Wanted = lambda: True
    ) -> dict[str, Any] | None:
        """Ask, and return the answer; None where it is not wanted any more.

        Args:
            content: the question.
            deadline_s: monotonic time.
            wanted: looked at ten times a second.

        Raises:
            LateError, LostError, RefusedError, PolicyServerError: as their names say.
        """
        data = wire.pack(content)
        if isinstance(self._limit, int) and len(data) > self._limit:
            raise PolicyServerError(
                f'the request has {len(data)} bytes; {self._url} takes {self._limit}: start it '
                'with a larger --max-message-mb, or use a smaller camera image'
            )
        try:
            self._websocket.send(data)
            self._owed += 1
            while (left := deadline_s - time.monotonic()) > 0.0 and wanted():
                try:
                    answer = self._websocket.recv(timeout=min(left, POLL_S))
                except TimeoutError:
                    continue
                self._owed -= 1
                if self._owed == 0:
                    return self._read(answer)
        except ConnectionClosed as closed:
            raise self._ended(closed) from closed
        except OSError as error:
            raise LostError(f'the connection to {self._url} was lost: {error}') from error
        if wanted():
            raise LateError(f'{self._url} did not answer in time')
        return None

    def close(self) -> None:
        """Say goodbye; at most a second."""
        self._websocket.close()

    def _read(self, answer: bytes | str) -> dict[str, Any]:
        if isinstance(answer, str):
            raise PolicyServerError(f'the policy server {self._url} says: {answer.strip()}')
        try:
            return wire.unpack(answer)
        except wire.WireError as error:
            raise PolicyServerError(f'the answer of {self._url} is broken: {error}') from error

    def _ended(self, closed: ConnectionClosed) -> BackendError:
        frame = closed.rcvd
        text = f'the connection to {self._url} was lost ({closed})'
        if frame is not None and frame.code in FATAL_CODES:
            return RefusedError(f'{self._url} ended the connection: {frame.code} {frame.reason}')
        return LostError(text)


def open_connection(url: str, token: str, timeout_s: float) -> Connection:
    """Connect and hear what the server says of itself.

    Raises:
        UnreachableError: nobody listens, or nobody answers in time.
        RefusedError: a wrong token, or no policy server.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        websocket = connect(
            url,
            sock=_socket(url, timeout_s),
            additional_headers=bearer.headers(token),
            compression=None,
            proxy=None,
            open_timeout=max(0.1, deadline_s - time.monotonic()),
            ping_interval=None,
            close_timeout=CLOSE_S,
            max_size=wire.MAX_MESSAGE_BYTES,
        ).__enter__()
    except InvalidStatus as error:
        raise _refusal(url, error, bool(token)) from error
    except InvalidMessage as error:
        raise UnreachableError(f'what listens at {url} is no policy server: {error}') from error
    except InvalidHandshake as error:
        raise RefusedError(f'what listens at {url} is no policy server: {error}') from error
    except TimeoutError as error:
        raise UnreachableError(f'{url} did not answer within {timeout_s:g} s') from error
    except (OSError, WebSocketException) as error:
        raise UnreachableError(
            f'nothing listens at {url} ({error}); start it there: grape serve --policy DIR'
        ) from error
    return _greeted(websocket, url, deadline_s)


def _greeted(websocket: ClientConnection, url: str, deadline_s: float) -> Connection:
    try:
        greeting = websocket.recv(timeout=max(0.1, deadline_s - time.monotonic()))
        if isinstance(greeting, str):
            raise RefusedError(f'{url} says: {greeting.strip()[:500]}')
        return Connection(websocket, url, wire.unpack(greeting))
    except (TimeoutError, ConnectionClosed) as error:
        websocket.close()
        raise UnreachableError(f'{url} took the connection but said nothing: {error}') from error
    except (RefusedError, wire.WireError) as error:
        websocket.close()
        raise RefusedError(f'what listens at {url} is no policy server: {error}') from error


def _socket(url: str, timeout_s: float) -> socket.socket:
    parts = urlsplit(url)
    found = socket.create_connection(
        (parts.hostname, parts.port or PORTS[parts.scheme]), timeout=timeout_s
    )
    found.settimeout(None)
    for level, name, value in KEEP_ALIVE:
        if hasattr(socket, name):  # not every system has all of them
            found.setsockopt(level, getattr(socket, name), value)
    return found


def _refusal(url: str, error: InvalidStatus, has_token: bool) -> BackendError:
    status = error.response.status_code
    if status == 401:
        found = (
            'the token is not its own' if has_token else 'it asks for a token and there is none'
        )
        return RefusedError(
            f'{url} refuses the connection: {found}. Give the file that holds it '
            f'(remote_token_file, --remote token_file=FILE) or set {bearer.VARIABLE}.'
        )
    if status >= 500:
        body = error.response.body.decode(errors='replace').strip()
        return UnreachableError(f'{url} is not ready: HTTP {status} {body}')
    return RefusedError(f'what listens at {url} is no policy server: HTTP {status}')
