"""Between DDS and the disk: a bounded queue, and the thread that compresses and writes.

Compression and writing release the interpreter's lock, so the node keeps listening while the disk
is busy. The queue is bounded in bytes. When the disk is too slow for too long, streams of role
raw are dropped first, then all but events; what is dropped is counted, never silently lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from grape_episode.bag_writer import BagWriter
from grape_episode.episode import EpisodeInfo
from grape_episode.measured import Measured
from grape_episode.outcome import Outcome

RAW_SHARE = 0.75  # of the queue; the rest is for what the episode is made of
FLUSH_S = 0.05


class QueuedWriter:
    """One open bag and its thread. End it by `close` or `abandon`, exactly once."""

    def __init__(self, writer: BagWriter, limit_bytes: int, wake: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            writer: an open bag; from now on the thread's.
            limit_bytes: of the messages that wait.
            wake: called on the thread when `error` or `is_done` changed.

        """
        self.folder = writer.folder
        self.error: Exception | None = None
        self.is_done = False
        self.info = writer.info  # as written, once it is done
        self.waited = Measured('queue_ms')  # from arrival to the writer
        self._writer = writer
        self._limit = limit_bytes
        self._wake = wake
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        # Each is changed by one thread only, so that no lock is needed.
        self._bytes_in = 0
        self._bytes_out = 0
        self._thread = threading.Thread(target=self._run, name='bag writer', daemon=True)
        self._thread.start()

    @property
    def queued_bytes(self) -> int:
        """Bytes of messages that wait for the disk."""
        return self._bytes_in - self._bytes_out

    def put(self, topic: str, stamp_ns: int, cdr: bytes, share: float = 1.0) -> bool:
        """Hand a message over; False where more than a share of the queue is taken."""
        if self.queued_bytes + len(cdr) > share * self._limit and self.queued_bytes > 0:
            return False
        self._bytes_in += len(cdr)
        self._jobs.put((topic, stamp_ns, cdr, time.monotonic()))
        return True

    def close(self, info: EpisodeInfo) -> None:
        """Write what waits, then the end of the bag; `is_done` tells when."""
        self._jobs.put(info)

    def abandon(self, info: EpisodeInfo) -> None:
        """Give up: what is on disk stays and can be recovered."""
        self.error = self.error or OSError(info.detail)
        self._jobs.put(info)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False where it did not come in time."""
        self._thread.join(timeout_s)
        return self.is_done

    def _run(self) -> None:
        while not isinstance(job := self._next(), EpisodeInfo):
            if job is not None and self.error is None:
                self._try(lambda job=job: self._write(*job))
            elif self.error is None:
                self._try(self._writer.flush_due)
            if job is not None:
                self._bytes_out += len(job[2])
        if self.error is None:
            self._try(lambda: self._writer.close(job))
        if self.error is not None:
            self._writer.abandon(replace(job, outcome=Outcome.ERROR, detail=self._reason(job)))
        self.info = self._writer.info
        self.is_done = True
        self._wake()

    def _reason(self, info: EpisodeInfo) -> str:
        if str(self.error) in info.detail:
            return info.detail
        return '; '.join(
            text for text in (info.detail, f'the bag cannot be written: {self.error}') if text
        )

    def _next(self) -> tuple | EpisodeInfo | None:
        try:
            return self._jobs.get(timeout=FLUSH_S)
        except queue.Empty:
            return None

    def _write(self, topic: str, stamp_ns: int, cdr: bytes, arrived: float) -> None:
        self.waited.take(1000 * (time.monotonic() - arrived))
        self._writer.write(topic, stamp_ns, cdr)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the node marks the episode
            self.error = error
            self._wake()
