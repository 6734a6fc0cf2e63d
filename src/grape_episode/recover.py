"""Make a damaged bag readable: one that was never closed, is truncated, or has bad chunks.

MCAP is a sequence of chunks, each of which stands for itself: what was flushed before a SIGKILL
is there, only the index is missing; a chunk whose checksum fails is left out. The rebuilt bag
replaces the damaged file, which is kept beside it as *.mcap.damaged.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mcap.records import Channel, Chunk, McapRecord, Message
from mcap.stream_reader import StreamReader, breakup_chunk

from grape_episode.bag_folder import INFO_FILE, METADATA, BagError, open_bag, read_info
from grape_episode.bag_writer import RESERVE, BagWriter
from grape_episode.contract import Contract, ContractError
from grape_episode.episode import EpisodeInfo
from grape_episode.messages import EventKind, typestore
from grape_episode.outcome import Outcome

RECORD_LIMIT = 2**30  # bytes; a longer record is a corrupted length


def recover(path: Path | str) -> int:
    """Rebuild a damaged bag in place.

    Steps, policy and adapter are taken from what was saved. The outcome is the recorded STOP's if
    nothing that it promises is missing; else the bag stays interrupted (or error).

    Returns:
        The number of messages saved.

    Raises:
        BagError: nothing can be saved, or nothing is wrong.

    """
    path = Path(path)
    info = read_info(path)
    try:
        contract = Contract.from_dict(info.contract, str(path))
    except ContractError as error:
        raise BagError(f"'{path}': {error}") from error
    if _is_complete(path):
        raise BagError(f"'{path}' is complete: there is nothing to recover.")
    files = sorted(path.glob('*.mcap')) or sorted(path.glob('*.mcap.damaged'))
    if len(files) != 1:
        raise BagError(f"'{path}' holds {len(files)} .mcap files; expected one.")
    with tempfile.TemporaryDirectory(prefix='.recovering-', dir=path.parent) as temporary:
        rebuilt = Path(temporary) / path.name
        writer = BagWriter(rebuilt, contract.topics, info, 'zstd')
        events, damage = _copy(files[0], writer)
        saved = sum(writer.counts.values())
        writer.close(_known(info, contract, events, writer.counts, damage))
        if saved == 0:
            raise BagError(
                f"'{path}': no message can be saved ({'; '.join(damage) or 'it is empty'}). "
                'Nothing was changed.'
            )
        if files[0].suffix == '.mcap':
            files[0].rename(files[0].with_suffix('.mcap.damaged'))
        for name in (f'{path.name}.mcap', METADATA, INFO_FILE):
            os.replace(rebuilt / name, path / name)
        (path / RESERVE).unlink(missing_ok=True)
    return saved


def _is_complete(path: Path) -> bool:
    try:
        with open_bag(path) as reader:
            for _ in reader.messages():
                pass
    except BagError:
        return False
    return True


def _copy(file: Path, writer: BagWriter) -> tuple[list[bytes], list[str]]:
    """Copy every readable message; returns the CDR of the episode events, and the damage."""
    damage: list[str] = []
    wanted = {topic.name: topic.role for topic in writer.topics}
    channels = _channels(file, len(wanted))
    events = []
    for record in _records(file, damage):
        if not isinstance(record, Message):
            continue
        topic = channels.get(record.channel_id)
        if topic in wanted:
            writer.write(topic, record.log_time, record.data)
            if wanted[topic] == 'episode_event':
                events.append(record.data)
    return events, damage


def _channels(file: Path, count: int) -> dict[int, str]:
    """Return channel id -> topic; they are in the first chunk, and again in the summary."""
    found: dict[int, str] = {}
    for record in _records(file, []):
        if isinstance(record, Channel):
            found[record.id] = record.topic
            if len(found) == count:
                break
    return found


def _records(file: Path, damage: list[str]) -> Iterator[McapRecord]:
    """Yield records, those of chunks too, as far as the file can be read; notes what cannot."""
    with file.open('rb') as stream:
        reader = StreamReader(stream, emit_chunks=True, record_size_limit=RECORD_LIMIT).records
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 - damaged bytes raise anything at all
                damage.append(f'the file ends or breaks at byte {stream.tell()} ({error!r})')
                return
            if not isinstance(record, Chunk):
                yield record
                continue
            try:
                inner = breakup_chunk(record, validate_crc=True)
            except Exception as error:  # noqa: BLE001 - as above
                damage.append(f'a chunk before byte {stream.tell()} is corrupted ({error!r})')
                continue
            yield from inner


def _known(
    info: EpisodeInfo,
    contract: Contract,
    events: list[bytes],
    counts: dict[str, int],
    damage: list[str],
) -> EpisodeInfo:
    """Return the episode's info as the saved events tell it."""
    steps = counts[contract.track(info.controller).name]
    outcome, lost, detail = info.outcome, info.lost, info.detail
    for cdr in events:
        event = typestore().deserialize_cdr(cdr, 'grape/msg/EpisodeEvent')
        if event.episode_id != info.episode_id:
            continue
        if event.kind == EventKind.READY and event.source == 'policy':
            info = info.with_policy(event.adapter_id, event.config_json)
        elif event.kind == EventKind.STOP:
            steps = event.steps
            lost = contract.missing_messages(counts, steps, info.controller)
            if outcome is Outcome.INTERRUPTED and not lost and event.outcome in list(Outcome):
                outcome, detail = Outcome(event.outcome), event.detail
    note = '; '.join(['recovered', *damage])
    detail = f'{detail}; {note}' if detail else note
    return replace(info, outcome=outcome, steps=steps, lost=lost, detail=detail)
