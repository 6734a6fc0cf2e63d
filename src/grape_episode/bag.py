"""Read recorded episodes: `find_bags`, `read_info`, `read_episode`, `recover`.

A bag is a rosbag2 folder (metadata.yaml, one .mcap) with episode.json beside it. Nothing here
needs ROS: message definitions are taken from the bag.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mcap.exceptions import EndOfFile, McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from grape_episode.bag_writer import CUSTOM_KEY, INFO_FILE, BagWriter
from grape_episode.contract import Contract, ContractError
from grape_episode.episode import Episode, EpisodeInfo, Event, Scene

METADATA = 'metadata.yaml'
EVENT_KINDS = {
    1: 'start', 2: 'ready', 3: 'stop', 4: 'recorded', 5: 'label', 6: 'intervention', 7: 'stage',
    8: 'error',
}  # fmt: skip


class BagError(ValueError):
    """A bag that cannot be used; the text names it and says what to do."""


def find_bags(paths: Path | str | Iterable[Path | str]) -> list[Path]:
    """Return the bag folders at or below the given paths, sorted, each once.

    Raises:
        BagError: a path does not exist, or holds no bag.

    """
    if isinstance(paths, Path | str):
        paths = [paths]
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"'{path}' does not exist; expected a bag or a folder of bags.")
        here = {p.parent for name in (INFO_FILE, METADATA) for p in path.rglob(name)}
        if not here:
            raise BagError(
                f"'{path}' holds no bag (no {METADATA} or {INFO_FILE} in it or below); "
                'give a folder that `grape collect`, `grape demos` or the recorder wrote.'
            )
        found |= here
    return sorted(found)


def read_info(path: Path | str) -> EpisodeInfo:
    """Read what is known of an episode, without its messages.

    Raises:
        BagError: not a bag, or one that no recorder of this project wrote.

    """
    path = Path(path)
    if not path.is_dir():
        raise BagError(f"'{path}' is not a folder; a bag is a folder with {METADATA}.")
    try:
        if (path / INFO_FILE).is_file():
            return EpisodeInfo.from_dict(json.loads((path / INFO_FILE).read_text()))
        with _reader(path) as reader:
            text = reader.metadata['custom_data'].get(CUSTOM_KEY)
        if text is None:
            raise BagError(
                f"'{path}' is a rosbag without episode data ({INFO_FILE}); "
                "record it with the project's recorder node."
            )
        return EpisodeInfo.from_dict(json.loads(text))
    except BagError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BagError(f"'{path}': its episode data cannot be read ({error}).") from error


def read_episode(path: Path | str, images: bool = True) -> Episode:
    """Read a whole episode.

    Args:
        path: bag folder.
        images: False leaves the pictures out (scores do not need them).

    Raises:
        BagError: truncated, corrupted or incomplete; names the topic and the step.

    """
    path = Path(path)
    info = read_info(path)
    try:
        contract = Contract.from_dict(info.contract, str(path))
    except ContractError as error:
        raise BagError(f"'{path}': {error}") from error
    raw = _messages(path, contract, images)
    try:
        return _assemble(path, info, contract, raw, images)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BagError(f"'{path}': a message has another form ({error!r}).") from error


def recover(path: Path | str) -> int:
    """Rebuild a bag that was not closed, in place; the damaged file is kept as *.damaged.

    Returns:
        The number of messages saved.

    Raises:
        BagError: nothing can be saved, or nothing is wrong.

    """
    path = Path(path)
    info = read_info(path)
    files = sorted(path.glob('*.mcap'))
    if len(files) != 1:
        raise BagError(f"'{path}' holds {len(files)} .mcap files; expected one.")
    contract = Contract.from_dict(info.contract, str(path))
    names = {topic.name: topic for topic in contract.topics}
    topics: dict[int, str] = {}
    rebuilt = path.parent / f'.{path.name}.recovering'
    shutil.rmtree(rebuilt, ignore_errors=True)
    writer = BagWriter(rebuilt, contract.topics, info, 'zstd')
    count = 0
    with files[0].open('rb') as stream:
        try:
            for record in StreamReader(stream, emit_chunks=False).records:
                if isinstance(record, Channel) and record.topic in names:
                    topics[record.id] = record.topic
                elif isinstance(record, Message) and record.channel_id in topics:
                    writer.write(topics[record.channel_id], record.log_time, record.data)
                    count += 1
                elif isinstance(record, Schema):
                    continue
        except (EndOfFile, McapError, ValueError, OSError) as error:
            damage = type(error).__name__
        else:
            damage = ''
    if count == 0:
        writer.close(info)
        shutil.rmtree(rebuilt)
        raise BagError(f"'{path}': no message can be saved ({damage or 'it is empty'}).")
    writer.close(info)
    files[0].rename(files[0].with_suffix('.mcap.damaged'))
    for item in rebuilt.iterdir():
        target = f'{path.name}.mcap' if item.suffix == '.mcap' else item.name
        item.rename(path / target)
    text = (path / METADATA).read_text()
    (path / METADATA).write_text(text.replace(f'{rebuilt.name}.mcap', f'{path.name}.mcap'))
    rebuilt.rmdir()
    return count


def _reader(path: Path) -> Reader:
    if not (path / METADATA).is_file():
        raise BagError(
            f"'{path}' has no {METADATA}: the recorder was killed before it closed the bag. "
            f'Run: grape bag recover {path}'
        )
    try:
        reader = Reader(path)
        reader.open()
    except (ReaderError, OSError, ValueError, KeyError, AssertionError) as error:
        raise BagError(
            f"'{path}' cannot be opened ({error}); the file is truncated or corrupted. "
            f'Run: grape bag recover {path}'
        ) from error
    return _Opened(reader)


class _Opened:
    """A reader that is open already, closed at the end of the with block."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __enter__(self) -> Reader:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def _messages(path: Path, contract: Contract, images: bool) -> dict[str, list[Any]]:
    """Deserialise every message, role or camera topic by topic, in recorded order."""
    wanted = {t.name for t in contract.topics if images or t.role != 'image'}
    found: dict[str, list[Any]] = {name: [] for name in wanted}
    with _reader(path) as reader:
        store = get_typestore(Stores.ROS2_KILTED)
        for connection in reader.connections:
            if connection.msgtype not in store.types:
                store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        chosen = [c for c in reader.connections if c.topic in wanted]
        try:
            for connection, _, data in reader.messages(connections=chosen):
                message = store.deserialize_cdr(data, connection.msgtype)
                found[connection.topic].append(message)
        except Exception as error:  # noqa: BLE001 - a damaged file raises anything at all
            raise BagError(
                f"'{path}' cannot be read to its end ({type(error).__name__}: {error}). "
                f'Run: grape bag recover {path}'
            ) from error
    return found


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _by_stamp(path: Path, topic: str, messages: list[Any], stamps: list[int]) -> list[Any]:
    """Pick the message of each stamp."""
    table = {_stamp_ns(message): message for message in messages}
    for step, stamp in enumerate(stamps):
        if stamp not in table:
            raise BagError(
                f"'{path}': topic {topic} has no message for step {step} (stamp {stamp} ns); "
                f'it has {len(messages)}. The recording is incomplete: leave this episode out.'
            )
    return [table[stamp] for stamp in stamps]


def _assemble(
    path: Path, info: EpisodeInfo, contract: Contract, raw: dict[str, list[Any]], images: bool
) -> Episode:
    steps = sorted(raw[contract.topic('policy_step').name], key=lambda m: m.step)
    if [m.step for m in steps] != list(range(len(steps))):
        raise BagError(f"'{path}': its policy steps are not 0..{len(steps) - 1}, each once.")
    stamps = [_stamp_ns(m) for m in steps]
    period = round(1e9 / contract.control_rate_hz)
    states = [*stamps, stamps[-1] + period] if stamps else []
    scenes = _scenes(path, contract, raw, len(steps))
    poses = _track(path, contract, raw, 'ee_pose', states, scenes is not None)
    joints = _track(path, contract, raw, 'joint_state', states, scenes is not None)
    pictures = {}
    for name, spec in contract.cameras.items() if images else ():
        found = _by_stamp(path, spec.topic, raw[spec.topic], stamps)
        pictures[name] = _pixels(path, spec.topic, found)
    episode = Episode(
        info=info,
        path=path,
        stamps_ns=np.array(stamps, np.int64),
        images=pictures,
        translation_m=_vectors([m.delta_translation for m in steps]),
        rotation_rotvec_rad=_vectors([m.delta_rotation for m in steps]),
        gripper_command=np.array([m.gripper_opening for m in steps], np.float64),
        action_token_ids=_rows(path, [m.action_token_ids for m in steps], np.int64),
        token_log_probs=_rows(path, [m.token_log_probs for m in steps], np.float32),
        temperature=float(steps[0].temperature) if steps else info.temperature,
        verdict=np.array([m.verdict for m in steps], np.uint8),
        latency_ms=np.array([m.latency_ms for m in steps], np.float32),
        sources=tuple(m.source for m in steps),
        ee_position_m=_vectors([m.pose.position for m in poses]),
        ee_quaternion_xyzw=_quaternions([m.pose.orientation for m in poses]),
        joint_names=tuple(joints[0].name) if joints else (),
        joint_positions=np.array([m.position for m in joints], np.float64),
        scene=scenes,
        events=tuple(
            Event(EVENT_KINDS.get(m.kind, str(m.kind)), m.source, _stamp_ns(m), m.detail)
            for m in raw[contract.topic('episode_event').name]
        ),
    )
    for name in ('translation_m', 'rotation_rotvec_rad', 'gripper_command', 'ee_position_m'):
        bad = ~np.isfinite(getattr(episode, name).reshape(len(getattr(episode, name)), -1))
        if bad.any():
            raise BagError(f"'{path}': {name} is not finite at step {int(bad.any(1).argmax())}.")
    return episode


def _track(
    path: Path,
    contract: Contract,
    raw: dict[str, list[Any]],
    role: str,
    stamps: list[int],
    terminal: bool,
) -> list[Any]:
    """Return T + 1 messages; without a terminal state the last one stands for it."""
    topic = contract.topic(role).name
    if not stamps:
        return raw[topic][:1]
    if terminal and stamps[-1] in {_stamp_ns(m) for m in raw[topic]}:
        return _by_stamp(path, topic, raw[topic], stamps)
    found = _by_stamp(path, topic, raw[topic], stamps[:-1])
    return [*found, found[-1]]


def _scenes(path: Path, contract: Contract, raw: dict[str, list[Any]], count: int) -> Scene | None:
    topics = [t.name for t in contract.topics if t.role == 'scene_state']
    messages = {m.step: m for topic in topics for m in raw[topic]}
    if not messages:
        return None
    for step in range(count):
        if step not in messages:
            raise BagError(f"'{path}': topic {topics[0]} has no message for step {step}.")
    if count not in messages:  # an episode that broke off has no terminal state
        messages[count] = messages[max(count - 1, min(messages))]
    track = [messages[step] for step in range(count + 1)]
    names = tuple(track[0].keypoint_names)
    if any(tuple(m.keypoint_names) != names for m in track):
        raise BagError(f"'{path}': the keypoints of {topics[0]} change during the episode.")
    return Scene(
        names=names,
        positions_m=np.stack([_vectors([p.position for p in m.keypoint_poses]) for m in track]),
        quaternions_xyzw=np.stack(
            [_quaternions([p.orientation for p in m.keypoint_poses]) for m in track]
        ),
        gripper_opening=np.array([m.gripper_opening for m in track], np.float64),
        grasped=tuple(tuple(m.grasped) for m in track),
        contacts=tuple(tuple(m.contacts) for m in track),
        collisions=tuple(tuple(m.collisions) for m in track),
        success=np.array([m.success for m in track], bool),
        origin='privileged' if track[0].origin == 0 else 'perceived',
    )


def _pixels(path: Path, topic: str, messages: list[Any]) -> np.ndarray:
    for step, message in enumerate(messages):
        size = message.height * message.width * 3
        if message.encoding != 'rgb8' or len(message.data) != size:
            raise BagError(
                f"'{path}': topic {topic}, step {step}: {message.encoding} with "
                f'{len(message.data)} bytes; expected rgb8 with {size}.'
            )
    if not messages:
        return np.zeros((0, 0, 0, 3), np.uint8)
    return np.stack([np.asarray(m.data).reshape(m.height, m.width, 3) for m in messages])


def _vectors(values: list[Any]) -> np.ndarray:
    return np.array([[v.x, v.y, v.z] for v in values], np.float64).reshape(-1, 3)


def _quaternions(values: list[Any]) -> np.ndarray:
    return np.array([[v.x, v.y, v.z, v.w] for v in values], np.float64).reshape(-1, 4)


def _rows(path: Path, rows: list[Any], dtype: type) -> np.ndarray:
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise BagError(f"'{path}': its steps hold {sorted(widths)} tokens; expected as many each.")
    return np.array(rows, dtype).reshape(len(rows), widths.pop() if widths else 0)
