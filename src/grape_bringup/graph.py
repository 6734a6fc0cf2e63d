"""One graph: bridge, recorder and policy node in processes of their own, on a ROS domain.

`Graph.run_episode` plays one episode and always returns: a node that dies or falls silent gives
outcome `error` with the end of its log, and the next episode starts the nodes again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from grape_bringup.graph_client import GraphClient
from grape_bringup.graph_setup import EpisodeRequest, EpisodeResult, GraphSetup, node_specs
from grape_bringup.node_process import NodeProcess
from grape_bringup.ros_environment import claim_domain_id, ros_environment
from grape_episode.contract import load_contract
from grape_episode.outcome import Outcome

START_TIMEOUT_S = 120.0
BUILD_S = 90.0  # a simulator is built well within it
STEPS_A_SIGN = 12  # the bridge gives feedback every 10 steps
SETTLE_S = 0.3  # nodes that this process sees have seen one another by then
ADAPTER_TIMEOUT_S = 60.0
CANCEL_TIMEOUT_S = 20.0
# Fast DDS forgets a killed participant after 5 s (config/fastdds.xml); then the recorder closes.
ORPHANED_BAG_TIMEOUT_S = 12.0

log = logging.getLogger(__name__)


class GraphError(RuntimeError):
    """The nodes cannot be started, or refuse an adapter; the text says which and why."""


class _BrokenError(Exception):
    """A node died or fell silent during an episode."""


class Graph:
    """Nodes that play one episode after the other; a context manager."""

    def __init__(
        self,
        setup: GraphSetup,
        bags: Path,
        logs: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; the nodes are started by the first episode, or by `start`.

        Args:
            setup: of the nodes; its policy is every node's own or on a server.
            bags: where the recorder writes; `record_to` changes it.
            logs: folder for the nodes' logs and parameters.
            environment: more variables of the nodes, such as a server's token.

        """
        self.setup = setup
        self._environment = dict(environment or {})
        self._bags = bags.resolve()
        self._logs = logs.resolve()
        self._adapter: Path | None = None  # that should act
        self._loaded: Path | None = None  # that does
        self._processes: dict[str, NodeProcess] = {}
        self._contract = load_contract(setup.contract)
        self._domain = 0
        self._client: GraphClient | None = None
        self._stack = ExitStack()  # the domain and the client

    def __enter__(self) -> Graph:
        """Return the graph itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running nodes, by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def start(self, cancel: threading.Event | None = None) -> None:
        """Start what does not run and wait until it is ready.

        Raises:
            GraphError: a node ended or is not ready in time.

        """
        specs = node_specs(self.setup, self._bags, self._adapter)
        missing = [spec for spec in specs if spec.name not in self._processes]
        if not missing:
            return
        if self._client is None:
            # A domain of its own each time: of killed nodes others still believe that they live.
            self._domain = self._stack.enter_context(claim_domain_id())
            self._client = GraphClient(self._domain, self._contract)
            self._stack.callback(self._client.close)
        environment = {**os.environ, **ros_environment(self._domain), **self._environment}
        for spec in missing:
            self._processes[spec.name] = NodeProcess(spec, environment, self._logs)
            if spec.name == 'policy_node':
                self._loaded = self._adapter
        try:
            self._wait_until_ready(cancel)
        except _BrokenError as error:
            self.stop()
            raise GraphError(f'The nodes cannot be started: {error}') from error

    def stop(self) -> None:
        """End all nodes and give the domain back; the next episode starts them again."""
        for process in self._processes.values():
            process.interrupt()
        for process in self._processes.values():
            process.stop()
        self._processes.clear()
        self._stack.close()
        self._client = None

    def kill(self) -> None:
        """End all nodes at once, from any thread; whatever waits for them fails."""
        for process in list(self._processes.values()):
            process.kill()

    def record_to(self, bags: Path) -> None:
        """Record the next episodes into another folder (the recorder is started again)."""
        bags = bags.resolve()
        if bags != self._bags and 'recorder_node' in self._processes:
            self._processes.pop('recorder_node').stop()
        self._bags = bags

    def use_adapter(self, path: Path | None) -> None:
        """Act with this adapter from the next episode on, None: with the base policy.

        The running policy node switches by LoadAdapter.

        Raises:
            GraphError: the policy node refuses it.

        """
        if path is not None and self.setup.remote is None:
            path = path.resolve()
        self._adapter = path  # of a remote policy: on the server's machine
        if self._adapter == self._loaded or 'policy_node' not in self._processes:
            return
        future = self._client.load_adapter(str(self._adapter or ''))
        deadline = time.monotonic() + ADAPTER_TIMEOUT_S
        try:
            self._wait(lambda: not future.done() and time.monotonic() < deadline)
        except _BrokenError as error:
            log.warning('the nodes start again with adapter %s: %s', path, error)
            self.stop()
            return
        answer = future.result()
        if answer is None or not answer.success:
            said = answer.message if answer else f'no answer in {ADAPTER_TIMEOUT_S:.0f} s'
            raise GraphError(f'Adapter {path} was not loaded: {said}')
        self._loaded = self._adapter

    def run_episode(
        self, request: EpisodeRequest, cancel: threading.Event | None = None
    ) -> EpisodeResult:
        """Play one episode; `cancel` ends it with outcome interrupted.

        Raises:
            GraphError: the nodes cannot be started.

        """
        self.start(cancel)
        if cancel is not None and cancel.is_set():
            return EpisodeResult(Outcome.INTERRUPTED, 0, None, 'cancelled before it began')
        with self._client.listening(request.episode_id):
            try:
                return self._play(request, cancel)
            except _BrokenError as error:
                bag = self._bag_of_broken_episode(request.episode_id, str(error))
                self.stop()
                log.error('%s: %s', request.episode_id, error)
                return EpisodeResult(Outcome.ERROR, 0, bag, str(error))

    def _wait_until_ready(self, cancel: threading.Event | None) -> None:
        client, deadline = self._client, time.monotonic() + START_TIMEOUT_S
        ready = {'bridge_node': client.bridge_is_ready, 'recorder_node': client.recorder_is_ready}
        if self.setup.has_policy:
            ready['policy_node'] = client.policy_is_ready

        def waiting() -> bool:
            cancelled = cancel is not None and cancel.is_set()
            return not cancelled and not all(check() for check in ready.values())

        def in_time() -> bool:
            if time.monotonic() > deadline:
                late = [name for name, check in ready.items() if not check()]
                raise _BrokenError(f'{", ".join(late)} not ready after {START_TIMEOUT_S:.0f} s')
            return True

        self._wait(lambda: waiting() and in_time())
        if self.setup.has_policy:
            # It answers once it spins, and it spins once it is active.
            ready = {'policy_node': client.policy_answers}
            self._wait(lambda: waiting() and in_time())
        settled = time.monotonic() + SETTLE_S
        self._wait(lambda: time.monotonic() < settled)

    def _play(self, request: EpisodeRequest, cancel: threading.Event | None) -> EpisodeResult:
        sent = self._client.send_goal(**asdict(request))
        self._wait(lambda: not sent.done() and self._not_silent())
        handle = sent.result()
        if not handle.accepted:
            return EpisodeResult(Outcome.ERROR, 0, None, 'bridge_node refused the goal')
        result = handle.get_result_async()

        def running() -> bool:
            return not result.done() and self._not_silent()

        self._wait(lambda: running() and not (cancel is not None and cancel.is_set()))
        if not result.done():
            handle.cancel_goal_async()
            deadline = time.monotonic() + CANCEL_TIMEOUT_S
            self._wait(lambda: running() and time.monotonic() < deadline)
            if not result.done():
                self.stop()
                return EpisodeResult(Outcome.INTERRUPTED, 0, None, 'cancelled')
        answer = result.result().result
        if not answer.outcome:
            return EpisodeResult(Outcome.ERROR, 0, None, 'bridge_node gave no result')
        bag = Path(answer.bag_path) if answer.bag_path else None
        return EpisodeResult(Outcome(answer.outcome), answer.steps, bag, answer.detail)

    def _not_silent(self) -> bool:
        limit_s = BUILD_S + STEPS_A_SIGN * self.setup.step_timeout_s
        if time.monotonic() - self._client.last_sign_of_life > limit_s:
            tail = self._processes['bridge_node'].tail()
            raise _BrokenError(f'bridge_node was silent for {limit_s:.0f} s: {tail}')
        return True

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Spin while the condition holds and every node lives."""

        def alive_and() -> bool:
            for process in self._processes.values():
                if process.returncode is not None:
                    raise _BrokenError(process.reason())
            return condition()

        self._client.spin_while(alive_and)

    def _bag_of_broken_episode(self, episode_id: str, detail: str) -> Path | None:
        """Have the bridge end the episode as an error, and the recorder close the bag.

        A recorder without a bridge notices by itself that the pictures' publisher is gone.
        """
        recorder = self._processes['recorder_node']
        if recorder.returncode is not None:
            return None
        self._client.report_error(episode_id, detail)
        recorded, deadline = self._client.recorded, time.monotonic() + ORPHANED_BAG_TIMEOUT_S
        self._client.spin_while(
            lambda: (
                episode_id not in recorded
                and recorder.returncode is None
                and time.monotonic() < deadline
            )
        )
        return Path(recorded[episode_id]) if episode_id in recorded else None
