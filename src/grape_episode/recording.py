"""The episode that is being written: what of it has come, what was lost, and why it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from grape.msg import EpisodeEvent, PolicyStep, SceneState
from rclpy.serialization import deserialize_message

from grape_episode.contract import Contract, TopicSpec
from grape_episode.episode import EpisodeInfo
from grape_episode.recorder_queue import RAW_SHARE, QueuedWriter

QUIET_S = 0.1  # streams are silent for so long once nothing from before STOP is under way
NUMBERED = {'policy_step': PolicyStep, 'executed_step': PolicyStep, 'scene_state': SceneState}


class TooSlowError(RuntimeError):
    """The disk does not keep up with what an episode is made of."""


class Recording:
    """One open episode of the recorder."""

    def __init__(
        self, writer: QueuedWriter, info: EpisodeInfo, contract: Contract, wall_ns: int
    ) -> None:
        """Begin; wall_ns is the node's clock, which is not asked again."""
        self.writer = writer
        self.info = info
        self.stop: EpisodeEvent | None = None
        self.stopped_at = 0.0
        self._stop_sent_ns = 0
        self._streamed_at = 0.0  # the newest message of a stream from before STOP
        self._has_streams = any(topic.role == 'raw' for topic in contract.topics)
        self.last_message = time.monotonic()
        self.seen_publisher = False
        self.dropped: dict[str, int] = {}  # by the queue
        self._contract = contract
        self._counts = {topic.name: 0 for topic in contract.topics}
        self._steps: dict[str, set[int]] = {}  # of the topics that number them
        # A wall clock that is set while the episode runs would mix up the order of its messages.
        self._wall_offset_ns = wall_ns - time.monotonic_ns()

    def write(self, topic: TopicSpec, cdr: bytes, sent_ns: int) -> bool:
        """Queue a message; False where it is of the episode before, or from after STOP.

        Raises:
            TooSlowError: no room for what the episode cannot be without.

        """
        if self.stop is not None and topic.role == 'raw':
            if sent_ns > self._stop_sent_ns:
                return False
            self._streamed_at = time.monotonic()
        if not self._is_own(topic, cdr):
            return False
        self.last_message = time.monotonic()
        stamp_ns = time.monotonic_ns() + self._wall_offset_ns
        if self.writer.put(topic.name, stamp_ns, cdr, _share(topic)):
            self._counts[topic.name] += 1
            return True
        self.dropped[topic.name] = self.dropped.get(topic.name, 0) + 1
        if topic.per_step:
            raise TooSlowError(
                f'the disk is too slow: {self.writer.queued_bytes / 1e6:.0f} MB wait for it, and '
                f'a message of {topic.name} had to be dropped. Record fewer or smaller streams, '
                'or use a faster disk.'
            )
        return True

    def take_stop(self, event: EpisodeEvent, sent_ns: int) -> None:
        """Take STOP; what is under way may still come."""
        self.stop, self.stopped_at = event, time.monotonic()
        self._stop_sent_ns = sent_ns

    def streams_lag(self) -> bool:
        """Say whether messages that were sent before STOP may still be in the queues of DDS.

        An executor takes one message of each topic in turn, and STOP overtakes a burst.
        """
        quiet_s = time.monotonic() - max(self.stopped_at, self._streamed_at)
        return self._has_streams and quiet_s < QUIET_S

    def missing(self) -> dict[str, int]:
        """Return what a stopped episode still lacks: topic -> messages.

        A step's second or stray message does not count.
        """
        limit = self.stop.steps + 1
        numbered = {t: sum(s < limit for s in steps) for t, steps in self._steps.items()}
        return self._contract.missing_messages(
            self._counts | numbered, self.stop.steps, self.info.controller
        )

    def ended(self, outcome: str, detail: str, lost: Mapping[str, int]) -> EpisodeInfo:
        """Return what is known at the end.

        Args:
            outcome: of the episode.
            detail: why it ended so.
            lost: what the network lost of streams, topic -> messages.

        """
        streams = {t.name for t in self._contract.topics if not t.per_step}
        losses = dict(self.info.lost)
        for name in streams:
            count = lost.get(name, 0) + self.dropped.get(name, 0)
            losses |= {name: count} if count else {}
        steps = self.stop.steps if self.stop is not None else self._whole_steps()
        return replace(self.info, outcome=outcome, steps=steps, detail=detail, lost=losses)

    def _is_own(self, topic: TopicSpec, cdr: bytes) -> bool:
        kind = NUMBERED.get(topic.role)
        if kind is None:
            return True
        message = deserialize_message(cdr, kind)
        is_own = message.episode_id == self.info.episode_id
        if is_own:
            self._steps.setdefault(topic.name, set()).add(message.step)
        return is_own

    def _whole_steps(self) -> int:
        """Return how many steps there are from 0 on without a gap."""
        found = self._steps.get(self._contract.track(self.info.controller).name, set())
        count = 0
        while count in found:
            count += 1
        return count


def _share(topic: TopicSpec) -> float:
    """Return how much of the queue a topic may fill; events are few and always find room."""
    if topic.role == 'episode_event':
        return float('inf')
    return 1.0 if topic.per_step else RAW_SHARE
