"""Plays many episodes on several graphs at once, resumably.

A worker is a thread with a graph of its own: of this machine's processes, or in a Ray worker
(ray_graph.py). It stays with a task as long as there are episodes of it, because building another
task's simulator takes seconds. Ctrl-C cancels the running episodes and ends the nodes; the
manifest keeps what was finished.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from grape_bringup.graph import Graph
from grape_bringup.graph_setup import (
    SHARED,
    WORKER_GIB,
    EpisodeRequest,
    EpisodeResult,
    GraphSetup,
)
from grape_bringup.interruption import Interrupted
from grape_bringup.manifest import EpisodeRecord, Manifest
from grape_bringup.pool_run import FollowUp, OnRecord, PoolError, PoolRun
from grape_bringup.shared_engine import SharedEngine

JOIN_S = 15.0

log = logging.getLogger(__name__)


class PlaysEpisodes(Protocol):
    """A graph, or what stands for one on another machine; see `Graph` for each."""

    def record_to(self, bags: Path) -> None:
        """Have the next episodes' bags in another folder."""

    def use_adapter(self, path: Path | None) -> None:
        """Act with this adapter from the next episode on."""

    def run_episode(self, request: EpisodeRequest, cancel: threading.Event) -> EpisodeResult:
        """Play one episode."""

    def stop(self) -> None:
        """End it."""

    def kill(self) -> None:
        """End it at once, from any thread."""


class Site(Protocol):
    """Where a pool's graphs run.

    Attributes:
        server_host: the address on which they reach a server that this process starts.

    """

    server_host: str

    def workers(self, asked: int) -> int:
        """Return how many graphs there can be; 0 asks for as many as fit."""

    def graph(
        self, setup: GraphSetup, bags: Path, logs: Path, environment: Mapping[str, str]
    ) -> PlaysEpisodes:
        """Return a graph; nothing is started before its first episode."""

    def close(self) -> None:
        """Let go of the site, after its graphs."""


class ThisMachine:
    """Graphs of this machine's processes."""

    server_host = '127.0.0.1'

    def workers(self, asked: int) -> int:
        """Return what was asked for, or what the machine carries."""
        return asked or default_workers()

    def graph(
        self, setup: GraphSetup, bags: Path, logs: Path, environment: Mapping[str, str]
    ) -> Graph:
        """Return a graph."""
        return Graph(setup, bags, logs, environment)

    def close(self) -> None:
        """Do nothing."""


class Pool:
    """Workers with their graphs; they stay up between runs. A context manager."""

    def __init__(self, setup: GraphSetup, logs: Path, workers: int = 0, ray: str = '') -> None:
        """Prepare; a graph is started when its worker plays its first episode.

        Args:
            setup: of every graph.
            logs: folder for the nodes' logs, one folder a worker in it.
            workers: how many graphs; 0 for as many as fit.
            ray: '' for this machine's processes; 'local', 'auto' or the address of a Ray cluster.

        Raises:
            RayError: the cluster cannot be had, or is too small.

        """
        self._site = site_of(ray)
        self._setup = setup
        self._logs = logs
        self._workers = self._site.workers(workers)
        self._graphs: list[PlaysEpisodes | None] = [None] * self._workers
        self._engine = None
        if setup.engine == SHARED:
            self._engine = SharedEngine(setup, logs, self._workers, self._site.server_host)

    def __enter__(self) -> Pool:
        """Return the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        self.close()

    def close(self) -> None:
        """End all nodes, of all workers at the same time, then what they shared."""
        graphs = [graph for graph in self._graphs if graph is not None]
        threads = [threading.Thread(target=graph.stop) for graph in graphs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._graphs = [None] * self._workers
        if self._engine is not None:
            self._engine.stop()
        self._site.close()

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
            EngineError: the shared engine cannot be started.
            ManifestError: the folder holds episodes made with other settings.

        """
        run = PoolRun(Manifest(folder, played_by), self._workers, on_record, follow_up)
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

    def _work(self, index: int, run: PoolRun, folder: Path, adapter: Path | None) -> None:
        task = None
        try:
            while (item := run.schedule.take(task)) is not None:
                task = item.request.task
                if self._engine is not None:
                    self._engine.wait_until_ready(run.cancel)
                if run.cancel.is_set():
                    return
                graph = self._graph(index, folder)
                graph.record_to(folder)
                graph.use_adapter(None if adapter is None else adapter.absolute())
                result = graph.run_episode(replace(item.request, episode_id=item.name), run.cancel)
                run.ended.put((item, result))
        except Exception as error:  # noqa: BLE001 - handed to the caller of `run`
            run.ended.put((None, error))

    def _graph(self, index: int, folder: Path) -> PlaysEpisodes:
        if self._graphs[index] is None:
            setup, environment = self._setup, {}
            if self._engine is not None:
                setup, environment = self._engine.clients_setup, self._engine.clients_environment
            logs = self._logs / f'worker-{index}'
            self._graphs[index] = self._site.graph(setup, folder, logs, environment)
        return self._graphs[index]

    def _kill(self) -> None:
        for graph in self._graphs:
            if graph is not None:
                graph.kill()


def site_of(ray: str) -> Site:
    """Return the place that `Pool`'s argument names.

    Raises:
        RayError: the cluster cannot be had.

    """
    if not ray:
        return ThisMachine()
    from grape_bringup.ray_graph import RayCluster

    return RayCluster(ray)


def default_workers() -> int:
    """Return a graph for each core, fewer where the memory does not allow them."""
    cores = len(os.sched_getaffinity(0))
    fit = int(_available_gib() // WORKER_GIB)
    return max(1, min(cores, fit))


def _available_gib() -> float:
    for line in Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) / 2**20
    raise PoolError('/proc/meminfo has no MemAvailable; give the number of workers: --workers')
