"""The recorder node's parameters."""

from __future__ import annotations

from dataclasses import dataclass

from grape_episode.bag_writer import CHUNK_BYTES, CHUNK_SECONDS, COMPRESSIONS

SMALLEST_CHUNK = 1024  # bytes


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
        chunk_s: a chunk is closed when it is this old; what a killed recorder loses at most.
        chunk_bytes: a chunk is closed when it is longer, before compression.
        queue_mb: messages that wait for the disk; with more, they are dropped and counted.

    """

    output_dir: str = ''
    contract: str = 'libero'
    compression: str = 'zstd'
    idle_timeout_s: float = 60.0
    drain_timeout_s: float = 5.0
    min_free_mb: int = 500
    chunk_s: float = CHUNK_SECONDS
    chunk_bytes: int = CHUNK_BYTES
    queue_mb: int = 256

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
        if not 0.01 <= self.chunk_s <= 10.0:
            raise ValueError(f'chunk_s is {self.chunk_s}; expected 0.01 to 10 seconds')
        if not SMALLEST_CHUNK <= self.chunk_bytes <= CHUNK_BYTES:
            raise ValueError(
                f'chunk_bytes is {self.chunk_bytes}; expected {SMALLEST_CHUNK} to {CHUNK_BYTES}, '
                'at which rosbags closes a chunk by itself'
            )
        if not 1 <= self.queue_mb <= 16384:
            raise ValueError(f'queue_mb is {self.queue_mb}; expected 1 to 16384')
