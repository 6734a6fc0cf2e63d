"""Observations -> ROS messages, and a PolicyStep -> an action."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Transform,
    TransformStamped,
    Vector3,
)
from grape.msg import PolicyStep, SceneState
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, JointState

from grape_episode.action import EndEffectorDelta, from_policy_units, to_policy_units
from grape_episode.camera import CameraGeometry
from grape_episode.contract import ActionSpec, Contract
from sim_bridge.environment import Observation


def stamp_of(step: int, rate_hz: float) -> Time:
    """Return the simulation time of a step; it starts at 0 in every episode."""
    nanoseconds = step * round(1e9 / rate_hz)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def image(picture: np.ndarray, stamp: Time, camera: str) -> Image:
    """Return an rgb8 image of (H, W, 3) uint8."""
    message = Image(height=picture.shape[0], width=picture.shape[1], encoding='rgb8')
    message.header.stamp, message.header.frame_id = stamp, camera
    message.step = picture.shape[1] * 3
    message.data = picture.tobytes()  # an ndarray here would take a thousand times longer
    return message


def depth_image(depth_m: np.ndarray, stamp: Time, camera: str) -> Image:
    """Return a 32FC1 image of (H, W) float32 m."""
    message = Image(height=depth_m.shape[0], width=depth_m.shape[1], encoding='32FC1')
    message.header.stamp, message.header.frame_id = stamp, camera
    message.step = depth_m.shape[1] * 4
    message.data = depth_m.astype('<f4').tobytes()
    return message


def camera_info(geometry: CameraGeometry, stamp: Time, camera: str) -> CameraInfo:
    """Return the intrinsics of pictures as they are published, without distortion."""
    projection = np.concatenate([geometry.intrinsics, np.zeros((3, 1))], axis=1)
    message = CameraInfo(
        height=geometry.height,
        width=geometry.width,
        distortion_model='plumb_bob',
        d=[0.0] * 5,
        k=geometry.intrinsics.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=projection.ravel().tolist(),
    )
    message.header.stamp, message.header.frame_id = stamp, camera
    return message


def camera_pose(
    geometry: CameraGeometry, stamp: Time, frame: str, camera: str
) -> TransformStamped:
    """Return the transform from the camera's optical frame to the base frame."""
    turn = Rotation.from_matrix(geometry.base_from_camera[:3, :3]).as_quat()
    x, y, z, w = (float(v) for v in turn)
    message = TransformStamped(
        child_frame_id=camera,
        transform=Transform(
            translation=_vector(geometry.position_m), rotation=Quaternion(x=x, y=y, z=z, w=w)
        ),
    )
    message.header.stamp, message.header.frame_id = stamp, frame
    return message


def joint_state(observation: Observation, stamp: Time) -> JointState:
    """Return the joints."""
    message = JointState(
        name=list(observation.joint_names), position=observation.joint_positions.tolist()
    )
    message.header.stamp = stamp
    return message


def ee_pose(observation: Observation, stamp: Time, frame: str) -> PoseStamped:
    """Return the end effector's pose in the base frame."""
    message = PoseStamped(pose=_pose(observation.ee_position_m, observation.ee_quaternion_xyzw))
    message.header.stamp, message.header.frame_id = stamp, frame
    return message


def scene_state(
    observation: Observation, stamp: Time, frame: str, episode_id: str, step: int
) -> SceneState:
    """Return the simulator's truth."""
    scene = observation.scene
    message = SceneState(
        episode_id=episode_id,
        step=step,
        origin=SceneState.PRIVILEGED,
        keypoint_names=list(scene.names),
        keypoint_poses=[
            _pose(p, q) for p, q in zip(scene.positions_m, scene.quaternions_xyzw, strict=True)
        ],
        gripper_opening=scene.gripper_opening,
        grasped=list(scene.grasped),
        contacts=list(scene.contacts),
        collisions=list(scene.collisions),
        success=scene.success,
    )
    message.header.stamp, message.header.frame_id = stamp, frame
    return message


def expert_step(
    action: np.ndarray, contract: Contract, stamp: Time, episode_id: str, step: int
) -> PolicyStep:
    """Return the expert's action (7,) as a PolicyStep without tokens."""
    delta = from_policy_units(action, contract.action)
    message = PolicyStep(
        episode_id=episode_id,
        step=step,
        delta_translation=_vector(delta.translation_m),
        delta_rotation=_vector(delta.rotation_rotvec_rad),
        gripper_opening=delta.gripper_opening,
        source='expert',
    )
    message.header.stamp, message.header.frame_id = stamp, contract.action.frame
    return message


def action_of(message: PolicyStep, spec: ActionSpec) -> np.ndarray:
    """Return (7,) policy units."""
    move, turn = message.delta_translation, message.delta_rotation
    delta = EndEffectorDelta(
        np.array([move.x, move.y, move.z]),
        np.array([turn.x, turn.y, turn.z]),
        message.gripper_opening,
    )
    return to_policy_units(delta, spec)


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = (float(v) for v in values)
    return Vector3(x=x, y=y, z=z)


def _pose(position: np.ndarray, quaternion: np.ndarray) -> Pose:
    x, y, z = (float(v) for v in position)
    qx, qy, qz, qw = (float(v) for v in quaternion)
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
