"""The state of one run of a pool: what waits, what is being played, what ended.

The manifest is written here and nowhere else, by the thread that called `Pool.run`: an episode is
counted once, however often it had to be played.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from grape_bringup.bag_names import free_bag_name
from grape_bringup.graph_setup import EpisodeRequest, EpisodeResult
from grape_bringup.manifest import EpisodeRecord, Manifest
from grape_episode.outcome import Outcome

PLAYS = 2  # an episode that ended in an infrastructure error is played once more
MAX_ERRORS_IN_A_ROW = 6

OnRecord = Callable[[EpisodeRecord, int, int], None]
FollowUp = Callable[[EpisodeRecord], EpisodeRequest | None]

log = logging.getLogger(__name__)


class PoolError(RuntimeError):
    """Episodes cannot be played; the text says what the last one said, or what to ask for."""


@dataclass
class Item:
    """An episode to play; `name` is the bag's folder."""

    request: EpisodeRequest
    name: str
    plays: int = 0


class PoolRun:
    """The state of one `Pool.run`; used by its caller's thread, the schedule by all."""

    def __init__(
        self, manifest: Manifest, workers: int, on_record: OnRecord, follow_up: FollowUp
    ) -> None:
        self.manifest = manifest
        self.schedule = Schedule()
        self.cancel = threading.Event()
        self.ended: queue.Queue[tuple[Item | None, EpisodeResult | Exception]] = queue.Queue()
        self.outstanding = 0
        self._on_record = on_record
        self._follow_up = follow_up
        self._order: list[str] = []
        self._found: dict[str, EpisodeRecord] = {}
        # What all workers lose at once, such as their policy server, is one error each.
        self._max_errors = max(MAX_ERRORS_IN_A_ROW, 2 * workers)
        self._errors_in_a_row = 0

    @property
    def records(self) -> list[EpisodeRecord]:
        """What ended, in the requests' order."""
        return [self._found[name] for name in self._order if name in self._found]

    def offer(self, requests: Iterable[EpisodeRequest]) -> None:
        """Take up episodes; those that the manifest has are done at once."""
        requests = list(requests)
        self._order += [request.episode_id for request in requests]
        found = [(request, self.manifest.find(request)) for request in requests]
        for request, record in found:
            if record is None:
                self.outstanding += 1
                name = free_bag_name(self.manifest.folder, request.episode_id)
                self.schedule.put(Item(request, name))
        for _, record in found:
            if record is not None:
                self._done(record)

    def collect(self) -> None:
        """Record what the workers play until nothing is left."""
        while self.outstanding:
            try:
                item, result = self.ended.get(timeout=0.2)
            except queue.Empty:
                continue
            self._take(item, result)

    def take_what_is_left(self) -> None:
        """Record what ended while the run was being cancelled."""
        while not self.ended.empty():
            item, result = self.ended.get_nowait()
            if item is not None and result.outcome in (Outcome.SUCCESS, Outcome.FAILURE):
                self._add(item, result)

    def _take(self, item: Item | None, result: EpisodeResult | Exception) -> None:
        if item is None:
            raise result
        if result.outcome == Outcome.INTERRUPTED:
            return  # only a cancelled run's
        item.plays += 1
        if result.outcome == Outcome.ERROR:
            self._errors_in_a_row += 1
            log.warning('%s ended in an error: %s', item.name, result.detail)
            if self._errors_in_a_row >= self._max_errors:
                self._add(item, result)
                raise PoolError(
                    f'{self._max_errors} episodes in a row ended in an infrastructure error, '
                    f'the last: {result.detail}'
                )
            if item.plays < PLAYS:
                item.name = free_bag_name(self.manifest.folder, item.request.episode_id)
                self.schedule.put(item)
                return
        else:
            self._errors_in_a_row = 0
        self.outstanding -= 1
        self._done(self._add(item, result))

    def _add(self, item: Item, result: EpisodeResult) -> EpisodeRecord:
        return self.manifest.add(
            item.request, result.outcome, result.steps, result.bag, result.detail
        )

    def _done(self, record: EpisodeRecord) -> None:
        self._found[record.episode_id] = record
        following = self._follow_up(record)
        if following is not None:
            self.offer([following])
        self._on_record(record, len(self._found), len(self._found) + self.outstanding)


class Schedule:
    """Waiting episodes by task; hands a worker those of its own task first."""

    def __init__(self) -> None:
        self._waiting: list[Item] = []
        self._busy: Counter[str] = Counter()  # task -> workers that play it
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Add an episode."""
        with self._changed:
            self._waiting.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Let the workers go."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def take(self, task: str | None) -> Item | None:
        """Wait for the next episode of a worker that has `task` loaded; None: there is no more."""
        with self._changed:
            if task is not None:
                self._busy[task] -= 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            left = Counter(item.request.task for item in self._waiting)
            if task not in left:
                # The task with the most episodes for each worker that plays it already.
                task = max(left, key=lambda name: left[name] / (1 + self._busy[name]))
            index = next(i for i, item in enumerate(self._waiting) if item.request.task == task)
            self._busy[task] += 1
            return self._waiting.pop(index)
