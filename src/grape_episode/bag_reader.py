"""Read an episode from its bag: messages aligned by stamp and step, checked, as arrays.

Nothing here needs ROS: the message definitions are taken from the bag. What is not there is an
error that names topic and step, never a guess; only an episode that broke off (outcome error or
interrupted), or a setup without scene states, may lack the state after its last action, and the
last state stands for it.

On a robot, `executed_step` says what the guard made of each step; its source is the episode's.
Where a person drove all along nobody proposed anything, and what was executed is all there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from grape_episode.bag_folder import BagError, open_bag, read_info
from grape_episode.contract import Contract, ContractError
from grape_episode.episode import Episode, EpisodeInfo, Event, Executed, Scene
from grape_episode.messages import EventKind
from grape_episode.outcome import Outcome

BROKE_OFF = (Outcome.ERROR, Outcome.INTERRUPTED)
HELD = 2  # PolicyStep.VERDICT_HELD
LEAVE_OUT = 'The recording is incomplete: leave this episode out.'


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
    bag = _Bag(path, info, contract, _messages(path, contract, info, images))
    try:
        return bag.episode(images)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BagError(f"'{path}': a message has another form ({error!r}).") from error


def _messages(
    path: Path, contract: Contract, info: EpisodeInfo, images: bool
) -> dict[str, list[Any]]:
    """Deserialise what belongs to the episode, topic -> messages in recorded order."""
    left_out = {'depth', 'camera_info', 'camera_pose', 'raw'}  # rgbd.py
    left_out |= set() if images else {'image'}
    found = {t.name: [] for t in contract.topics if t.role not in left_out}
    store = get_typestore(Stores.ROS2_KILTED)
    with open_bag(path) as reader:
        chosen = [c for c in reader.connections if c.topic in found]
        for connection in chosen:
            if connection.msgtype not in store.types:
                store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        for connection, _, cdr in reader.messages(connections=chosen) if chosen else ():
            message = store.deserialize_cdr(cdr, connection.msgtype)
            # A message that was under way when the episode before ended is not this one's.
            if not hasattr(message, 'episode_id') or message.episode_id == info.episode_id:
                found[connection.topic].append(message)
    return found


class _Bag:
    """One bag's messages while they become an Episode."""

    def __init__(
        self, path: Path, info: EpisodeInfo, contract: Contract, messages: dict[str, list[Any]]
    ) -> None:
        self.path = path
        self.info = info
        self.contract = contract
        self.messages = messages
        self.has_scene = any(messages[t.name] for t in contract.topics if t.role == 'scene_state')

    def episode(self, images: bool) -> Episode:
        track = self.contract.track(self.info.controller).name
        steps = self._steps(track)
        stamps = [_stamp_ns(m) for m in steps]
        poses = self._states('ee_pose', stamps)
        joints = self._states('joint_state', stamps)
        cameras = self.contract.cameras.items() if images else ()
        executed, sources = self._executed(steps)
        pose_topic, joint_topic = (self.contract.topic(r).name for r in ('ee_pose', 'joint_state'))
        return Episode(
            info=self.info,
            path=self.path,
            stamps_ns=np.array(stamps, np.int64),
            images={name: self._pictures(spec.topic, stamps) for name, spec in cameras},
            translation_m=self._finite(track, _vectors([m.delta_translation for m in steps])),
            rotation_rotvec_rad=self._finite(track, _vectors([m.delta_rotation for m in steps])),
            gripper_command=self._finite(
                track, np.array([m.gripper_opening for m in steps], np.float64)
            ),
            action_token_ids=self._tokens(track, steps, 'action_token_ids', np.int64),
            token_log_probs=self._finite(
                track, self._tokens(track, steps, 'token_log_probs', np.float32)
            ),
            temperature=float(steps[0].temperature) if steps else self.info.temperature,
            verdict=np.array([m.verdict for m in steps], np.uint8),
            latency_ms=np.array([m.latency_ms for m in steps], np.float32),
            sources=sources,
            ee_position_m=self._finite(pose_topic, _vectors([m.pose.position for m in poses])),
            ee_quaternion_xyzw=self._finite(
                pose_topic, _quaternions([m.pose.orientation for m in poses])
            ),
            joint_names=tuple(joints[0].name) if joints else (),
            joint_positions=self._finite(
                joint_topic, self._rows(joint_topic, [m.position for m in joints], np.float64)
            ),
            scene=self._scene(len(steps)),
            events=tuple(
                Event(_kind(m.kind), m.source, _stamp_ns(m), m.detail)
                for m in self.messages[self.contract.topic('episode_event').name]
            ),
            executed=executed,
        )

    def _steps(self, topic: str) -> list[Any]:
        """Return PolicySteps 0..T-1; one that came after STOP was never executed."""
        found: dict[int, Any] = {}
        for message in self.messages[topic]:
            if message.step >= self.info.steps:
                continue
            if message.step in found:
                raise BagError(
                    f"'{self.path}': topic {topic} has step {message.step} twice. Two policies "
                    'acted, or two recordings were merged: leave this episode out.'
                )
            found[message.step] = message
        for step in range(self.info.steps):
            if step not in found:
                raise BagError(
                    f"'{self.path}': topic {topic} has no message for step {step}; it has "
                    f'{len(found)} of {self.info.steps} steps. {LEAVE_OUT}'
                )
        return [found[step] for step in range(self.info.steps)]

    def _executed(self, steps: list[Any]) -> tuple[Executed | None, tuple[str, ...]]:
        """Return what the guard let through, and whose command each step followed."""
        proposed_by = tuple(m.source for m in steps)
        topics = [t.name for t in self.contract.topics if t.role == 'executed_step']
        if not topics or not self.messages[topics[0]]:
            return None, proposed_by
        answers = {m.step: m for m in self.messages[topics[0]]}  # the last word on a step counts
        found = [answers.get(step) for step in range(len(steps))]
        if None in found and self.info.outcome not in BROKE_OFF:
            raise BagError(
                f"'{self.path}': topic {topics[0]} has no message for step {found.index(None)}, "
                f'though the outcome is {self.info.outcome}. {LEAVE_OUT}'
            )
        there = [m for m in found if m is not None]
        known = np.array([m is not None for m in found], bool)

        def spread(values: np.ndarray) -> np.ndarray:
            whole = np.full((len(found), *values.shape[1:]), np.nan)
            whole[known] = self._finite(topics[0], values)
            return whole

        executed = Executed(
            translation_m=spread(_vectors([m.delta_translation for m in there])),
            rotation_rotvec_rad=spread(_vectors([m.delta_rotation for m in there])),
            gripper_command=spread(np.array([m.gripper_opening for m in there], np.float64)),
            verdict=np.array([HELD if m is None else m.verdict for m in found], np.uint8),
            reasons=tuple('' if m is None else m.verdict_reason for m in found),
            proposed_by=proposed_by,
        )
        return executed, tuple('unknown' if m is None else m.source for m in found)

    def _at(self, topic: str, stamps: list[int], unique: bool) -> list[Any]:
        """Return the message of each stamp."""
        table: dict[int, Any] = {}
        for message in self.messages[topic]:
            if unique and _stamp_ns(message) in table:
                raise BagError(
                    f"'{self.path}': topic {topic} has stamp {_stamp_ns(message)} ns twice; "
                    'expected one message a step. Is the camera published by two nodes?'
                )
            table[_stamp_ns(message)] = message
        for step, stamp in enumerate(stamps):
            if stamp not in table:
                raise BagError(
                    f"'{self.path}': topic {topic} has no message for step {step} "
                    f'(stamp {stamp} ns); it has {len(table)}. {LEAVE_OUT}'
                )
        return [table[stamp] for stamp in stamps]

    def _states(self, role: str, stamps: list[int]) -> list[Any]:
        """Return T + 1 messages: at each step's stamp, and the one a period after the last."""
        topic = self.contract.topic(role).name
        if not stamps:
            return self.messages[topic][:1]
        found = self._at(topic, stamps, unique=False)
        after = [m for m in self.messages[topic] if _stamp_ns(m) > stamps[-1]]
        due = stamps[-1] + round(1e9 / self.contract.control_rate_hz)
        if after:
            return [*found, min(after, key=lambda m: abs(_stamp_ns(m) - due))]
        self._check_may_break_off(topic)
        return [*found, found[-1]]

    def _check_may_break_off(self, topic: str) -> None:
        if self.has_scene and self.info.outcome not in BROKE_OFF:
            raise BagError(
                f"'{self.path}': topic {topic} has no message after step "
                f'{self.info.steps - 1}, though the outcome is {self.info.outcome}. {LEAVE_OUT}'
            )

    def _scene(self, count: int) -> Scene | None:
        if not self.has_scene:
            return None
        topic = self.contract.topic('scene_state').name
        found: dict[int, Any] = {}
        for message in self.messages[topic]:
            # The state in which an episode ends early is published twice: at its step and at STOP.
            if message.step in found and message.step < count:
                raise BagError(f"'{self.path}': topic {topic} has step {message.step} twice.")
            found[message.step] = message
        for step in range(count):
            if step not in found:
                raise BagError(
                    f"'{self.path}': topic {topic} has no message for step {step}. {LEAVE_OUT}"
                )
        if count not in found:
            self._check_may_break_off(topic)
            found[count] = found[max(found)]
        track = [found[step] for step in range(count + 1)]
        names = tuple(track[0].keypoint_names)
        for step, message in enumerate(track):
            if tuple(message.keypoint_names) != names or len(message.keypoint_poses) != len(names):
                raise BagError(
                    f"'{self.path}': topic {topic}, step {step}: keypoints "
                    f'{list(message.keypoint_names)}; expected {list(names)} with a pose each.'
                )
        positions = [_vectors([p.position for p in m.keypoint_poses]) for m in track]
        turns = [_quaternions([p.orientation for p in m.keypoint_poses]) for m in track]
        return Scene(
            names=names,
            positions_m=self._finite(topic, np.stack(positions)),
            quaternions_xyzw=self._finite(topic, np.stack(turns)),
            gripper_opening=self._finite(
                topic, np.array([m.gripper_opening for m in track], np.float64)
            ),
            grasped=tuple(tuple(m.grasped) for m in track),
            contacts=tuple(tuple(m.contacts) for m in track),
            collisions=tuple(tuple(m.collisions) for m in track),
            success=np.array([m.success for m in track], bool),
            origin='privileged' if track[0].origin == 0 else 'perceived',
        )

    def _pictures(self, topic: str, stamps: list[int]) -> np.ndarray:
        messages = self._at(topic, stamps, unique=True)
        for step, message in enumerate(messages):
            found = (message.encoding, message.height, message.width, len(message.data))
            first = messages[0]
            size = first.height * first.width * 3
            if found != ('rgb8', first.height, first.width, size):
                raise BagError(
                    f"'{self.path}': topic {topic}, step {step}: {found[0]} of {found[1]} x "
                    f'{found[2]} with {found[3]} bytes; expected rgb8 of {first.height} x '
                    f'{first.width} with {size}.'
                )
        if not messages:
            return np.zeros((0, 0, 0, 3), np.uint8)
        return np.stack([np.asarray(m.data).reshape(m.height, m.width, 3) for m in messages])

    def _finite(self, topic: str, values: np.ndarray) -> np.ndarray:
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1) if values.size else np.zeros(0)
        if bad.any():
            raise BagError(
                f"'{self.path}': topic {topic}, step {int(bad.argmax())}: a number is NaN or "
                'infinite. Leave this episode out.'
            )
        return values

    def _tokens(self, topic: str, steps: list[Any], field: str, dtype: type) -> np.ndarray:
        """Return a row a step, or (T, 0): one held step without tokens leaves no likelihood.

        The arm is held without an answer of the policy where its server was away.
        """
        rows = [getattr(step, field) for step in steps]
        if any(len(r) == 0 and s.verdict == HELD for r, s in zip(rows, steps, strict=True)):
            return np.zeros((len(rows), 0), dtype)
        return self._rows(topic, rows, dtype)

    def _rows(self, topic: str, rows: list[Any], dtype: type) -> np.ndarray:
        for step, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise BagError(
                    f"'{self.path}': topic {topic}, step {step}: {len(row)} values; expected "
                    f'{len(rows[0])} as at step 0.'
                )
        return np.array(rows, dtype).reshape(len(rows), len(rows[0]) if rows else 0)


def _kind(number: int) -> str:
    try:
        return EventKind(number).name.lower()
    except ValueError:
        return str(number)  # of a newer interface


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _vectors(values: list[Any]) -> np.ndarray:
    return np.array([[v.x, v.y, v.z] for v in values], np.float64).reshape(-1, 3)


def _quaternions(values: list[Any]) -> np.ndarray:
    return np.array([[v.x, v.y, v.z, v.w] for v in values], np.float64).reshape(-1, 4)
