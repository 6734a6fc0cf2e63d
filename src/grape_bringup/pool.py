"""Plays many episodes on several graphs at once, resumably.

A worker is a thread with a graph of its own. It stays with a task as long as there are episodes of
it, because building another task's simulator takes seconds. Ctrl-C cancels the running episodes
and ends the nodes; the manifest keeps what was finished.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grape_bringup.bag_names import free_bag_name
from grape_bringup.graph import EpisodeRequest, EpisodeResult, Graph, GraphSetup
from grape_bringup.interruption import Interrupted
from grape_bringup.manifest import EpisodeRecord, Manifest
from grape_episode.outcome import Outcome

GIB_A_WORKER = 3.0  # simulator 2, policy node 0.7, recorder 0.1
PLAYS = 2  # an episode that ended in an infrastructure error is played once more
MAX_ERRORS_IN_A_ROW = 6
JOIN_S = 15.0

OnRecord = Callable[[EpisodeRecord, int, int], None]
FollowUp = Callable[[EpisodeRecord], EpisodeRequest | None]

log = logging.getLogger(__name__)


class PoolError(RuntimeError):
    """Episodes cannot be played; the text says what the last one said."""


@dataclass
class _Item:
    """An episode to play; `name` is the bag's folder."""

    request: EpisodeRequest
    name: str
    plays: int = 0


class Pool:
    """Workers with their graphs; they stay up between runs. A context manager."""

    def __init__(self, setup: GraphSetup, logs: Path, workers: int = 0) -> None:
        """Prepare; a graph is started when its worker plays its first episode.

        Args:
            setup: of every graph.
            logs: folder for the nodes' logs, one folder a worker in it.
            workers: how many graphs; 0 for `default_workers`.

        """
        self._setup = setup
        self._logs = logs
        self._workers = workers or default_workers()
        self._graphs: list[Graph | None] = [None] * self._workers

    def __enter__(self) -> Pool:
        """Return the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        self.close()

    def close(self) -> None:
        """End all nodes, of all workers at the same time."""
        graphs = [graph for graph in self._graphs if graph is not None]
        threads = [threading.Thread(target=graph.stop) for graph in graphs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._graphs = [None] * self._workers

    def run(
        self,
        requests: Sequence[EpisodeRequest],
        folder: Path,
        played_by: Mapping[str, object],
        adapter: Path | None = None,
        on_record: OnRecord = lambda record, done, total: None,
        follow_up: FollowUp = lambda record: None,
    ) -> list[EpisodeRecord]:
        """Play what the folder does not hold yet.

        Args:
            requests: episodes, each id once.
            folder: for the bags and the manifest.
            played_by: see `Manifest`.
            adapter: to act with; None: the base policy.
            on_record: called with (record, done, total) for each, those that were there included.
            follow_up: gives the episode that an ended one asks for, if any.

        Returns:
            One record a request and follow-up, in the requests' order, follow-ups after.

        Raises:
            Interrupted: Ctrl-C.
            PoolError: episodes keep ending in errors.
            GraphError: the nodes cannot be started.
            ManifestError: the folder holds episodes made with other settings.

        """
        run = _Run(Manifest(folder, played_by), on_record, follow_up)
        run.offer(requests)
        count = min(self._workers, run.outstanding)
        threads = [
            threading.Thread(
                target=self._work, args=(index, run, folder, adapter), name=f'worker-{index}'
            )
            for index in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            run.collect()
        except KeyboardInterrupt:
            log.warning('interrupted: cancelling the running episodes (again to end them at once)')
            raise Interrupted from None
        finally:
            run.cancel.set()
            run.schedule.close()
            try:
                for thread in threads:
                    thread.join()
            except KeyboardInterrupt:
                self._kill()
                for thread in threads:
                    thread.join(JOIN_S)
            run.take_what_is_left()
        return run.records

    def _work(self, index: int, run: _Run, folder: Path, adapter: Path | None) -> None:
        task = None
        try:
            while (item := run.schedule.take(task)) is not None:
                task = item.request.task
                graph = self._graph(index, folder)
                graph.record_to(folder)
                graph.use_adapter(adapter)
                result = graph.run_episode(replace(item.request, episode_id=item.name), run.cancel)
                run.ended.put((item, result))
        except Exception as error:  # noqa: BLE001 - handed to the caller of `run`
            run.ended.put((None, error))

    def _graph(self, index: int, folder: Path) -> Graph:
        if self._graphs[index] is None:
            self._graphs[index] = Graph(self._setup, folder, self._logs / f'worker-{index}')
        return self._graphs[index]

    def _kill(self) -> None:
        for graph in self._graphs:
            if graph is not None:
                graph.kill()


class _Run:
    """The state of one `Pool.run`; used by its caller's thread, the schedule by all."""

    def __init__(self, manifest: Manifest, on_record: OnRecord, follow_up: FollowUp) -> None:
        self.manifest = manifest
        self.schedule = _Schedule()
        self.cancel = threading.Event()
        self.ended: queue.Queue[tuple[_Item | None, EpisodeResult | Exception]] = queue.Queue()
        self.outstanding = 0
        self._on_record = on_record
        self._follow_up = follow_up
        self._order: list[str] = []
        self._found: dict[str, EpisodeRecord] = {}
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
                self.schedule.put(_Item(request, name))
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

    def _take(self, item: _Item | None, result: EpisodeResult | Exception) -> None:
        if item is None:
            raise result
        if result.outcome == Outcome.INTERRUPTED:
            return  # only a cancelled run's
        item.plays += 1
        if result.outcome == Outcome.ERROR:
            self._errors_in_a_row += 1
            log.warning('%s ended in an error: %s', item.name, result.detail)
            if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
                self._add(item, result)
                raise PoolError(
                    f'{MAX_ERRORS_IN_A_ROW} episodes in a row ended in an infrastructure error, '
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

    def _add(self, item: _Item, result: EpisodeResult) -> EpisodeRecord:
        return self.manifest.add(
            item.request, result.outcome, result.steps, result.bag, result.detail
        )

    def _done(self, record: EpisodeRecord) -> None:
        self._found[record.episode_id] = record
        following = self._follow_up(record)
        if following is not None:
            self.offer([following])
        self._on_record(record, len(self._found), len(self._found) + self.outstanding)


class _Schedule:
    """Waiting episodes by task; hands a worker those of its own task first."""

    def __init__(self) -> None:
        self._waiting: list[_Item] = []
        self._busy: Counter[str] = Counter()  # task -> workers that play it
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: _Item) -> None:
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

    def take(self, task: str | None) -> _Item | None:
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


def default_workers() -> int:
    """Return a graph for each core, fewer where the memory does not allow them."""
    cores = len(os.sched_getaffinity(0))
    fit = int(_available_gib() // GIB_A_WORKER)
    return max(1, min(cores, fit))


def _available_gib() -> float:
    for line in Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) / 2**20
    raise PoolError('/proc/meminfo has no MemAvailable; give the number of workers: --workers')
