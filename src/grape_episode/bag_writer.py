"""Write an episode's messages as one rosbag2 folder in MCAP.

The folder is readable at any moment after a crash: chunks are closed by time and size, what the
topics are is in the file before the first message, and episode.json is there from the start,
saying `interrupted` until the end is known. A small file is kept in reserve, so that a disk that
is full still takes the reason.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from grape_episode.bag_folder import CUSTOM_KEY, INFO_FILE
from grape_episode.contract import TopicSpec
from grape_episode.episode import EpisodeInfo
from grape_episode.messages import typestore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_SECONDS = 0.25  # at most this much is lost when the recorder is killed
CHUNK_BYTES = 2**20  # rosbags' own limit
RESERVE = '.reserve'
RESERVE_BYTES = 65536  # more than an episode.json
COMPRESSIONS = ('none', 'zstd')

# LIBERO's 224 px pictures, one core: 'none' 152 KB a step; level 1 31 KB, 0.3 ms; level 2 25 KB,
# 0.35 ms; level 3 (the library's choice) 24 KB, 0.5 ms. The checksum makes a flipped bit an error.
_ZSTD = {
    zstd.CompressionParameter.compression_level: 2,
    zstd.CompressionParameter.checksum_flag: 1,
}
METADATA_RECORD = 0x0C  # MCAP's opcode
_FOREVER = QosTime(2147483647, 4294967295)


class BagWriter:
    """One open bag. Use `close` (or `abandon` after a write error) exactly once."""

    def __init__(
        self,
        folder: Path,
        topics: Iterable[TopicSpec],
        info: EpisodeInfo,
        compression: str,
        chunk_s: float = CHUNK_SECONDS,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Open the bag.

        Args:
            folder: becomes the bag; must not exist.
            topics: of the contract, with the quality of service that they are heard with.
            info: as known at the start; its outcome is written as `interrupted`.
            compression: 'zstd' (of chunks, with a checksum), or 'none' (nothing tells of a
                flipped bit).
            chunk_s: a chunk is closed when it is this old.
            chunk_bytes: a chunk is closed when it is longer, before compression.

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
        self.topics = tuple(topics)
        self.info = info
        self.counts: dict[str, int] = {}
        self._chunk_s = chunk_s
        self._chunk_bytes = chunk_bytes
        self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
        if compression == 'zstd':
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        if compression == 'zstd':
            self._writer.storage.compressor = partial(zstd.compress, options=_ZSTD)
        self._connections: dict[str, Connection] = {}
        for topic in self.topics:
            self._connections[topic.name] = self._writer.add_connection(
                topic.name, topic.type, typestore=typestore(), offered_qos_profiles=[_qos(topic)]
            )
            self.counts[topic.name] = 0
        self._write_head()
        write_info(folder, info)
        (folder / RESERVE).write_bytes(bytes(RESERVE_BYTES))
        self._chunk_opened = time.monotonic()

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Add one message, as it came over the wire."""
        self._writer.write(self._connections[topic], stamp_ns, cdr)
        self.counts[topic] += 1
        self.flush_due()

    def flush_due(self) -> None:
        """Close the chunk when it is old or long enough; call it on a timer for quiet topics."""
        storage = self._writer.storage
        is_old = time.monotonic() - self._chunk_opened >= self._chunk_s
        if is_old or storage.chunk.bio.tell() >= self._chunk_bytes:
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
        (self.folder / RESERVE).unlink()

    def abandon(self, info: EpisodeInfo) -> None:
        """Give up after a write error: what is on disk stays and can be recovered.

        On a full disk the reserve makes room for the reason; a disk that is broken may refuse it
        all the same, and then episode.json says `interrupted`, as it has from the start.
        """
        self.info = replace(info, detail=f'{info.detail} (run: grape bag recover {self.folder})')
        with suppress(OSError):
            self._writer.abort()
        (self.folder / RESERVE).unlink(missing_ok=True)
        with suppress(OSError):
            write_info(self.folder, self.info)

    def _write_head(self) -> None:
        """Put the episode, and the topics that rosbags keeps for the first chunk, into the file.

        A recorder that is killed before its first chunk leaves a file that says what it was to be.
        """
        storage = self._writer.storage
        episode = json.dumps(self.info.to_dict())
        pairs = _text(INFO_FILE) + _text(episode)
        body = _text(CUSTOM_KEY) + struct.pack('<I', len(pairs)) + pairs
        storage.bio.write(struct.pack('<BQ', METADATA_RECORD, len(body)) + body)
        storage.bio.write(storage.chunk.bio.getvalue())
        storage.chunk.bio.seek(0)
        storage.chunk.bio.truncate()
        storage.bio.flush()


def write_info(folder: Path, info: EpisodeInfo) -> None:
    """Write episode.json atomically."""
    temporary = folder / f'{INFO_FILE}.tmp'
    temporary.write_text(json.dumps(info.to_dict(), indent=1))
    os.replace(temporary, folder / INFO_FILE)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack('<I', len(data)) + data


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
