"""The newest message of every source, and whether it is new enough to act on.

Messages are kept as the bytes that came (CDR) and stamped anew as bytes: a camera at 30 Hz costs
a copy, and only the pictures of control steps are looked at. A message's age is the time since it
came; one that comes again with the stamp of the one before does not count as new, so that a
driver that repeats its last picture goes stale.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass

NANO = 1_000_000_000
_STAMP = {0: '>iI', 1: '<iI'}  # by the CDR header's byte order flag
_STAMP_AT = 4  # the CDR header's size; a message's std_msgs/Header begins with its stamp


@dataclass(frozen=True)
class Source:
    """Where something comes from, and how old it may be."""

    topic: str
    max_age_s: float


@dataclass(frozen=True)
class _Newest:
    cdr: bytes
    stamp_ns: int | None
    came_s: float


class Sampler:
    """Written by the thread of the subscriptions, read by the trial's."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = dict(sources)
        self._lock = threading.Lock()
        self._newest: dict[str, _Newest] = {}

    def put(self, name: str, cdr: bytes, stamp_ns: int | None, now_s: float) -> None:
        """Take a message; stamp_ns None: its type has none. now_s is monotonic."""
        with self._lock:
            before = self._newest.get(name)
            if before is None or stamp_ns is None or stamp_ns != before.stamp_ns:
                self._newest[name] = _Newest(cdr, stamp_ns, now_s)

    def problems(self, now_s: float, names: Collection[str] | None = None) -> list[str]:
        """Return what is missing or too old, each with its topic; [] when all is well.

        Args:
            now_s: monotonic.
            names: which sources to look at; None: all.

        """
        found = []
        with self._lock:
            newest = dict(self._newest)
        for name, source in self.sources.items():
            if names is not None and name not in names:
                continue
            if name not in newest:
                found.append(f'{name}: nothing came on {source.topic}; is its driver running?')
            elif (age_s := now_s - newest[name].came_s) > source.max_age_s:
                found.append(
                    f'{name}: the last new message on {source.topic} is {age_s:.2f} s old; '
                    f'allowed are {source.max_age_s:g} s'
                )
        return found

    def newest(self, name: str) -> bytes | None:
        """Return a source's newest message as CDR, whatever its age."""
        with self._lock:
            found = self._newest.get(name)
        return found.cdr if found else None

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Return how old each source's newest message is."""
        with self._lock:
            return {name: now_s - newest.came_s for name, newest in self._newest.items()}


def stamp_ns_of(cdr: bytes) -> int:
    """Return the stamp of a message that begins with a std_msgs/Header."""
    seconds, nanoseconds = struct.unpack_from(_STAMP[cdr[1]], cdr, _STAMP_AT)
    return seconds * NANO + nanoseconds


def restamped(cdr: bytes, stamp_ns: int) -> bytes:
    """Return the same message with another stamp."""
    changed = bytearray(cdr)
    struct.pack_into(_STAMP[cdr[1]], changed, _STAMP_AT, *divmod(stamp_ns, NANO))
    return bytes(changed)
