"""Graphs in the workers of a Ray cluster, for a pool (pool.py).

An actor holds a graph: its nodes run on the actor's machine, confined to it by a ROS domain of
their own, and record into a scratch folder there. A bag comes back through Ray's object store and
is put into the pool's folder in one move, so the machines need no folder in common, and a worker
that dies leaves nothing behind that could be counted. The driver alone writes the manifest.

What has to be on each machine: this package and its simulator, in the same versions; the policy,
under the same path, unless the engine is shared.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from grape_bringup.graph import Graph
from grape_bringup.graph_setup import WORKER_GIB, EpisodeRequest, EpisodeResult, GraphSetup
from grape_episode.contract import BESIDE_POLICY, Contract, load_contract
from grape_episode.outcome import Outcome

LOCAL = 'local'
POLL_S = 0.2
STOP_S = 20.0
RAYS_GUESSES = ' Some common causes'  # they follow what is known


class RayError(RuntimeError):
    """A cluster that cannot be used as asked; the text says what to do."""


class RayCluster:
    """A pool's site (pool.Site): graphs in Ray actors, one core and 3 GiB each."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: local starts a cluster of this machine alone, which ends with this process;
                auto finds the one that runs here; or a head's HOST:PORT.

        Raises:
            RayError: Ray is not installed, or there is no such cluster.

        """
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing is reported to anybody
        # Ray's own choice for a local cluster's workers is 15, below all else on the machine.
        os.environ.setdefault('RAY_worker_niceness', '0')
        try:
            import ray
        except ImportError as error:
            raise RayError(f"--ray needs Ray ({error}): pip install 'grape-ros2[ray]'") from error
        options = {'include_dashboard': False} if address == LOCAL else {}
        try:
            ray.init(address, configure_logging=False, log_to_driver=False, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RayError(
                f"no Ray cluster at '{address}' ({error}). Start one with 'ray start --head', or "
                'give --ray local'
            ) from error
        self._ray = ray
        self.server_host = '127.0.0.1' if address == LOCAL else ray.util.get_node_ip_address()

    def workers(self, asked: int) -> int:
        """Return how many graphs there can be.

        Raises:
            RayError: fewer than asked for.

        """
        found = self._ray.cluster_resources()
        cores, gib = found.get('CPU', 0.0), found.get('memory', 0.0) / 2**30
        fit = int(min(cores, gib / WORKER_GIB))
        if fit < max(asked, 1):
            raise RayError(
                f'the Ray cluster has {cores:.0f} cores and {gib:.0f} GiB, enough for {fit} '
                f'workers of 1 core and {WORKER_GIB:.0f} GiB; asked for {asked or "any"}. Give '
                'fewer --workers, or add machines.'
            )
        return asked or fit

    def graph(
        self, setup: GraphSetup, bags: Path, logs: Path, environment: Mapping[str, str]
    ) -> RayGraph:
        """Return a graph; `logs` stay on its machine.

        Raises:
            RayError: each worker would need a GPU of its own.

        """
        if setup.policy is not None and setup.device != 'cpu':
            raise RayError(
                f"with --ray a policy on '{setup.device}' has to be shared: --engine shared"
            )
        return RayGraph(self._ray, setup, bags, environment)

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        self._ray.shutdown()


class RayGraph:
    """A graph in an actor; a dead actor is an episode's error, and the next one has another."""

    def __init__(
        self, ray: object, setup: GraphSetup, bags: Path, environment: Mapping[str, str]
    ) -> None:
        self._ray = ray
        contract = load_contract(setup.contract).to_dict()
        self._arguments = (setup, contract, dict(environment))
        self._bags = bags
        self._adapter: Path | None = None
        self._host = None

    def record_to(self, bags: Path) -> None:
        """Put the next episodes' bags into another folder."""
        self._bags = bags

    def use_adapter(self, path: Path | None) -> None:
        """Act with this adapter from the next episode on; a path of the policy's machine."""
        self._adapter = path

    def run_episode(self, request: EpisodeRequest, cancel: threading.Event) -> EpisodeResult:
        """Play one episode, as Graph.run_episode.

        Raises:
            GraphError: the nodes cannot be started, or refuse the adapter.

        """
        errors = self._ray.exceptions
        if self._host is None:
            kind = self._ray.remote(GraphHost).options(
                num_cpus=1, memory=int(WORKER_GIB * 2**30), max_concurrency=2, max_restarts=0
            )
            self._host = kind.remote(*self._arguments)
        try:
            return self._kept(self._play(self._host, request, cancel))
        except (errors.RayActorError, errors.ObjectLostError) as error:
            self.kill()
            reason = ' '.join(str(error).split()).partition(RAYS_GUESSES)[0]
            return EpisodeResult(Outcome.ERROR, 0, None, f'the Ray worker died: {reason}')
        except errors.RayTaskError as error:
            raise error.cause from error

    def stop(self) -> None:
        """End the nodes, then the actor."""
        if self._host is not None:
            self._ray.wait([self._host.stop.remote()], timeout=STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the actor; its nodes notice and end by themselves (child.py)."""
        host, self._host = self._host, None
        if host is not None:
            self._ray.kill(host)

    def _play(self, host: object, request: EpisodeRequest, cancel: threading.Event) -> Played:
        played, cancelled = host.play.remote(request, self._adapter), False
        while not self._ray.wait([played], timeout=POLL_S)[0]:
            if cancel.is_set() and not cancelled:
                cancelled = True
                host.cancel.remote()
        found = self._ray.get(played)
        if cancelled:  # a host's cancellation is for good
            self.stop()
        return found

    def _kept(self, played: Played) -> EpisodeResult:
        """Put the bag where a graph of this machine would have recorded it."""
        if played.result.bag is None:
            return played.result
        self._bags.mkdir(parents=True, exist_ok=True)
        bag = self._bags / played.result.bag.name
        with tempfile.TemporaryDirectory(prefix='.arriving-', dir=self._bags) as arriving:
            folder = Path(arriving, bag.name)
            for name, content in played.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            folder.rename(bag)
        return replace(played.result, bag=bag)


@dataclass(frozen=True)
class Played:
    """How an episode ended, and its bag's files by name."""

    result: EpisodeResult
    files: dict[str, bytes]


class GraphHost:
    """The actor: a graph whose bags are sent away. `cancel` is called while `play` waits."""

    def __init__(
        self, setup: GraphSetup, contract: dict[str, object], environment: dict[str, str]
    ) -> None:
        self._cancelled = threading.Event()
        self._scratch = tempfile.TemporaryDirectory(prefix='grape-ray-')
        folder = Path(self._scratch.name)
        Contract.from_dict(contract, setup.contract).save(folder)
        setup = replace(setup, contract=str(folder / BESIDE_POLICY))
        self._graph = Graph(setup, folder / 'bags', folder / 'logs', environment)

    def play(self, request: EpisodeRequest, adapter: Path | None) -> Played:
        """Play one episode; its bag does not stay here."""
        self._graph.use_adapter(adapter)
        result = self._graph.run_episode(request, self._cancelled)
        files = {}
        if result.bag is not None:
            found = [path for path in result.bag.rglob('*') if path.is_file()]
            files = {str(path.relative_to(result.bag)): path.read_bytes() for path in found}
            for path in found:
                path.unlink()
        return Played(result, files)

    def cancel(self) -> None:
        """End the running episode as interrupted; no other is played here."""
        self._cancelled.set()

    def stop(self) -> None:
        """End the nodes."""
        self._graph.stop()
        self._scratch.cleanup()
