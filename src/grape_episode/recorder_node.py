"""The recorder node: one bag an episode, as raw CDR, from START to STOP.

It subscribes to every topic of the contract when it starts, answers START with READY once the
bag is open, drains at STOP until every step's messages are there, and says RECORDED with the
bag's path. An environment that vanishes ends the episode with outcome `error`.

    python -m grape_episode.recorder_node --ros-args -p output_dir:=DIR -p contract:=libero
"""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rclpy
from grape.msg import EpisodeEvent, PolicyStep, SceneState
from grape.srv import LabelEpisode
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from grape_episode.bag_writer import COMPRESSIONS, BagWriter
from grape_episode.contract import Contract, TopicSpec, load_contract
from grape_episode.episode import EpisodeInfo, config_of
from grape_episode.label import append_label
from grape_episode.outcome import Outcome
from grape_episode.ros_qos import qos_profile
from grape_episode.ros_signals import stop_on_signal
from grape_episode.version import code_version

SOURCE = 'recorder'
TICK_S = 0.05


@dataclass(frozen=True)
class RecorderConfig:
    """The node's parameters.

    Attributes:
        output_dir: bags are written to output_dir/<episode id>; required.
        contract: name in config/contract/ or path.
        compression: 'zstd' (of chunks) or 'none'.
        idle_timeout_s: silence after which a running episode ends with outcome error.
        drain_timeout_s: how long STOP waits for messages that are still under way.
        min_free_mb: an episode is refused when the disk has less.

    """

    output_dir: str = ''
    contract: str = 'libero'
    compression: str = 'zstd'
    idle_timeout_s: float = 60.0
    drain_timeout_s: float = 5.0
    min_free_mb: int = 500

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.output_dir:
            raise ValueError("parameter 'output_dir' is empty; expected a folder for the bags")
        if self.compression not in COMPRESSIONS:
            raise ValueError(
                f"parameter 'compression' is '{self.compression}'; expected one of: "
                f'{", ".join(COMPRESSIONS)}'
            )
        if self.min_free_mb < 0:
            raise ValueError(f'min_free_mb is {self.min_free_mb}; expected at least 0')
        if self.idle_timeout_s <= 0 or self.drain_timeout_s < 0:
            raise ValueError('idle_timeout_s must be above 0 and drain_timeout_s at least 0')


@dataclass
class _Recording:
    """The episode that is being written."""

    writer: BagWriter
    info: EpisodeInfo
    last_message: float
    stop: EpisodeEvent | None = None
    stopped_at: float = 0.0
    seen_publisher: bool = False
    steps: dict[str, set[int]] = field(default_factory=dict)  # of the topics that number them

    def take(self, topic: TopicSpec, cdr: bytes) -> bool:
        """Say whether a message is of this episode, not a late one of the episode before."""
        kind = {'policy_step': PolicyStep, 'scene_state': SceneState}.get(topic.role)
        if kind is None:
            return True
        message = deserialize_message(cdr, kind)
        is_own = message.episode_id == self.info.episode_id
        if is_own:
            self.steps.setdefault(topic.name, set()).add(message.step)
        return is_own

    def counts(self) -> dict[str, int]:
        """Return how many messages of each topic count: a step's second or stray one does not."""
        limit = self.stop.steps + 1
        numbered = {t: sum(s < limit for s in steps) for t, steps in self.steps.items()}
        return self.writer.counts | numbered

    def whole_steps(self, topic: str) -> int:
        """Return how many steps there are from 0 on without a gap."""
        found, count = self.steps.get(topic, set()), 0
        while count in found:
            count += 1
        return count


class RecorderNode(Node):
    """Subscribes to the contract's topics and writes what belongs to an episode."""

    def __init__(self, **options: Any) -> None:
        """Declare the parameters and subscribe; `options` are rclpy's own.

        Raises:
            ValueError: a parameter, or the contract, cannot be used.

        """
        super().__init__('recorder_node', **options)
        defaults = {n: f.default for n, f in RecorderConfig.__dataclass_fields__.items()}
        values = {n: self.declare_parameter(n, value).value for n, value in defaults.items()}
        self.config = RecorderConfig(**values)
        self._contract: Contract = load_contract(self.config.contract)
        self._recording: _Recording | None = None
        self._latched: dict[str, bytes] = {}
        self._early: tuple[EpisodeEvent, bytes] | None = None
        self._events = self._contract.topic('episode_event')
        self._images = [t.name for t in self._contract.topics if t.role == 'image']
        self._publisher = self.create_publisher(
            EpisodeEvent, self._events.name, qos_profile(self._events)
        )
        code_version()  # asks git, which START should not wait for
        for topic in self._contract.topics:
            self._subscribe(topic)
        self.create_service(LabelEpisode, '~/label_episode', self._label)
        self.create_timer(TICK_S, self._tick)
        self.get_logger().info(f'recording to {self.config.output_dir}')

    def finish_on_stop(self) -> None:
        """Close an open bag as interrupted, and say so."""
        if self._recording is not None:
            self._finish(Outcome.INTERRUPTED, 'the recorder was stopped')
            self._publisher.wait_for_all_acked(Duration(seconds=1))

    def _subscribe(self, topic: TopicSpec) -> None:
        package, _, name = topic.type.split('/')
        kind = getattr(importlib.import_module(f'{package}.msg'), name)
        is_event = topic.role == 'episode_event'

        def take(cdr: bytes) -> None:
            if is_event:
                self._handle_event(deserialize_message(cdr, EpisodeEvent), cdr)
            else:
                self._write(topic, cdr)

        self.create_subscription(kind, topic.name, take, qos_profile(topic), raw=True)

    def _write(self, topic: TopicSpec, cdr: bytes) -> None:
        if topic.durability == 'transient_local':
            self._latched[topic.name] = cdr
        recording = self._recording
        if recording is None or not recording.take(topic, cdr):
            return
        recording.last_message = time.monotonic()
        try:
            recording.writer.write(topic.name, self.get_clock().now().nanoseconds, cdr)
        except OSError as error:
            self._fail_writing(error)
            return
        if recording.stop is not None:
            self._finish_when_drained()

    def _handle_event(self, event: EpisodeEvent, cdr: bytes) -> None:
        if event.kind == EpisodeEvent.START:
            self._start(event)
        recording = self._recording
        if recording is None or event.episode_id != recording.info.episode_id:
            if event.kind == EpisodeEvent.READY:  # DDS keeps no order between START and it
                self._early = (event, cdr)
            return
        self._write(self._events, cdr)
        if event.kind == EpisodeEvent.START and self._early is not None:
            early, self._early = self._early, None
            if early[0].episode_id == event.episode_id:
                self._handle_event(*early)
        elif event.kind == EpisodeEvent.READY and event.source == 'policy':
            self._take_policy(event)
        elif event.kind == EpisodeEvent.STOP and self._recording is recording:
            self._take_stop(event)

    def _take_policy(self, event: EpisodeEvent) -> None:
        recording = self._recording
        try:
            recording.info = recording.info.with_policy(event.adapter_id, event.config_json)
        except ValueError as error:
            self._finish(Outcome.ERROR, str(error))
            self._say(EpisodeEvent.ERROR, event.episode_id, str(error))

    def _take_stop(self, event: EpisodeEvent) -> None:
        recording = self._recording
        if event.outcome not in list(Outcome):
            choices = ', '.join(Outcome)
            event.detail = f"STOP has the outcome '{event.outcome}'; it is one of: {choices}"
            event.outcome = str(Outcome.ERROR)
            self.get_logger().error(f'{event.episode_id}: {event.detail}')
        recording.stop, recording.stopped_at = event, time.monotonic()
        self._finish_when_drained()

    def _start(self, event: EpisodeEvent) -> None:
        if self._recording is not None:
            self._finish(Outcome.ERROR, f'episode {event.episode_id} began before this one ended')
        try:
            info = self._info(event)
            writer = self._open(info)
        except (OSError, ValueError) as error:
            self.get_logger().error(f'episode {event.episode_id} cannot be recorded: {error}')
            self._say(EpisodeEvent.ERROR, event.episode_id, str(error))
            return
        self._recording = recording = _Recording(writer, info, time.monotonic())
        for topic in self._contract.topics:
            if topic.name in self._latched:
                self._write(topic, self._latched[topic.name])
        if self._recording is recording:
            self._say(EpisodeEvent.READY, event.episode_id)

    def _info(self, event: EpisodeEvent) -> EpisodeInfo:
        return EpisodeInfo(
            episode_id=event.episode_id,
            task=event.task,
            instruction=event.instruction,
            init_state=event.init_state,
            seed=event.seed,
            temperature=float(event.temperature),
            controller=event.controller,
            outcome=Outcome.INTERRUPTED,
            steps=0,
            adapter_id='',
            contract=self._contract.to_dict(),
            environment=config_of('START', event.config_json),
            code_version=code_version(),
            started_at=datetime.now(UTC).isoformat(timespec='seconds'),
        )

    def _open(self, info: EpisodeInfo) -> BagWriter:
        folder = self._folder(info.episode_id)
        folder.parent.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(folder.parent).free // 2**20
        if free_mb < self.config.min_free_mb:
            raise OSError(
                f'{free_mb} MB are free for bags; min_free_mb is {self.config.min_free_mb}. '
                'Free some space or choose another output_dir.'
            )
        return BagWriter(folder, self._contract.topics, info, self.config.compression)

    def _folder(self, episode_id: str) -> Path:
        if not episode_id or episode_id.startswith('.') or '/' in episode_id:
            raise ValueError(
                f"episode_id '{episode_id}' cannot be the name of a bag folder; expected a name "
                "without '/' that does not begin with a dot"
            )
        return Path(self.config.output_dir) / episode_id

    def _finish_when_drained(self) -> None:
        recording = self._recording
        missing = self._contract.missing_messages(recording.counts(), recording.stop.steps)
        late = time.monotonic() - recording.stopped_at > self.config.drain_timeout_s
        if missing and not late:
            return
        if missing:
            # An episode that broke off in the middle of a step lacks that step's messages.
            log = self.get_logger()
            broke = recording.stop.outcome in (Outcome.ERROR, Outcome.INTERRUPTED)
            text = f'{recording.info.episode_id}: messages missing at the end: {missing}'
            log.warning(text) if broke else log.error(text)
            recording.info = replace(recording.info, lost=missing)
        self._finish(Outcome(recording.stop.outcome), recording.stop.detail)

    def _finish(self, outcome: Outcome, detail: str) -> None:
        recording, self._recording = self._recording, None
        steps = recording.whole_steps(self._contract.topic('policy_step').name)
        if recording.stop is not None:
            steps = recording.stop.steps
        info = replace(recording.info, outcome=outcome, steps=steps, detail=detail)
        try:
            recording.writer.close(info)
        except OSError as error:
            recording.writer.abandon(replace(info, outcome=Outcome.ERROR))
            self._say(EpisodeEvent.ERROR, info.episode_id, f'the bag cannot be closed: {error}')
            return
        self._say(EpisodeEvent.RECORDED, info.episode_id, str(recording.writer.folder.resolve()))

    def _fail_writing(self, error: OSError) -> None:
        recording, self._recording = self._recording, None
        detail = f'the bag cannot be written: {error}'
        self.get_logger().error(f'{recording.info.episode_id}: {detail}')
        recording.writer.abandon(replace(recording.info, outcome=Outcome.ERROR, detail=detail))
        self._say(EpisodeEvent.ERROR, recording.info.episode_id, detail)

    def _tick(self) -> None:
        recording = self._recording
        if recording is None:
            return
        try:
            recording.writer.flush_due()
        except OSError as error:
            self._fail_writing(error)
            return
        if recording.stop is not None:
            self._finish_when_drained()
            return
        publishers = sum(self.count_publishers(topic) for topic in self._images)
        recording.seen_publisher |= publishers > 0
        silence = time.monotonic() - recording.last_message
        if recording.seen_publisher and publishers == 0:
            self._finish(Outcome.ERROR, 'the environment vanished (no camera publisher is left)')
        elif silence > self.config.idle_timeout_s:
            self._finish(Outcome.ERROR, f'no message for {silence:.0f} s')

    def _say(self, kind: int, episode_id: str, detail: str = '') -> None:
        event = EpisodeEvent(kind=kind, source=SOURCE, episode_id=episode_id, detail=detail)
        event.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(event)

    def _label(
        self, request: LabelEpisode.Request, response: LabelEpisode.Response
    ) -> LabelEpisode.Response:
        try:
            bag = self._folder(request.episode_id)
            append_label(bag, request.outcome, request.reason, request.labeller)
        except (ValueError, OSError) as error:
            response.success, response.message = False, str(error)
        else:
            response.success, response.message = True, f'{bag.name}: {request.outcome}'
        return response


def main() -> None:
    """Run the node until it is told to stop."""
    stop = stop_on_signal()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = RecorderNode()
    except (ValueError, OSError, ParameterException) as error:
        rclpy.logging.get_logger('recorder_node').error(str(error))
        rclpy.try_shutdown()
        sys.exit(1)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.is_set():
            executor.spin_once(timeout_sec=TICK_S)
    finally:
        node.finish_on_stop()
        executor.shutdown()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
