"""Read an episode's pictures with depth and the camera that took them, out of its bag.

Everything is turned as the contract turns the picture (`rotate_deg`), and not cropped: pixels
here are those of the picture that a person sees. A camera that moves is not supported: its pose
is one message of the episode, the last one where there are several.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from grape_episode.bag_folder import BagError, open_bag
from grape_episode.bag_reader import read_episode
from grape_episode.camera import CameraError, CameraGeometry
from grape_episode.contract import CameraSpec, Contract, DepthSpec
from grape_episode.episode import Episode

PIXELS = {'32FC1': ('f4', 1.0), '16UC1': ('u2', 0.001)}  # encoding -> numpy type, m of a unit


@dataclass(frozen=True)
class RgbdEpisode:
    """T pictures with depth of one camera that stands still."""

    camera_name: str
    images: np.ndarray  # (T, H, W, 3) uint8 RGB, turned
    depths_m: np.ndarray  # (T, H, W) float32 along the optical axis; 0 or NaN: no measurement
    camera: CameraGeometry  # of the turned pictures


def read_rgbd(path: Path | str, camera: str | None = None) -> RgbdEpisode:
    """Read an episode's pictures with depth; see `rgbd_of`."""
    return rgbd_of(read_episode(path), camera)


def rgbd_of(episode: Episode, camera: str | None = None) -> RgbdEpisode:
    """Add depth and camera to the pictures of an episode that was read from a bag.

    Args:
        episode: read with its images, or without: then they are read here.
        camera: name in the contract; None: the policy's camera.

    Raises:
        BagError: no depth in the contract, or messages missing or of another form; the text
            names the topic and, for depth, the step.

    """
    contract = episode.contract
    camera = camera or contract.policy_camera
    spec = contract.cameras.get(camera)
    if spec is None or spec.depth is None:
        with_depth = [name for name, one in contract.cameras.items() if one.depth is not None]
        raise BagError(
            f"'{episode.path}' has no depth of camera '{camera}'; its contract "
            f"'{contract.name}' has depth of: {', '.join(with_depth) or 'none'}. Record with a "
            'contract that has it, for example libero_rgbd.'
        )
    if camera not in episode.images:
        episode = read_episode(episode.path)
    messages = _messages(episode.path, spec.depth.topic, *_camera_topics(spec.depth))
    images = episode.images[camera]
    depths_m = _depths(episode, spec, messages[spec.depth.topic])
    geometry = _geometry(episode.path, contract, spec.depth, messages)
    if (geometry.height, geometry.width) != images.shape[1:3]:
        raise BagError(
            f"'{episode.path}': topic {spec.depth.camera_info} says {geometry.width} x "
            f'{geometry.height}; the pictures have {images.shape[2]} x {images.shape[1]}.'
        )
    if spec.transform.rotate_deg == 180:
        images, depths_m = images[:, ::-1, ::-1], depths_m[:, ::-1, ::-1]
    return RgbdEpisode(
        camera,
        np.ascontiguousarray(images),
        np.ascontiguousarray(depths_m),
        geometry.turned(spec.transform.rotate_deg),
    )


def recorded_camera(episode: Episode, camera: str | None = None) -> CameraGeometry | None:
    """Return the geometry of a camera's pictures, turned as the contract turns them.

    It stands in what the environment said at START ('cameras', under the camera's name, as
    `CameraGeometry.to_dict` of the pictures as they are published), or in the topics that belong
    to depth; None where it was recorded in neither.

    Args:
        episode: as it was read from a bag.
        camera: name in the contract; None: the policy's camera.

    Raises:
        BagError: a geometry that cannot be used.

    """
    contract = episode.contract
    camera = camera or contract.policy_camera
    spec = contract.cameras[camera]
    cameras = episode.info.environment.get('cameras') or {}
    try:
        if camera in cameras:
            found = CameraGeometry.from_dict(cameras[camera])
        elif spec.depth is not None:
            messages = _messages(episode.path, *_camera_topics(spec.depth))
            found = _geometry(episode.path, contract, spec.depth, messages)
        else:
            return None
        if (found.height, found.width) != (spec.height, spec.width):
            raise CameraError(
                f'its geometry is of {found.width} x {found.height} px; expected the '
                f"contract's {spec.width} x {spec.height}."
            )
        return found.turned(spec.transform.rotate_deg)
    except CameraError as error:
        raise BagError(f"'{episode.path}', camera '{camera}': {error}") from error


def _camera_topics(depth: DepthSpec) -> tuple[str, str]:
    return depth.camera_info, depth.camera_pose


def _messages(path: Path, *topics: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in topics}
    store = get_typestore(Stores.ROS2_KILTED)
    with open_bag(path) as reader:
        chosen = [c for c in reader.connections if c.topic in found]
        for connection in chosen:
            if connection.msgtype not in store.types:
                store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        for connection, _, cdr in reader.messages(connections=chosen) if chosen else ():
            found[connection.topic].append(store.deserialize_cdr(cdr, connection.msgtype))
    return found


def _depths(episode: Episode, spec: CameraSpec, messages: list[Any]) -> np.ndarray:
    """Return (T, H, W) float32 m, aligned by stamp with the control steps."""
    by_stamp = {}
    for message in messages:
        stamp = message.header.stamp
        by_stamp[stamp.sec * 1_000_000_000 + stamp.nanosec] = message
    kind, unit = PIXELS[spec.depth.encoding]
    shape = (spec.height, spec.width)
    depths = np.empty((len(episode.stamps_ns), *shape), np.float32)
    for step, stamp_ns in enumerate(episode.stamps_ns.tolist()):
        where = f"'{episode.path}': topic {spec.depth.topic}, step {step}"
        if stamp_ns not in by_stamp:
            raise BagError(
                f'{where}: no depth with the stamp {stamp_ns} ns; {len(by_stamp)} others. Depth '
                'has to carry the stamp of its picture.'
            )
        message = by_stamp[stamp_ns]
        found = (message.encoding, message.height, message.width, len(message.data))
        size = spec.height * spec.width * np.dtype(kind).itemsize
        if found != (spec.depth.encoding, *shape, size):
            raise BagError(
                f'{where}: {found[0]} of {found[1]} x {found[2]} with {found[3]} bytes; expected '
                f'{spec.depth.encoding} of {shape[0]} x {shape[1]} with {size}. Depth has to be '
                'registered to the picture, pixel for pixel.'
            )
        order = '>' if message.is_bigendian else '<'
        values = np.frombuffer(np.asarray(message.data).tobytes(), order + kind)
        depths[step] = values.reshape(shape) * np.float32(unit)
    return depths


def _geometry(
    path: Path, contract: Contract, depth: DepthSpec, messages: dict[str, list[Any]]
) -> CameraGeometry:
    for topic in _camera_topics(depth):
        if not messages[topic]:
            raise BagError(
                f"'{path}': topic {topic} has no message; depth cannot be lifted without. Publish "
                'it latched before the episode begins.'
            )
    info, pose = messages[depth.camera_info][-1], messages[depth.camera_pose][-1]
    if pose.header.frame_id != contract.base_frame:
        raise BagError(
            f"'{path}': topic {depth.camera_pose} is in frame '{pose.header.frame_id}'; expected "
            f"'{contract.base_frame}', with the optical frame as its child."
        )
    if np.any(np.abs(np.asarray(info.d)) > 1e-9):
        raise BagError(
            f"'{path}': topic {depth.camera_info} has the distortion {list(info.d)}; expected "
            'none. Record rectified pictures.'
        )
    transform = np.eye(4)
    turn, move = pose.transform.rotation, pose.transform.translation
    quaternion = np.array([turn.x, turn.y, turn.z, turn.w])
    if not abs(np.linalg.norm(quaternion) - 1) < 1e-3:
        raise BagError(
            f"'{path}': topic {depth.camera_pose} has the rotation {quaternion.tolist()}; "
            'expected a quaternion of length 1.'
        )
    transform[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    transform[:3, 3] = (move.x, move.y, move.z)
    intrinsics = np.asarray(info.k, np.float64).reshape(3, 3)
    try:
        return CameraGeometry(intrinsics, transform, int(info.height), int(info.width))
    except CameraError as error:
        raise BagError(f"'{path}': {error}") from error
