"""Run folders as `grape iterate` leaves them: real bags, scored and paired by the real code."""

import dataclasses
import json

import numpy as np
from scoring_trials import REACH, SUCCESS, make_trial

from grape_episode.bag_writer import BagWriter
from grape_episode.contract import load_contract
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome
from grape_trainer.evaluation import EpisodeResult, evaluation_dict
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.preference import PairSettings, pair_scores
from grape_trainer.scoring.scorer import score_bags

CAMERA_PX = 64
TASKS = ('libero_object/0', 'libero_object/3')


def write_run(root, rounds=1, base=(4, 10), after=(6, 10), errors=0, **info):
    """Write a complete run folder; base and after are (successes, n) of each task."""
    root.mkdir()
    (root / 'config.yaml').write_text('seed: 7\nrounds: 1\n')
    write_evaluation(root / 'base', *base, adapter_id='base', errors=errors)
    phases = {'base/evaluate': phase(0, 100)}
    for number in range(1, rounds + 1):
        folder = root / f'round_{number}'
        write_round(folder, **info)
        write_evaluation(folder, *after, adapter_id=f'tpo-{number}')
        phases[f'round_{number}/collect'] = phase(100, 190)
        phases[f'round_{number}/train'] = phase(190, 200)
    (root / 'state.json').write_text(json.dumps({'phases': phases}))
    return root


def write_round(folder, **info):
    """Two trials of each of two tasks: one success, one failure."""
    bags = []
    for index, task in enumerate(TASKS):
        for number, (phases, outcome) in enumerate(
            ((SUCCESS, Outcome.SUCCESS), ((REACH,), Outcome.FAILURE))
        ):
            trial = make_trial(
                phases,
                outcome=outcome,
                episode_id=f'trial-{index}-{number}',
                **{'task': task, 'log_prob': -0.1} | info,
            )
            bags.append(record_with_images(folder / 'bags', trial))
    score_bags(bags, load_objective('completion'), folder / 'scores.csv')
    pair_scores(folder / 'scores.csv', PairSettings(), folder / 'pairs.json')
    (folder / 'tpo').mkdir()
    lines = [
        {
            'step': step,
            'loss': 0.7 - 0.01 * step,
            'rewards/margins': 0.1 * step,
            'rewards/accuracies': 0.5 + 0.05 * step,
            'log_ratio_per_step/chosen': 0.01 * step,
            'log_ratio_per_step/rejected': -0.02 * step,
        }
        for step in range(1, 9)
    ]
    text = '\n'.join(json.dumps(line) for line in lines)
    (folder / 'tpo' / 'metrics.jsonl').write_text(text + '\n')


def write_evaluation(folder, successes, n, adapter_id, errors=0):
    """Write eval.json: the first `successes` of n initial states succeed in each task."""
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for task in TASKS:
        outcomes = [Outcome.SUCCESS] * successes + [Outcome.FAILURE] * (n - successes)
        outcomes += [Outcome.ERROR] * errors
        results += [EpisodeResult(task, 40 + i, o, 100, False) for i, o in enumerate(outcomes)]
    content = evaluation_dict(results, 'policy', adapter_id)
    (folder / 'eval.json').write_text(json.dumps(content))


def phase(start_s, end_s):
    """Return a step's record, seconds of one morning."""
    times = [f'2026-01-01T08:{s // 60:02d}:{s % 60:02d}+00:00' for s in (start_s, end_s)]
    return dict(zip(('started_at', 'ended_at'), times, strict=True))


def record_with_images(folder, trial):
    """Write a trial as a bag with pictures, upside down as LIBERO renders them."""
    contract = load_contract('libero').with_camera_size(CAMERA_PX)
    info = dataclasses.replace(trial.info, contract=contract.to_dict())
    types, store = typestore().types, typestore()
    folder.mkdir(parents=True, exist_ok=True)
    writer = BagWriter(folder / info.episode_id, contract.topics, info, 'zstd')

    def write(role, step, /, **fields):
        topic = contract.topic(role)
        time = types['builtin_interfaces/msg/Time'](*divmod(step * 50_000_000, 10**9))
        header = types['std_msgs/msg/Header'](time, contract.base_frame)
        cdr = store.serialize_cdr(types[topic.type](header=header, **fields), topic.type)
        writer.write(topic.name, step * 50_000_000, bytes(cdr))

    def pose(position_m):
        point = types['geometry_msgs/msg/Point'](*position_m)
        turn = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
        return types['geometry_msgs/msg/Pose'](point, turn)

    empty, zero = np.zeros(0), types['geometry_msgs/msg/Vector3'](0.0, 0.0, 0.0)
    for step in range(info.steps + 1):
        write('joint_state', step, name=[], position=empty, velocity=empty, effort=empty)
        write('ee_pose', step, pose=pose(trial.ee_position_m[step]))
        write(
            'scene_state',
            step,
            episode_id=info.episode_id,
            step=step,
            origin=0,
            keypoint_names=list(trial.scene.names),
            keypoint_poses=[pose(position) for position in trial.scene.positions_m[step]],
            gripper_opening=trial.scene.gripper_opening[step],
            grasped=list(trial.scene.grasped[step]),
            contacts=[],
            collisions=[],
            stage='',
            success=False,
        )
        if step == info.steps:
            break
        write(
            'image',
            step,
            height=CAMERA_PX,
            width=CAMERA_PX,
            encoding='rgb8',
            is_bigendian=0,
            step=3 * CAMERA_PX,
            data=_picture(trial.ee_position_m[step])[::-1, ::-1].reshape(-1),
        )
        write(
            'policy_step',
            step,
            episode_id=info.episode_id,
            step=step,
            delta_translation=zero,
            delta_rotation=zero,
            gripper_opening=trial.gripper_command[step],
            action_token_ids=trial.action_token_ids[step].astype(np.int32),
            token_log_probs=trial.token_log_probs[step],
            temperature=1.0,
            adapter_id=info.adapter_id,
            source='policy',
            latency_ms=0.0,
            verdict=0,
            verdict_reason='',
        )
    writer.close(info)
    return folder / info.episode_id


def _picture(ee_m):
    """Return a dark picture with a light square where the end effector is."""
    image = np.full((CAMERA_PX, CAMERA_PX, 3), 40, np.uint8)
    image[-12:] = (120, 90, 60)
    row, column = round(CAMERA_PX * (0.75 - 2 * ee_m[2])), round(CAMERA_PX * (ee_m[1] + 0.5))
    image[max(row, 0) : row + 8, max(column, 0) : column + 8] = 230
    return image
