"""Made-up pick-and-place trials with exact geometry, as an Episode and as a recorded bag."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grape_episode.bag_writer import BagWriter
from grape_episode.contract import load_contract
from grape_episode.episode import Episode, EpisodeInfo, Scene
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome

CONTRACT = load_contract('libero')
START_M = (0.40, 0.00, 0.30)
TARGET_M = (0.50, -0.20, 0.05)
BASKET_M = (0.60, 0.20, 0.00)
OBSTACLE_M = (0.80, -0.40, 0.05)
IN_BASKET_M = (0.60, 0.20, 0.04)


@dataclass(frozen=True)
class Phase:
    """The end effector goes straight to `to_m` in `seconds`, holding the target or not."""

    seconds: float
    to_m: tuple[float, float, float]
    closed: bool = False
    holds: bool = False
    rest_m: tuple[float, float, float] | None = None  # where the target lies from here on
    collisions: tuple[str, ...] = ()


REACH = Phase(1.5, TARGET_M)
CLOSE = Phase(0.5, TARGET_M, closed=True)
LIFT = Phase(1.0, (0.50, -0.20, 0.30), closed=True, holds=True)
CARRY = Phase(2.0, (0.60, 0.20, 0.30), closed=True, holds=True)
LOWER = Phase(1.0, (0.60, 0.20, 0.06), closed=True, holds=True)
RELEASE = Phase(0.5, (0.60, 0.20, 0.06), rest_m=IN_BASKET_M)
SUCCESS = (REACH, CLOSE, LIFT, CARRY, LOWER, RELEASE)


def make_trial(
    phases=SUCCESS,
    *,
    rate_hz=20.0,
    outcome=Outcome.SUCCESS,
    log_prob=-1.0,
    episode_id='trial',
    init_state=0,
    adapter_id='base',
    touched=True,
    basket_m=None,
    **info,
):
    """Return an Episode; basket_m (T+1, 3) moves the basket; log_prob None is an expert's."""
    seconds = sum(phase.seconds for phase in phases)
    steps = round(seconds * rate_hz)
    ends = np.cumsum([phase.seconds for phase in phases])
    knots = np.concatenate(([0.0], ends))
    points = np.array([START_M, *(phase.to_m for phase in phases)])
    times = np.arange(steps + 1) / rate_hz
    ee_m = np.stack([np.interp(times, knots, points[:, axis]) for axis in range(3)], axis=1)

    def phase_until(step):  # the phase that the state of this step ends in
        return phases[int(np.searchsorted(ends, times[step] - 1e-9))]

    target_m = np.empty((steps + 1, 3))
    target_m[0] = TARGET_M
    for step in range(1, steps + 1):
        phase = phase_until(step)
        if phase.holds:
            target_m[step] = ee_m[step]
        elif phase.rest_m is not None:
            target_m[step] = phase.rest_m
        else:
            target_m[step] = target_m[step - 1]
    states = [phases[0], *(phase_until(step) for step in range(1, steps + 1))]
    if basket_m is None:
        basket_m = np.tile(BASKET_M, (steps + 1, 1))
    obstacle_m = np.tile(OBSTACLE_M, (steps + 1, 1))
    scene = Scene(
        names=('target_1', 'basket_1', 'milk_1'),
        positions_m=np.stack([target_m, basket_m, obstacle_m], axis=1),
        quaternions_xyzw=np.tile((0.0, 0.0, 0.0, 1.0), (steps + 1, 3, 1)),
        gripper_opening=np.array([0.0 if phase.closed else 1.0 for phase in states]),
        grasped=tuple(('target_1',) if p.holds and touched else () for p in states),
        contacts=((),) * (steps + 1),
        collisions=tuple(phase.collisions for phase in states),
        success=np.zeros(steps + 1, dtype=bool),
        origin='privileged',
    )
    log_probs = np.full((steps, 0 if log_prob is None else 7), log_prob or 0.0, np.float32)
    return Episode(
        info=EpisodeInfo(
            **{
                'episode_id': episode_id,
                'task': 'libero_object/0',
                'instruction': 'pick up the target and place it in the basket',
                'init_state': init_state,
                'seed': 0,
                'temperature': 1.0,
                'controller': 'policy' if log_prob is not None else 'expert',
                'outcome': outcome,
                'steps': steps,
                'adapter_id': adapter_id,
                'policy': {'policy_sha256': 'abc'},
                'environment': {
                    'roles': {'target': 'target_1', 'receptacle': 'basket_1', 'support': []}
                },
                'contract': CONTRACT.to_dict() | {'control_rate_hz': rate_hz},
                'code_version': 'test',
                'started_at': '2026-01-01T00:00:00+00:00',
                'lost': {},
                'detail': '',
                'schema_version': 1,
            }
            | info
        ),
        path=Path('trial'),
        stamps_ns=(np.arange(steps) * 1e9 / rate_hz).astype(np.int64),
        images={},
        translation_m=np.diff(ee_m, axis=0),
        rotation_rotvec_rad=np.zeros((steps, 3)),
        gripper_command=np.array([0.0 if phase.closed else 1.0 for phase in states[1:]]),
        action_token_ids=np.zeros((steps, log_probs.shape[1]), np.int64),
        token_log_probs=log_probs,
        temperature=1.0,
        verdict=np.zeros(steps, np.uint8),
        latency_ms=np.zeros(steps),
        sources=('policy',) * steps,
        ee_position_m=ee_m,
        ee_quaternion_xyzw=np.tile((0.0, 0.0, 0.0, 1.0), (steps + 1, 1)),
        joint_names=(),
        joint_positions=np.zeros((steps + 1, 0)),
        scene=scene,
        events=(),
    )


def record(folder, trial):
    """Write a trial as a bag, as the recorder does, without instruction; returns the bag.

    Pictures are written where the trial has some of 'agentview'.
    """
    store = typestore()
    bag = folder / trial.info.episode_id
    writer = BagWriter(bag, CONTRACT.topics, trial.info, 'zstd')

    def message(name, /, **fields):
        return store.types[name](**fields)

    def header(step):
        stamp_ns = round(step * 1e9 / trial.info.contract['control_rate_hz'])
        time = message(
            'builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
        )
        return message('std_msgs/msg/Header', stamp=time, frame_id='robot0_base')

    def pose(position_m, quaternion_xyzw):
        point = message('geometry_msgs/msg/Point', **dict(zip('xyz', position_m, strict=True)))
        turn = dict(zip('xyzw', quaternion_xyzw, strict=True))
        orientation = message('geometry_msgs/msg/Quaternion', **turn)
        return message('geometry_msgs/msg/Pose', position=point, orientation=orientation)

    def vector(values):
        return message('geometry_msgs/msg/Vector3', **dict(zip('xyz', values, strict=True)))

    def write(role, step, /, **fields):
        topic = CONTRACT.topic(role)
        sent = message(topic.type, header=header(step), **fields)
        cdr = bytes(store.serialize_cdr(sent, topic.type))
        writer.write(topic.name, round(step * 5e7), cdr)

    scene, pictures = trial.scene, trial.images.get('agentview')
    for step in range(trial.info.steps + 1):
        empty = np.zeros(0)
        joints = {'name': [], 'position': empty, 'velocity': empty, 'effort': empty}
        write('joint_state', step, **joints)
        write(
            'ee_pose', step, pose=pose(trial.ee_position_m[step], trial.ee_quaternion_xyzw[step])
        )
        write(
            'scene_state',
            step,
            episode_id=trial.info.episode_id,
            step=step,
            origin=0,
            keypoint_names=list(scene.names),
            keypoint_poses=[
                pose(*both)
                for both in zip(scene.positions_m[step], scene.quaternions_xyzw[step], strict=True)
            ],
            gripper_opening=scene.gripper_opening[step],
            grasped=list(scene.grasped[step]),
            contacts=list(scene.contacts[step]),
            collisions=list(scene.collisions[step]),
            stage='',
            success=bool(scene.success[step]),
        )
        if step == trial.info.steps:
            break
        if pictures is not None:
            height, width = pictures.shape[1:3]
            data = np.ascontiguousarray(pictures[step]).ravel()
            size = {'height': height, 'width': width, 'step': 3 * width}
            write('image', step, encoding='rgb8', is_bigendian=0, data=data, **size)
        write(
            'policy_step',
            step,
            episode_id=trial.info.episode_id,
            step=step,
            delta_translation=vector(trial.translation_m[step]),
            delta_rotation=vector(trial.rotation_rotvec_rad[step]),
            gripper_opening=trial.gripper_command[step],
            action_token_ids=trial.action_token_ids[step].astype(np.int32),
            token_log_probs=trial.token_log_probs[step],
            temperature=trial.temperature,
            adapter_id=trial.info.adapter_id,
            source=trial.sources[step],
            latency_ms=0.0,
            verdict=0,
            verdict_reason='',
        )
    writer.close(trial.info)
    return bag
