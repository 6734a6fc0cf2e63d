"""What the recorder says of itself: rates, losses and the quality of service of every topic."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from grape_episode import ros_diagnostics
from grape_episode.recorder_queue import QueuedWriter
from grape_episode.recorder_topics import RecorderTopics

SAID_EVERY_S = 5.0


class RecorderHealth:
    """Collects the numbers of one report, and warns of what is lost."""

    def __init__(self, node: Node, topics: RecorderTopics, folder: Path) -> None:
        """Look at these topics and at the disk of this folder."""
        self.problem = ''  # why the last episode could not be recorded; '' once one begins
        self._node = node
        self._topics = topics
        self._folder = folder
        self._writer: QueuedWriter | None = None

    def begin(self, writer: QueuedWriter) -> None:
        """Begin an episode: what was wrong with the one before is over."""
        self.problem = ''
        self._writer = writer

    def report(self, episode_id: str, dropped: Mapping[str, int]) -> DiagnosticArray:
        """Return the status; during an episode losses are also logged.

        Args:
            episode_id: of the running episode, '' where none runs.
            dropped: by the queue in it, topic -> messages.

        """
        values: dict[str, object] = {'episode_id': episode_id, **self._disk()}
        missing, silent = [], []
        for name, intake in self._topics.intakes.items():
            topic, count = self._topics.chosen[name], self._topics.publishers[name]
            network, queue = intake.lost_since_begin(), dropped.get(name, 0)
            values[name] = (
                f'{intake.rate.look():.1f} Hz, lost {network}, dropped {queue}, publishers '
                f'{count}, {topic.reliability}, {topic.durability}'
            )
            values |= {f'{name} {k}': v for k, v in intake.transport.values().items()}
            if network or queue:
                missing.append(f'{name} {network + queue}')
            if count == 0 and topic.role == 'raw':
                silent.append(name)
        warning = ''
        if episode_id and missing:
            warning = f'messages lost: {", ".join(missing)}'
        elif episode_id and silent:
            warning = f'nobody publishes: {", ".join(silent)}'
        if warning:
            self._node.get_logger().warning(
                f'{episode_id}: {warning}', throttle_duration_sec=SAID_EVERY_S
            )
        return ros_diagnostics.diagnostics(self._node, 'recording', values, warning, self.problem)

    def _disk(self) -> dict[str, object]:
        values: dict[str, object] = {}
        if self._folder.is_dir():
            values['free_mb'] = shutil.disk_usage(self._folder).free // 2**20
        if self._writer is not None:
            values['queued_mb'] = f'{self._writer.queued_bytes / 1e6:.1f}'
            values |= self._writer.waited.values()
        return values
