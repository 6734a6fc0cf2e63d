"""Bags with depth: a square that is pushed over a table, upside down as LIBERO's pictures are."""

import dataclasses

import numpy as np
from episode_bags import PERIOD_NS, make_episode
from keypoint_scenes import SIZE, TABLE_M, camera
from rosbags.rosbag2 import Reader

from grape_episode.bag_writer import BagWriter
from grape_episode.contract import Contract, load_contract
from grape_episode.messages import typestore

RGBD = load_contract('libero_rgbd').with_camera_size(SIZE)


def upside_down():
    """The geometry of the pictures as they are stored: rows turned round."""
    intrinsics = camera().intrinsics.copy()
    intrinsics[1] = (0, -intrinsics[1, 1], SIZE - 1 - intrinsics[1, 2])
    return dataclasses.replace(camera(), intrinsics=intrinsics)


def write_rgbd(folder, images, depths_m, contract=RGBD, edit=None, geometry=None):
    """Write pictures (T, H, W, 3) and depths as stored into a bag; returns its path.

    edit(topic, message) -> the messages to write instead.
    """
    episode = make_episode(steps=len(images), contract=contract.to_dict())
    episode = dataclasses.replace(episode, images={'agentview': images})
    writer = BagWriter(folder / 'e0', contract.topics, episode.info, 'zstd')
    for topic, stamp_ns, message in _messages(folder, episode, depths_m, geometry):
        kind = message.__msgtype__
        for made in edit(topic, message) if edit else [message]:
            writer.write(topic, stamp_ns, typestore().serialize_cdr(made, kind))
    writer.close(episode.info)
    return writer.folder


def _messages(folder, episode, depths_m, geometry):
    """Yield (topic, log time, message): what write_episode writes, and camera and depth."""
    from grape_episode.bag import write_episode

    depth = Contract.from_dict(episode.info.contract).cameras['agentview'].depth
    yield from (
        (topic, 0, message)
        for topic, message in (
            (depth.camera_info, camera_info(geometry or upside_down())),
            (depth.camera_pose, camera_pose(geometry or upside_down())),
        )
    )
    plain = write_episode(folder / 'plain', episode)
    with Reader(plain) as reader:
        for connection, stamp_ns, data in reader.messages():
            yield connection.topic, stamp_ns, typestore().deserialize_cdr(data, connection.msgtype)
    for step, depth_m in enumerate(depths_m):
        yield depth.topic, step * PERIOD_NS, depth_image(depth_m, step * PERIOD_NS, depth.encoding)


def without_scene(bag, folder):
    """Write a recorded bag again without scene_state; returns its path."""
    from grape_episode.bag import read_info
    from grape_episode.bag_folder import open_bag

    info = read_info(bag)
    contract = Contract.from_dict(info.contract)
    writer = BagWriter(folder / bag.name, contract.topics, info, 'zstd')
    with open_bag(bag) as reader:
        for connection, stamp_ns, cdr in reader.messages():
            if connection.topic != contract.topic('scene_state').name:
                writer.write(connection.topic, stamp_ns, bytes(cdr))
    writer.close(info)
    return writer.folder


def depth_image(depth_m, stamp_ns, encoding='32FC1'):
    """The sensor_msgs/Image of a depth picture in m."""
    values = (
        depth_m.astype('<f4') if encoding == '32FC1' else (depth_m * 1000).round().astype('<u2')
    )
    return make(
        'sensor_msgs/msg/Image',
        header=header(stamp_ns, 'agentview'),
        height=depth_m.shape[0],
        width=depth_m.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=depth_m.shape[1] * values.itemsize,
        data=np.frombuffer(values.tobytes(), np.uint8),
    )


def camera_info(geometry):
    """The sensor_msgs/CameraInfo of a camera without distortion."""
    region = make(
        'sensor_msgs/msg/RegionOfInterest',
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False,
    )  # fmt: skip
    return make(
        'sensor_msgs/msg/CameraInfo',
        header=header(0, 'agentview'),
        height=geometry.height,
        width=geometry.width,
        distortion_model='plumb_bob',
        d=np.zeros(5),
        k=geometry.intrinsics.ravel(),
        r=np.eye(3).ravel(),
        p=np.eye(3, 4).ravel(),
        binning_x=0,
        binning_y=0,
        roi=region,
    )


def camera_pose(geometry, frame='robot0_base'):
    """The geometry_msgs/TransformStamped from the optical frame to the base frame."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix(geometry.base_from_camera[:3, :3]).as_quat()
    move = dict(zip('xyz', geometry.position_m.tolist(), strict=True))
    rotation = dict(zip('xyzw', turn.tolist(), strict=True))
    return make(
        'geometry_msgs/msg/TransformStamped',
        header=header(0, frame),
        child_frame_id='agentview',
        transform=make(
            'geometry_msgs/msg/Transform',
            translation=make('geometry_msgs/msg/Vector3', **move),
            rotation=make('geometry_msgs/msg/Quaternion', **rotation),
        ),
    )


def header(stamp_ns, frame):
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    time = make('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
    return make('std_msgs/msg/Header', stamp=time, frame_id=frame)


def make(type_name, **fields):
    return typestore().types[type_name](**fields)


def flat(steps):
    """Pictures and depths of an empty table."""
    images = np.full((steps, SIZE, SIZE, 3), 130, np.uint8)
    return images, np.full((steps, SIZE, SIZE), TABLE_M, np.float32)
