"""What an environment hears of the others in one episode: READY, ERROR, RECORDED, or nothing.

    START ->            <- READY of every participant
    control steps
    STOP ->             <- RECORDED of the recorder, with the bag's path

The bridge and the robot's trial node hold this conversation, each with its own `source`. Every
wait has a deadline, and a participant that was killed is noticed: DDS forgets it after 5 s
(config/fastdds.xml).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from typing import Any

from grape_episode.messages import EventKind

POLL_S = 0.1
PRESENCE_PERIOD_S = 1.0
RECORDER = 'recorder'


class EpisodeError(RuntimeError):
    """The infrastructure failed; never a policy failure."""


class Handshake:
    """The participants of one episode; used by one thread."""

    def __init__(
        self,
        episode_id: str,
        source: str,
        events: queue.Queue[Any],
        present: Callable[[], set[str]],
    ) -> None:
        """Begin to listen.

        Args:
            episode_id: what events have to name.
            source: the environment's own name; its events are passed over.
            events: EpisodeEvents as they come.
            present: gives the names of the nodes that can publish events.

        """
        self.bag = ''  # once RECORDED
        self._episode_id = episode_id
        self._source = source
        self._events = events
        self._present = present
        self._ready: set[str] = set()
        self._gone: set[str] = set()  # participants that failed or vanished
        self._watched: set[str] = set()  # those that can be seen in the ROS graph
        self._looked_at = 0.0
        self._is_over = False

    def wait_ready(
        self, needed: Iterable[str], timeout_s: float, check: Callable[[], None]
    ) -> None:
        """Wait for READY of all; `check` may raise at any time.

        Raises:
            EpisodeError: somebody is not ready in time, or says why it can't be.

        """
        needed = set(needed)
        deadline = time.monotonic() + timeout_s
        while missing := sorted(needed - self._ready):
            if time.monotonic() > deadline:
                self._gone.update(missing)
                raise EpisodeError(
                    f'no READY from {", ".join(missing)} within {timeout_s:g} s; '
                    'is the node running and active?'
                )
            check()
            self.listen(POLL_S)
        self._watched = {name for name in needed if _node(name) in self._present()}

    def listen(self, timeout_s: float) -> None:
        """Take in what was said, at most `timeout_s` waiting for the first word.

        Raises:
            EpisodeError: somebody can't go on, or is not there any more.

        """
        while self._take(timeout_s):
            timeout_s = 0.0
        self._look_around()
        if self.bag:
            raise EpisodeError('the recorder closed the bag before the end of the episode')

    def end(self) -> None:
        """From here on, after STOP, nothing counts but the recorder."""
        self._is_over = True
        self._watched &= {RECORDER}

    def wait_recorded(self, timeout_s: float) -> None:
        """Wait for the bag, unless the recorder is known to be gone.

        Raises:
            EpisodeError: no RECORDED in time, or the recorder fails.

        """
        deadline = time.monotonic() + timeout_s
        while not self.bag:
            if RECORDER in self._gone:  # which is the reason that the episode ended with
                return
            if time.monotonic() > deadline:
                raise EpisodeError(f'no RECORDED from the recorder within {timeout_s:g} s')
            self._take(POLL_S)
            self._look_around()

    def _take(self, timeout_s: float) -> bool:
        """Handle the next event; False when none came."""
        try:
            event = self._events.get(block=timeout_s > 0, timeout=timeout_s or None)
        except queue.Empty:
            return False
        if event.episode_id == self._episode_id and event.source != self._source:
            if event.kind == EventKind.READY:
                self._ready.add(event.source)
            elif event.kind == EventKind.RECORDED:
                self.bag = event.detail
            elif event.kind == EventKind.ERROR and not self._is_done(event.source):
                self._gone.add(event.source)
                raise EpisodeError(f'{event.source}: {event.detail}')
        return True

    def _is_done(self, source: str) -> bool:
        """Say whether the episode is over for this participant."""
        return self._is_over and source != RECORDER

    def _look_around(self) -> None:
        """Notice a participant that was killed."""
        if not self._watched or time.monotonic() - self._looked_at < PRESENCE_PERIOD_S:
            return
        self._looked_at = time.monotonic()
        present = self._present()
        lost = {name for name in self._watched - self._gone if _node(name) not in present}
        if lost:
            self._gone |= lost
            names = ', '.join(map(_node, sorted(lost)))
            raise EpisodeError(f'{names} is not there any more; look at its log')


def _node(participant: str) -> str:
    return f'{participant}_node'
