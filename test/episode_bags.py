"""Made-up episodes, and bags of them with one thing changed."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import Reader

from grape_episode.bag import read_info, write_episode
from grape_episode.bag_writer import BagWriter
from grape_episode.contract import Contract, load_contract
from grape_episode.episode import Episode, EpisodeInfo, Event, Executed, Scene
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome

PERIOD_NS = 50_000_000
CONTRACT = load_contract('libero').with_camera_size(28)


def make_episode(name='e0', steps=6, *, outcome=Outcome.SUCCESS, tokens=7, **info):
    """Return an Episode of random numbers that a bag's float32 fields hold exactly."""
    random = np.random.default_rng(steps)

    def numbers(*shape):
        return random.standard_normal(shape).astype(np.float32).astype(np.float64)

    camera = CONTRACT.cameras['agentview']
    return Episode(
        info=EpisodeInfo(
            **{
                'episode_id': name,
                'task': 'libero_object/0',
                'instruction': 'pick up the milk',
                'init_state': 3,
                'seed': 2**63 + 1,
                'temperature': 1.0,
                'controller': 'policy',
                'outcome': outcome,
                'steps': steps,
                'adapter_id': 'sft-01234567',
                'contract': CONTRACT.to_dict(),
                'policy': {'policy_sha256': 'abc'},
                'environment': {'roles': {'target': 'milk_1'}},
            }
            | info
        ),
        path=Path('nowhere'),
        stamps_ns=np.arange(steps) * PERIOD_NS,
        images={
            'agentview': random.integers(0, 256, (steps, camera.height, camera.width, 3), np.uint8)
        },
        translation_m=numbers(steps, 3),
        rotation_rotvec_rad=numbers(steps, 3),
        gripper_command=numbers(steps),
        action_token_ids=random.integers(31744, 32000, (steps, tokens)),
        token_log_probs=numbers(steps, tokens).astype(np.float32),
        temperature=1.0,
        verdict=np.zeros(steps, np.uint8),
        latency_ms=np.full(steps, 21.5, np.float32),
        sources=('policy',) * steps,
        ee_position_m=numbers(steps + 1, 3),
        ee_quaternion_xyzw=numbers(steps + 1, 4),
        joint_names=('joint_1', 'joint_2'),
        joint_positions=numbers(steps + 1, 2),
        scene=Scene(
            names=('milk_1', 'basket_1'),
            positions_m=numbers(steps + 1, 2, 3),
            quaternions_xyzw=numbers(steps + 1, 2, 4),
            gripper_opening=numbers(steps + 1),
            grasped=((),) * steps + (('milk_1',),),
            contacts=(('basket_1|milk_1',),) * (steps + 1),
            collisions=((),) * (steps + 1),
            success=np.arange(steps + 1) == steps,
            origin='privileged',
        ),
        events=(
            Event('start', 'bridge', 10, ''),
            Event('ready', 'recorder', 12, ''),
            Event('ready', 'policy', 11, ''),
            Event('stop', 'bridge', 99, 'done'),
        ),
    )


def make_bag(folder: Path, name='e0', steps=6, **options) -> Path:
    """Write a made-up episode; returns the bag."""
    return write_episode(folder, make_episode(name, steps, **options))


def rewrite(bag: Path, edit) -> Path:
    """Replace a bag by one of the messages edit(topic, message) -> list of messages."""
    store = typestore()
    with Reader(bag) as reader:
        messages = [
            (c.topic, c.msgtype, at, store.deserialize_cdr(data, c.msgtype))
            for c, at, data in reader.messages()
        ]
    info = read_info(bag)
    shutil.rmtree(bag)
    writer = BagWriter(bag, Contract.from_dict(info.contract).topics, info, 'zstd')
    for topic, type_name, at, message in messages:
        for made in edit(topic, message):
            writer.write(topic, at, store.serialize_cdr(made, type_name))
    writer.close(info)
    return bag


def step_of(message) -> int:
    """Return the control step of a stamped message."""
    stamp = message.header.stamp
    return (stamp.sec * 10**9 + stamp.nanosec) // PERIOD_NS


def differences(a, b) -> list[str]:
    """Return the fields in which two episodes (or scenes) differ, their paths aside."""
    found = []
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            same = left.dtype == right.dtype and np.array_equal(left, right)
        elif field.name == 'images':
            same = left.keys() == right.keys()
            same = same and all(np.array_equal(left[key], right[key]) for key in left)
        elif isinstance(left, Scene | Executed):
            same = not differences(left, right)
        else:
            same = left == right or field.name == 'path'
        found += [] if same else [field.name]
    return found
