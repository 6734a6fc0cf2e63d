"""Made-up trials of tasks that act on what stands in place, and of tasks with several goals."""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation
from scoring_trials import START_M, Phase, make_trial

from grape_episode.episode import Scene

KNOB_M = (0.50, -0.20, 0.12)  # 0.287 m from the start
BESIDE_M = (0.50, -0.20, 0.33)  # 0.21 m above it


def with_scene(trial, keypoints, *, contacts=None, success=None, grasped=None, **environment):
    """Return a trial with other keypoints: name -> positions (T+1, 3), or (positions, quats)."""
    states = len(trial.ee_position_m)
    positions, turns = [], []
    for value in keypoints.values():
        position_m, turn = value if isinstance(value, tuple) else (value, None)
        positions.append(np.broadcast_to(np.asarray(position_m, float), (states, 3)))
        turns.append(np.tile((0.0, 0.0, 0.0, 1.0), (states, 1)) if turn is None else turn)
    scene = Scene(
        names=tuple(keypoints),
        positions_m=np.stack(positions, axis=1),
        quaternions_xyzw=np.stack(turns, axis=1),
        gripper_opening=trial.scene.gripper_opening,
        grasped=tuple(grasped or ((),) * states),
        contacts=tuple(contacts or ((),) * states),
        collisions=((),) * states,
        success=np.zeros(states, bool) if success is None else np.asarray(success, bool),
        origin='privileged',
    )
    return replace(trial, scene=scene, info=replace(trial.info, environment=environment))


def acted_trial(phases, *, travel_m=(0, 0, 0), turn_rad=0.0, contacts=True, noise_m=0.0, **given):
    """Return a trial that acts on 'knob_1' where it stands.

    Args:
        phases: (Phase, share) pairs; the share of the motion that is done when the phase ends.
        travel_m: the whole motion of the keypoint.
        turn_rad: the whole rotation of the keypoint, about x.
        contacts: record that a finger touches it within 0.03 m.
        noise_m: standard deviation of the keypoint's positions.
        given: what the environment declares, and `said`, the instruction.

    """
    trial = make_trial(tuple(phase for phase, _ in phases), instruction=given.pop('said', ''))
    states = len(trial.ee_position_m)
    ends = np.concatenate(([0.0], np.cumsum([phase.seconds for phase, _ in phases])))
    share = np.interp(np.arange(states) / 20.0, ends, [0.0, *(share for _, share in phases)])
    knob_m = np.array(KNOB_M) + share[:, None] * np.array(travel_m)
    turns = Rotation.from_rotvec(share[:, None] * np.array((turn_rad, 0.0, 0.0))).as_quat()
    near = np.linalg.norm(trial.ee_position_m - knob_m, axis=1) < 0.03
    pairs = tuple(('finger_left|knob_1',) if n and contacts else () for n in near)
    knob_m = knob_m + np.random.default_rng(0).normal(0.0, noise_m, knob_m.shape)
    environment = given or {'target': 'knob_1'}
    return with_scene(trial, {'knob_1': (knob_m, turns)}, contacts=pairs, **environment)


# Each is 1.5 s to reach and 1.0 s to act, at 20 Hz: 30 and 20 steps.
REACH = Phase(1.5, KNOB_M)
ACT = Phase(1.0, KNOB_M)
AWAY = Phase(1.0, BESIDE_M)
HOME = Phase(1.0, START_M)


def carried_trial(carries, places, *, seconds=1.0):
    """Return a trial that carries objects one after the other.

    Args:
        carries: (object, place or point) pairs, in the order in which they are done.
        places: name -> where it stands at first, objects and receptacles alike.
        seconds: of each of the phases: reach, close, lift, carry, release.

    """
    phases, moves = [], []  # moves: the name that each phase carries, and where it then lies
    at = {name: np.array(point, float) for name, point in places.items()}
    for name, place in carries:
        end = np.array(places.get(place, place), float) + (0, 0, 0.05)
        above, over = at[name] + (0, 0, 0.25), end + (0, 0, 0.25)
        for point, holds in (
            (at[name], False), (at[name], False), (above, True), (over, True), (end, True),
            (end, False),
        ):  # fmt: skip
            closed = holds or (len(moves) % 6 == 1)
            phases.append(Phase(seconds, tuple(point), closed=closed))
            moves.append(name if holds else None)
        at[name] = end
    trial = make_trial(tuple(phases))
    states = len(trial.ee_position_m)
    tracks = {name: np.tile(np.array(p, float), (states, 1)) for name, p in places.items()}
    grasped = [()] * states
    steps = round(seconds * 20)
    for index, name in enumerate(moves):
        if name is not None:
            window = slice(index * steps + 1, (index + 1) * steps + 1)
            tracks[name][window] = trial.ee_position_m[window]
            tracks[name][window.stop :] = tracks[name][window.stop - 1]
            grasped[window] = [(name,)] * steps
    return trial, tracks, grasped
