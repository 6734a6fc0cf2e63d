"""Write an episode's messages as one rosbag2 folder in MCAP.

The folder is readable at any moment after a crash: chunks are closed by time, and episode.json
is there from the start, saying `interrupted` until the end is known.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness
from rosbags.interfaces import QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from grape_episode.contract import TopicSpec
from grape_episode.episode import EpisodeInfo
from grape_episode.messages import typestore

INFO_FILE = 'episode.json'
CUSTOM_KEY = 'grape_episode'
CHUNK_SECONDS = 0.25  # at most this much is lost when the recorder is killed
COMPRESSIONS = ('none', 'zstd')

_FOREVER = QosTime(2147483647, 4294967295)


class BagWriter:
    """One open bag. Use `close` (or `abandon` after a write error) exactly once."""

    def __init__(
        self, folder: Path, topics: Iterable[TopicSpec], info: EpisodeInfo, compression: str
    ) -> None:
        """Open the bag.

        Args:
            folder: becomes the bag; must not exist.
            topics: of the contract.
            info: as known at the start; its outcome is written as `interrupted`.
            compression: 'none' or 'zstd' (of chunks).

        Raises:
            FileExistsError: never overwritten.
            OSError: of the disk.

        """
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression '{compression}' is not one of: {COMPRESSIONS}")
        if folder.exists():
            raise FileExistsError(
                f"There is a bag '{folder}' already; bags are never overwritten. "
                'Use another episode id or folder.'
            )
        self.folder = folder
        self.info = info
        self.counts: dict[str, int] = {}
        self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
        if compression == 'zstd':
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections: dict[str, Connection] = {}
        for topic in topics:
            self._connections[topic.name] = self._writer.add_connection(
                topic.name, topic.type, typestore=typestore(), offered_qos_profiles=[_qos(topic)]
            )
            self.counts[topic.name] = 0
        write_info(folder, info)
        self._chunk_opened = time.monotonic()

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Add one message, as it came over the wire."""
        self._writer.write(self._connections[topic], stamp_ns, cdr)
        self.counts[topic] += 1
        self.flush_due()

    def flush_due(self) -> None:
        """Close the chunk when it is old enough; call it on a timer for quiet topics."""
        if time.monotonic() - self._chunk_opened >= CHUNK_SECONDS:
            storage = self._writer.storage
            if storage.chunk.msgs:
                storage.close_chunk()
                storage.bio.flush()
            self._chunk_opened = time.monotonic()

    def close(self, info: EpisodeInfo) -> None:
        """Write index, metadata.yaml and the final episode.json."""
        self.info = info
        self._writer.set_custom_data(CUSTOM_KEY, json.dumps(info.to_dict()))
        self._writer.close()
        write_info(self.folder, info)

    def abandon(self, info: EpisodeInfo) -> None:
        """Give up after a write error: what is on disk stays and can be recovered."""
        self.info = replace(info, detail=f'{info.detail} (recover: grape bag recover)')
        storage = self._writer.storage
        if storage is not None:
            storage.bio.close()
        write_info(self.folder, self.info)


def write_info(folder: Path, info: EpisodeInfo) -> None:
    """Write episode.json atomically."""
    temporary = folder / f'{INFO_FILE}.tmp'
    temporary.write_text(json.dumps(info.to_dict(), indent=1))
    os.replace(temporary, folder / INFO_FILE)


def _qos(topic: TopicSpec) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        topic.depth,
        QosReliability[topic.reliability.upper()],
        QosDurability[topic.durability.upper()],
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )
