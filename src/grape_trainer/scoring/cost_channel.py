"""Messages between the sandbox and its worker: a 4-byte length, JSON, and bytes that it announces.

Never pickle: what comes out of the worker is as little trusted as the program in it. The sandbox
gives a deadline and a size; the worker has neither, nor may it call what it would need for them.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 64 * 2**20

_LENGTH = struct.Struct('>I')
_PART_BYTES = 1 << 20


class Ended(Exception):  # noqa: N818 - the ordinary end of a worker is no error
    """The other side is gone, or does not speak as it should."""


class Late(Ended):
    """The deadline is over."""


@dataclass(frozen=True)
class Channel:
    """Two file descriptors; non-blocking ones where deadlines are used."""

    read_fd: int
    write_fd: int

    def send(self, message: dict, payload: bytes = b'', deadline: float | None = None) -> None:
        """Write one message; Ended, or Late after the deadline (time.monotonic)."""
        text = json.dumps({**message, 'payload_bytes': len(payload)}).encode()
        content = memoryview(_LENGTH.pack(len(text)) + text + payload)
        while content:
            _wait(self.write_fd, select.POLLOUT, deadline)
            try:
                content = content[os.write(self.write_fd, content[:_PART_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Ended from error

    def receive(self, deadline: float | None = None) -> tuple[dict, bytes]:
        """Return one message and its bytes; Ended, or Late after the deadline."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, deadline))
        content = self._exactly(length, deadline)
        try:
            message = json.loads(content)
            size = message['payload_bytes']
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Ended('it answered with something else than a message') from error
        return message, self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        if not isinstance(size, int) or not 0 <= size <= MAX_MESSAGE_BYTES:
            raise Ended(f'it announced {size!r} bytes; at most {MAX_MESSAGE_BYTES}')
        parts = []
        while size:
            _wait(self.read_fd, select.POLLIN, deadline)
            try:
                part = os.read(self.read_fd, min(size, _PART_BYTES))
            except BlockingIOError:
                continue
            if not part:
                raise Ended
            parts.append(part)
            size -= len(part)
        return b''.join(parts)


def _wait(fd: int, event: int, deadline: float | None) -> None:
    if deadline is None:
        return
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000.0):
        raise Late
