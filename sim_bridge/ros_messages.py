"""Observations -> ROS messages, and a PolicyStep -> an action."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Vector3
from grape.msg import PolicyStep, SceneState
from sensor_msgs.msg import Image, JointState

from grape_episode.action import EndEffectorDelta, from_policy_units, to_policy_units
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
