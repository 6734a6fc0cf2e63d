"""A connection to a policy server that comes back.

When it ends, a thread of its own connects again, at once and then at growing intervals. Who asks
meanwhile waits, in lockstep, and the same question goes out again afterwards; in real time it is
told at once, so that the arm can be held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from grape_policy_node.backend import BackendError, NoAnswerError, Wanted
from grape_policy_node.remote import bearer
from grape_policy_node.remote.connection import (
    CLOSE_S,
    POLL_S,
    Connection,
    LateError,
    LostError,
    PolicyServerError,
    RefusedError,
    UnreachableError,
    open_connection,
)
from grape_policy_node.remote.options import RemoteOptions

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0

log = logging.getLogger(__name__)


class Session:
    """Asks a server questions; a lost connection is its own affair."""

    def __init__(self, options: RemoteOptions, welcome: Callable[[Connection], None]) -> None:
        """Prepare; `open` connects.

        Args:
            options: checked.
            welcome: called with each new connection before it is used; raises RefusedError where
                the server is not the expected one.

        Raises:
            ValueError: the options or the token cannot be used.
        """
        options.check()
        self._options = options
        self._token = bearer.read_token(options.token_file)
        self._welcome = welcome
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._failure: BackendError | None = None
        self._lost_because = 'it was not opened'
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.reconnects = 0

    def open(self) -> None:
        """Connect for the first time.

        Raises:
            BackendError: nobody there, or the wrong one.
        """
        self._connection = self._connect()

    @property
    def connected(self) -> bool:
        """Say whether there is a connection, as far as is known."""
        return self._connection is not None

    @property
    def problem(self) -> str:
        """Say why there is no connection; '' where there is one."""
        with self._changed:
            if self._connection is not None:
                return ''
            return str(self._failure or self._lost_because)

    def ask(
        self, content: Mapping[str, Any], deadline_s: float | None, wanted: Wanted
    ) -> dict[str, Any] | None:
        """Return the answer to a question that may be asked twice; None: not wanted any more.

        Args:
            content: the question.
            deadline_s: monotonic time; None waits for the server however long it is away.
            wanted: looked at ten times a second.

        Raises:
            NoAnswerError: no answer by the deadline, or no connection where there is a deadline.
            PolicyServerError: the server's own error.
            RefusedError: the server that came back is another, or does not want this client.
        """
        while wanted() and not self._closing.is_set():
            connection = self._current(deadline_s, wanted)
            if connection is None:
                break
            limit_s = time.monotonic() + self._options.timeout_s
            try:
                return connection.request(
                    content, limit_s if deadline_s is None else deadline_s, wanted
                )
            except LostError as error:
                self._lose(connection, str(error))
            except LateError as error:
                if deadline_s is not None:
                    raise NoAnswerError(str(error)) from error
                self._lose(connection, f'no answer within {self._options.timeout_s:g} s')
        return None

    def close(self) -> None:
        """Let go; whoever waits is told that the answer is not wanted any more."""
        self._closing.set()
        with self._changed:
            connection, self._connection = self._connection, None
            self._lost_because = 'it was closed'
            self._changed.notify_all()
        if connection is not None:
            connection.close()
        if self._thread is not None:
            self._thread.join(CLOSE_S)  # a daemon: one that waits for a dead host ends with us

    def _current(self, deadline_s: float | None, wanted: Wanted) -> Connection | None:
        with self._changed:
            while self._connection is None and wanted() and not self._closing.is_set():
                if self._failure is not None:
                    raise self._failure
                if deadline_s is not None:
                    raise NoAnswerError(f'no connection to {self._options.url}: {self.problem}')
                self._changed.wait(POLL_S)
            return self._connection

    def _lose(self, connection: Connection, reason: str) -> None:
        with self._changed:
            if self._connection is not connection or self._closing.is_set():
                return
            self._connection, self._lost_because = None, reason
            self._thread = threading.Thread(
                target=self._reconnect, args=(connection,), name='policy_reconnect', daemon=True
            )
            self._thread.start()
        log.warning('%s; connecting again', reason)

    def _reconnect(self, lost: Connection) -> None:
        lost.close()
        delay_s, began = FIRST_DELAY_S, time.monotonic()
        while not self._closing.is_set():
            try:
                fresh = self._connect()
            except (UnreachableError, LostError, LateError) as error:
                with self._changed:
                    self._lost_because = str(error)
            except BackendError as error:
                log.error('%s', error)
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            else:
                self._take(fresh, time.monotonic() - began)
                return
            self._closing.wait(delay_s)
            delay_s = min(2.0 * delay_s, LONGEST_DELAY_S)

    def _take(self, fresh: Connection, away_s: float) -> None:
        with self._changed:
            if not self._closing.is_set():
                self.reconnects += 1
                self._connection = fresh
                self._changed.notify_all()
                log.info('connected to %s again after %.1f s', self._options.url, away_s)
                return
        fresh.close()

    def _connect(self) -> Connection:
        options = self._options
        connection = open_connection(options.url, self._token, options.timeout_s)
        try:
            self._welcome(connection)
        except PolicyServerError as error:
            connection.close()
            raise RefusedError(str(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection
