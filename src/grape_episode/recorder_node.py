"""The recorder node: one bag an episode, as raw CDR, from START to STOP.

It subscribes to every topic of the contract when it starts, answers START with READY once the
bag is open, drains at STOP until every step's messages are there, and says RECORDED with the
bag's path. An environment that vanishes ends the episode with outcome `error`; so do a disk that
is full or too slow and two publishers of one observation, and then ERROR has the arm held.

    python -m grape_episode.recorder_node --ros-args -p output_dir:=DIR -p contract:=libero
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grape.msg import EpisodeEvent
from grape.srv import LabelEpisode
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.serialization import deserialize_message

from grape_episode import ros_diagnostics
from grape_episode.bag_writer import BagWriter
from grape_episode.contract import Contract, TopicSpec, load_contract
from grape_episode.episode import EpisodeInfo, config_of
from grape_episode.label import append_label
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome
from grape_episode.recorder_config import RecorderConfig
from grape_episode.recorder_health import RecorderHealth
from grape_episode.recorder_queue import QueuedWriter
from grape_episode.recorder_topics import RecorderTopics
from grape_episode.recording import Recording, TooSlowError
from grape_episode.ros_main import made
from grape_episode.ros_qos import qos_profile
from grape_episode.ros_signals import stop_on_signal
from grape_episode.ros_timer import steady_timer
from grape_episode.version import code_version

SOURCE = 'recorder'
TICK_S = 0.05
LOOK_S = 0.5  # at the publishers
GOODBYE_S = 8.0  # until a bag is closed when the node is told to stop


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
        self._recording: Recording | None = None
        self._closing: list[QueuedWriter] = []
        self._latched: dict[str, bytes] = {}
        self._early: tuple[EpisodeEvent, bytes, int] | None = None
        self._events = self._contract.topic('episode_event')
        self._images = [t.name for t in self._contract.topics if t.role == 'image' and t.per_step]
        self._publisher = self.create_publisher(
            EpisodeEvent, self._events.name, qos_profile(self._events)
        )
        code_version()  # asks git, which START should not wait for
        for topic in self._contract.topics:  # likewise: definitions are put together once
            typestore().generate_msgdef(topic.type)
        self._topics = RecorderTopics(self, self._contract, self._take)
        self._written = self.create_guard_condition(self._reap)
        self._health = RecorderHealth(self, self._topics, Path(self.config.output_dir))
        self._diagnostics = ros_diagnostics.publisher(self)
        self.create_service(LabelEpisode, '~/label_episode', self._label)
        steady_timer(self, TICK_S, self._tick)
        steady_timer(self, LOOK_S, self._topics.adapt)
        steady_timer(self, ros_diagnostics.PERIOD_S, self._report)
        self.get_logger().info(f'recording to {self.config.output_dir}')

    def finish_on_stop(self) -> None:
        """Close an open bag as interrupted, and say so."""
        if self._recording is not None:
            self._finish(Outcome.INTERRUPTED, 'the recorder was stopped')
        deadline = time.monotonic() + GOODBYE_S
        for writer in self._closing:
            if not writer.wait(max(0.0, deadline - time.monotonic())):
                self.get_logger().error(
                    f'{writer.folder} was not closed within {GOODBYE_S:.0f} s: the disk is too '
                    f'slow; run: grape bag recover {writer.folder}'
                )
        if self._closing:
            self._reap()
            self._publisher.wait_for_all_acked(Duration(seconds=1))

    # What comes in

    def _take(self, topic: TopicSpec, cdr: bytes, sent_ns: int) -> None:
        if topic.role == 'episode_event':
            self._handle_event(deserialize_message(cdr, EpisodeEvent), cdr, sent_ns)
        else:
            self._write(topic, cdr, sent_ns)

    def _write(self, topic: TopicSpec, cdr: bytes, sent_ns: int = 0) -> None:
        if topic.durability == 'transient_local':
            self._latched[topic.name] = cdr
        recording = self._recording
        if recording is None:
            return
        try:
            is_own = recording.write(topic, cdr, sent_ns)
        except TooSlowError as error:
            self._break_off(str(error))
            return
        if is_own and recording.stop is not None:
            self._finish_when_drained()

    def _handle_event(self, event: EpisodeEvent, cdr: bytes, sent_ns: int) -> None:
        if event.kind == EpisodeEvent.START:
            self._start(event)
        recording = self._recording
        if recording is None or event.episode_id != recording.info.episode_id:
            if event.kind == EpisodeEvent.READY:  # DDS keeps no order between START and it
                self._early = (event, cdr, sent_ns)
            return
        self._write(self._events, cdr)
        if event.kind == EpisodeEvent.START and self._early is not None:
            early, self._early = self._early, None
            if early[0].episode_id == event.episode_id:
                self._handle_event(*early)
        elif event.kind == EpisodeEvent.READY and event.source == 'policy':
            self._take_policy(event)
        elif event.kind == EpisodeEvent.STOP and self._recording is recording:
            self._take_stop(event, sent_ns)

    def _take_policy(self, event: EpisodeEvent) -> None:
        recording = self._recording
        try:
            recording.info = recording.info.with_policy(event.adapter_id, event.config_json)
        except ValueError as error:
            self._break_off(str(error))

    def _take_stop(self, event: EpisodeEvent, sent_ns: int) -> None:
        if event.outcome not in list(Outcome):
            choices = ', '.join(Outcome)
            event.detail = f"STOP has the outcome '{event.outcome}'; it is one of: {choices}"
            event.outcome = str(Outcome.ERROR)
            self.get_logger().error(f'{event.episode_id}: {event.detail}')
        self._recording.take_stop(event, sent_ns)
        self._finish_when_drained()

    # From START to RECORDED

    def _start(self, event: EpisodeEvent) -> None:
        if self._recording is not None:
            self._finish(Outcome.ERROR, f'episode {event.episode_id} began before this one ended')
        try:
            info = self._info(event)
            self._topics.adapt()
            writer = self._open(info)
        except (OSError, ValueError) as error:
            self.get_logger().error(f'episode {event.episode_id} cannot be recorded: {error}')
            self._health.problem = str(error)
            self._say(EpisodeEvent.ERROR, event.episode_id, str(error))
            return
        wall_ns = self.get_clock().now().nanoseconds
        self._recording = recording = Recording(writer, info, self._contract, wall_ns)
        self._topics.begin()
        self._health.begin(writer)
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

    def _open(self, info: EpisodeInfo) -> QueuedWriter:
        folder = self._folder(info.episode_id)
        folder.parent.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(folder.parent).free // 2**20
        if free_mb < self.config.min_free_mb:
            raise OSError(
                f'{free_mb} MB are free for bags; min_free_mb is {self.config.min_free_mb}. '
                'Free some space or choose another output_dir.'
            )
        config = self.config
        writer = BagWriter(
            folder,
            self._topics.chosen.values(),
            info,
            config.compression,
            config.chunk_s,
            config.chunk_bytes,
        )
        return QueuedWriter(writer, config.queue_mb * 2**20, self._written.trigger)

    def _folder(self, episode_id: str) -> Path:
        if not episode_id or episode_id.startswith('.') or '/' in episode_id:
            raise ValueError(
                f"episode_id '{episode_id}' cannot be the name of a bag folder; expected a name "
                "without '/' that does not begin with a dot"
            )
        return Path(self.config.output_dir) / episode_id

    def _finish_when_drained(self) -> None:
        recording = self._recording
        missing = recording.missing()
        late = time.monotonic() - recording.stopped_at > self.config.drain_timeout_s
        if not late and (missing or recording.streams_lag()):
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
        """End the episode; RECORDED follows when the bag is closed."""
        recording, self._recording = self._recording, None
        recording.writer.close(recording.ended(outcome, detail, self._topics.lost()))
        self._closing.append(recording.writer)

    def _break_off(self, detail: str) -> None:
        """End the episode as an error of the recording, and have the arm held."""
        episode_id = self._recording.info.episode_id
        self.get_logger().error(f'{episode_id}: {detail}')
        self._health.problem = detail
        self._finish(Outcome.ERROR, detail)
        self._say(EpisodeEvent.ERROR, episode_id, detail)

    def _reap(self) -> None:
        """See what the writers' threads have to say."""
        recording = self._recording
        if recording is not None and recording.writer.error is not None:
            self._fail_writing(recording)
        done = [writer for writer in self._closing if writer.is_done]
        self._closing = [writer for writer in self._closing if writer not in done]
        for writer in done:
            info = writer.info
            if writer.error is None:
                self._say(EpisodeEvent.RECORDED, info.episode_id, str(writer.folder.resolve()))
            else:
                self._health.problem = info.detail
                self._say(EpisodeEvent.ERROR, info.episode_id, info.detail)

    def _fail_writing(self, recording: Recording) -> None:
        self._recording = None
        detail = f'the bag cannot be written: {recording.writer.error}'
        self.get_logger().error(f'{recording.info.episode_id}: {detail}')
        info = recording.ended(Outcome.ERROR, detail, self._topics.lost())
        recording.writer.abandon(info)
        self._closing.append(recording.writer)

    # What is looked at now and then

    def _tick(self) -> None:
        recording = self._recording
        if recording is None:
            return
        if recording.stop is not None:
            self._finish_when_drained()
            return
        publishers = sum(self._topics.publishers[topic] for topic in self._images)
        recording.seen_publisher |= publishers > 0
        silence = time.monotonic() - recording.last_message
        if recording.seen_publisher and publishers == 0:
            self._finish(Outcome.ERROR, 'the environment vanished (no camera publisher is left)')
        elif silence > self.config.idle_timeout_s:
            self._finish(Outcome.ERROR, f'no message for {silence:.0f} s')
        elif rivals := self._topics.rivals():
            self._break_off(rivals)

    def _report(self) -> None:
        recording = self._recording
        episode_id = recording.info.episode_id if recording is not None else ''
        dropped = recording.dropped if recording is not None else {}
        self._diagnostics.publish(self._health.report(episode_id, dropped))

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
    with made(RecorderNode, 'recorder_node') as (node, executor):
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=TICK_S)
        finally:
            node.finish_on_stop()


if __name__ == '__main__':
    main()
