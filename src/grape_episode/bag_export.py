"""Write an Episode back as a bag: to convert, perturb or make up episodes, without ROS.

What an Episode does not hold is not written: joint velocities, depth and its camera, the safety
gate's reason, the environment's stage, and other nodes' clocks (log times are the message stamps).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grape_episode.bag_writer import BagWriter
from grape_episode.contract import Contract
from grape_episode.episode import Episode, Event
from grape_episode.messages import EventKind, typestore


def write_episode(folder: Path | str, episode: Episode, compression: str = 'zstd') -> Path:
    """Write folder/<episode id>; `read_episode` gives the same values back.

    An Episode that was read without images makes a bag that is read with `images=False`.

    Raises:
        FileExistsError: there is such a bag already.

    """
    contract, info = episode.contract, episode.info
    Path(folder).mkdir(parents=True, exist_ok=True)
    writer = BagWriter(Path(folder) / info.episode_id, contract.topics, info, compression)
    for role, stamp_ns, type_name, message in _messages(episode, contract):
        topic = role if role in writer.counts else contract.topic(role).name
        writer.write(topic, stamp_ns, typestore().serialize_cdr(message, type_name))
    writer.close(info)
    return writer.folder


def _messages(episode: Episode, contract: Contract) -> Iterator[tuple[str, int, str, Any]]:
    """Yield (role or topic, log time, type, message) in the order in which they happened."""
    period = round(1e9 / contract.control_rate_hz)
    count = len(episode.stamps_ns)
    stamps = [int(stamp) for stamp in episode.stamps_ns]
    stamps.append(stamps[-1] + period if stamps else 0)
    frame = contract.base_frame
    track = contract.track(episode.info.controller).role
    events = [_event(episode, event) for event in episode.events]
    before = next(
        (i for i, e in enumerate(episode.events) if e.kind not in ('start', 'ready')), len(events)
    )
    for name, message in events[:before]:
        yield 'episode_event', stamps[0], name, message
    text = _make('std_msgs/msg/String', data=episode.info.instruction)
    yield 'instruction', stamps[0], 'std_msgs/msg/String', text
    for step, stamp in enumerate(stamps):
        header = _header(stamp, frame)
        if step < len(episode.joint_positions):
            yield 'joint_state', stamp, *_joint_state(episode, step, header)
        if step < len(episode.ee_position_m):
            yield 'ee_pose', stamp, *_ee_pose(episode, step, header)
        if episode.scene is not None:
            yield 'scene_state', stamp, *_scene_state(episode, step, header)
        if step < count:
            for camera, pictures in episode.images.items():
                yield contract.cameras[camera].topic, stamp, *_image(pictures[step], camera, stamp)
            if track == 'policy_step':
                yield 'policy_step', stamp, *_policy_step(episode, step, header)
            if episode.executed is not None and episode.sources[step] != 'unknown':
                yield 'executed_step', stamp, *_executed_step(episode, step, header)
    for name, message in events[before:]:
        yield 'episode_event', stamps[-1], name, message


def _event(episode: Episode, event: Event) -> tuple[str, Any]:
    info, name = episode.info, 'grape/msg/EpisodeEvent'
    told = {'start': info.environment, 'ready': info.policy}.get(event.kind)
    if event.kind == 'ready' and event.source != 'policy':
        told = None
    return name, _make(
        name,
        header=_header(event.stamp_ns, ''),
        kind=int(EventKind[event.kind.upper()]),
        source=event.source,
        episode_id=info.episode_id,
        task=info.task,
        instruction=info.instruction,
        init_state=info.init_state,
        seed=info.seed,
        temperature=info.temperature,
        controller=info.controller,
        steps=info.steps if event.kind == 'stop' else 0,
        outcome=str(info.outcome) if event.kind == 'stop' else '',
        adapter_id=info.adapter_id if event.kind == 'ready' else '',
        detail=event.detail,
        config_json='' if told is None else json.dumps(told),
    )


def _joint_state(episode: Episode, step: int, header: Any) -> tuple[str, Any]:
    name = 'sensor_msgs/msg/JointState'
    return name, _make(
        name,
        header=header,
        name=list(episode.joint_names),
        position=np.asarray(episode.joint_positions[step], np.float64),
        velocity=np.zeros(0),
        effort=np.zeros(0),
    )


def _ee_pose(episode: Episode, step: int, header: Any) -> tuple[str, Any]:
    name = 'geometry_msgs/msg/PoseStamped'
    pose = _pose(episode.ee_position_m[step], episode.ee_quaternion_xyzw[step])
    return name, _make(name, header=header, pose=pose)


def _scene_state(episode: Episode, step: int, header: Any) -> tuple[str, Any]:
    name, scene = 'grape/msg/SceneState', episode.scene
    placed = zip(scene.positions_m[step], scene.quaternions_xyzw[step], strict=True)
    return name, _make(
        name,
        header=header,
        episode_id=episode.info.episode_id,
        step=step,
        origin=0 if scene.origin == 'privileged' else 1,
        keypoint_names=list(scene.names),
        keypoint_poses=[_pose(*pose) for pose in placed],
        gripper_opening=float(scene.gripper_opening[step]),
        grasped=list(scene.grasped[step]),
        contacts=list(scene.contacts[step]),
        collisions=list(scene.collisions[step]),
        stage='',
        success=bool(scene.success[step]),
    )


def _image(picture: np.ndarray, camera: str, stamp: int) -> tuple[str, Any]:
    name = 'sensor_msgs/msg/Image'
    height, width, _ = picture.shape
    return name, _make(
        name,
        header=_header(stamp, camera),
        height=height,
        width=width,
        encoding='rgb8',
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(picture).reshape(-1),
    )


def _policy_step(episode: Episode, step: int, header: Any) -> tuple[str, Any]:
    name = 'grape/msg/PolicyStep'
    return name, _make(
        name,
        header=header,
        episode_id=episode.info.episode_id,
        step=step,
        delta_translation=_vector(episode.translation_m[step]),
        delta_rotation=_vector(episode.rotation_rotvec_rad[step]),
        gripper_opening=float(episode.gripper_command[step]),
        action_token_ids=np.asarray(episode.action_token_ids[step], np.int32),
        token_log_probs=np.asarray(episode.token_log_probs[step], np.float32),
        temperature=episode.temperature,
        adapter_id=episode.info.adapter_id,
        source=(episode.executed.proposed_by if episode.executed else episode.sources)[step],
        latency_ms=float(episode.latency_ms[step]),
        verdict=int(episode.verdict[step]),
        verdict_reason='',
    )


def _executed_step(episode: Episode, step: int, header: Any) -> tuple[str, Any]:
    name, executed = 'grape/msg/PolicyStep', episode.executed
    return name, _make(
        name,
        header=header,
        episode_id=episode.info.episode_id,
        step=step,
        delta_translation=_vector(executed.translation_m[step]),
        delta_rotation=_vector(executed.rotation_rotvec_rad[step]),
        gripper_opening=float(executed.gripper_command[step]),
        action_token_ids=np.zeros(0, np.int32),
        token_log_probs=np.zeros(0, np.float32),
        temperature=episode.temperature,
        adapter_id=episode.info.adapter_id,
        source=episode.sources[step],
        latency_ms=0.0,
        verdict=int(executed.verdict[step]),
        verdict_reason=executed.reasons[step],
    )


def _header(stamp_ns: int, frame_id: str) -> Any:
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    time = _make('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
    return _make('std_msgs/msg/Header', stamp=time, frame_id=frame_id)


def _pose(position_m: np.ndarray, quaternion_xyzw: np.ndarray) -> Any:
    x, y, z = map(float, position_m)
    turn = dict(zip('xyzw', map(float, quaternion_xyzw), strict=True))
    return _make(
        'geometry_msgs/msg/Pose',
        position=_make('geometry_msgs/msg/Point', x=x, y=y, z=z),
        orientation=_make('geometry_msgs/msg/Quaternion', **turn),
    )


def _vector(values: np.ndarray) -> Any:
    x, y, z = map(float, values)
    return _make('geometry_msgs/msg/Vector3', x=x, y=y, z=z)


def _make(type_name: str, **fields: Any) -> Any:
    return typestore().types[type_name](**fields)
