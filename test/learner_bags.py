"""Real bags of made-up trials, written by the project's own writer, for the learner's tests."""

from pathlib import Path

import learner_policy
import numpy as np

from grape_episode.action import from_policy_units
from grape_episode.bag_writer import BagWriter
from grape_episode.contract import load_contract
from grape_episode.episode import EpisodeInfo
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome
from grape_trainer.dataset import TokenTrial
from grape_trainer.scoring import preference

CAMERA_PX = 28
PERIOD_NS = 50_000_000


def write_policy_bag(folder: Path, trial: TokenTrial, outcome: str = 'failure') -> Path:
    """Record a made-up trial of a token policy; returns the bag."""
    return _write(
        folder,
        trial.episode_id,
        trial.instruction,
        trial.images,
        np.zeros((trial.steps, 7)),
        outcome,
        trial.adapter_id,
        trial.token_ids.numpy(),
        trial.log_probs.numpy(),
    )


def write_expert_bag(folder: Path, name: str, seed: int, outcome: str = 'success') -> Path:
    """Record an expert that moves right as the picture brightens; returns the bag."""
    steps = 16 + seed
    dark = np.random.default_rng(seed).integers(0, 10, (steps, 1, 1, 3))
    light = np.linspace(0, 240, steps)[:, None, None, None]
    images = np.broadcast_to(dark + light, (steps, CAMERA_PX, CAMERA_PX, 3)).astype(np.uint8)
    actions = np.linspace(-0.8, 0.8, steps)[:, None].repeat(7, 1)
    actions[:, 6] = actions[:, 0] > 0
    instruction = learner_policy.INSTRUCTIONS[seed % 2]
    return _write(folder, name, instruction, images, actions, outcome, '')


def write_pairs_file(path: Path, pairs: list[tuple[Path, Path]]) -> None:
    """Write a pairs file of (chosen, rejected) bags."""

    def side(bag: Path) -> preference.Trial:
        return preference.Trial(bag, bag.name, 0.0, 'failure', 'base')

    made = tuple(preference.Pair('test/0', 0, side(c), side(r)) for c, r in pairs)
    preference.write_pairs(path, preference.PairSet(preference.PairSettings(), {}, made, ()))


def _write(folder, name, instruction, images, actions, outcome, adapter, ids=None, logs=None):
    contract = load_contract('libero').with_camera_size(images.shape[1])
    info = EpisodeInfo(
        episode_id=name,
        task='test/0',
        instruction=instruction,
        init_state=0,
        seed=0,
        temperature=1.0,
        controller='policy' if adapter else 'expert',
        outcome=Outcome(outcome),
        steps=len(images),
        adapter_id=adapter,
        contract=contract.to_dict(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    writer = BagWriter(folder / name, contract.topics, info, 'none')
    types, store = typestore().types, typestore()

    def write(role, type_name, at, **fields):
        stamp = at * PERIOD_NS
        time = types['builtin_interfaces/msg/Time'](*divmod(stamp, 1_000_000_000))
        header = types['std_msgs/msg/Header'](time, contract.base_frame)
        message = types[type_name](header=header, **fields)
        writer.write(contract.topic(role).name, stamp, store.serialize_cdr(message, type_name))

    vector, point = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Point']
    turn = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
    for step, (image, action) in enumerate(zip(images, actions, strict=True)):
        upside_down = np.ascontiguousarray(image[::-1, ::-1])
        delta = from_policy_units(action, contract.action)
        write(
            'joint_state', 'sensor_msgs/msg/JointState', step,
            name=['joint'], position=np.zeros(1), velocity=np.zeros(0), effort=np.zeros(0),
        )  # fmt: skip
        write(
            'ee_pose', 'geometry_msgs/msg/PoseStamped', step,
            pose=types['geometry_msgs/msg/Pose'](point(0.0, 0.0, 0.0), turn),
        )  # fmt: skip
        write(
            'image', 'sensor_msgs/msg/Image', step,
            height=len(image), width=len(image), encoding='rgb8', is_bigendian=0,
            step=3 * len(image), data=upside_down.reshape(-1),
        )  # fmt: skip
        write(
            'policy_step', 'grape/msg/PolicyStep', step,
            episode_id=name, step=step, delta_translation=vector(*delta.translation_m),
            delta_rotation=vector(*delta.rotation_rotvec_rad),
            gripper_opening=delta.gripper_opening,
            action_token_ids=np.array([] if ids is None else ids[step], np.int32),
            token_log_probs=np.array([] if logs is None else logs[step], np.float32),
            temperature=1.0, adapter_id=adapter, source=info.controller, latency_ms=1.0,
            verdict=0, verdict_reason='',
            VERDICT_OK=0, VERDICT_CLAMPED=1, VERDICT_HELD=2,
        )  # fmt: skip
    writer.close(info)
    return folder / name
