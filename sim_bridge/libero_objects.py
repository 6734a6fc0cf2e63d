"""More objects in a LIBERO task: the task's own BDDL text with some lines added.

An object that no (:init) line mentions is not placed by LIBERO: its random numbers stay those of
the task alone, and so does everything else in the scene.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from sim_bridge.perturbation import (
    ANY,
    DISTRACTOR,
    OBSTACLE,
    Distractors,
    Obstacle,
    Perturbation,
    PerturbationError,
)

WAITING_M = np.array([-4.0, -2.0, 2.0])  # in the world, behind the robot and out of sight
WAITING_APART_M = np.array([0.0, 1.0, 0.0])
# Models that stand by themselves and are in every LIBERO package; the heights are measured, m.
OBSTACLE_KINDS = {
    'wine_bottle': 0.16,
    'moka_pot': 0.15,
    'ketchup': 0.15,
    'salad_dressing': 0.15,
    'milk': 0.13,
    'orange_juice': 0.13,
    'macaroni_and_cheese': 0.12,
}
DISTRACTOR_KINDS = (
    'chocolate_pudding',
    'cookies',
    'popcorn',
    'alphabet_soup',
    'tomato_sauce',
    'cream_cheese',
    'butter',
    'ketchup',
    'orange_juice',
    'macaroni_and_cheese',
)


def choose_objects(bddl: str, perturbations: Iterable[Perturbation]) -> dict[str, str]:
    """Return the objects that perturbations add: name -> model, none of which the task has.

    They depend on the perturbations' seeds and on the task, not on the initial state: another
    initial state needs no other simulator.

    Raises:
        PerturbationError: names the model that is unknown or there already.

    """
    taken = set(_kinds_of(bddl))
    chosen: dict[str, str] = {}
    for perturbation in perturbations:
        if isinstance(perturbation, Obstacle):
            prefix, kinds = OBSTACLE, tuple(OBSTACLE_KINDS)
            if perturbation.kind != ANY:
                kinds = _asked_for(perturbation, taken)
        elif isinstance(perturbation, Distractors):
            prefix, kinds = DISTRACTOR, DISTRACTOR_KINDS
        else:
            continue
        free = [kind for kind in kinds if kind not in taken]
        if len(free) < perturbation.count:
            raise PerturbationError(
                f"'{perturbation}' wants {perturbation.count} object models; the task leaves "
                f'{len(free)}: {", ".join(free)}.'
            )
        order = perturbation.generator().permutation(len(free))
        for index in order[: perturbation.count]:
            chosen[prefix + free[index]] = free[index]
            taken.add(free[index])
    return chosen


def add_objects(bddl: str, objects: Mapping[str, str]) -> str:
    """Return BDDL text with more objects: name -> model."""
    section = _objects_section(bddl)
    lines = ''.join(f'\n    {name} - {kind}' for name, kind in objects.items())
    return bddl[: section.end()] + lines + bddl[section.end() :]


def upright_quaternion(obj: object, yaw_rad: float) -> np.ndarray:
    """Return (4,) wxyz with which a LIBERO object stands, turned about the vertical.

    `obj` has LIBERO's `rotation` (rad, one range, or axis -> range) and `rotation_axis`.
    """
    ranges = obj.rotation
    if not isinstance(ranges, dict):
        ranges = {obj.rotation_axis: ranges}
    turn = Rotation.identity()
    for axis, angles in ranges.items():
        turn = Rotation.from_euler(axis, max(angles)) * turn
    turned = Rotation.from_euler('z', yaw_rad) * turn
    return np.roll(turned.as_quat(), 1)


def with_objects(state: np.ndarray, model: mujoco.MjModel, added: Iterable[str]) -> np.ndarray:
    """Return a flattened state for a model with more free objects, which wait far from the robot.

    Args:
        state: (1 + nq + nv,) time, positions, velocities, without the added objects.
        model: with them.
        added: their joints.

    Raises:
        PerturbationError: the state is not of this model without the added joints.

    """
    is_new_q, is_new_v = np.zeros(model.nq, bool), np.zeros(model.nv, bool)
    positions, velocities = model.qpos0.copy(), np.zeros(model.nv)
    for index, name in enumerate(added):
        joint = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name)
        pose = slice(model.jnt_qposadr[joint], model.jnt_qposadr[joint] + 7)
        is_new_q[pose] = True
        is_new_v[model.jnt_dofadr[joint] :][:6] = True
        positions[pose][:3] = WAITING_M + index * WAITING_APART_M
    old_q, old_v = int((~is_new_q).sum()), int((~is_new_v).sum())
    if len(state) != 1 + old_q + old_v:
        raise PerturbationError(
            f'the initial state has {len(state)} numbers; expected {1 + old_q + old_v} for the '
            'scene without its added objects.'
        )
    positions[~is_new_q] = state[1 : 1 + old_q]
    velocities[~is_new_v] = state[1 + old_q :]
    return np.concatenate([state[:1], positions, velocities])


def _asked_for(perturbation: Obstacle, taken: set[str]) -> tuple[str]:
    kind = perturbation.kind
    if kind not in OBSTACLE_KINDS or kind in taken:
        there = 'is in the task already' if kind in OBSTACLE_KINDS else 'is no obstacle'
        free = [name for name in OBSTACLE_KINDS if name not in taken]
        raise PerturbationError(
            f"'{perturbation}': {kind} {there}; choose one of: {', '.join(free)}, {ANY}."
        )
    return (kind,)


def _kinds_of(bddl: str) -> list[str]:
    begin = _objects_section(bddl).end()
    section = bddl[begin : bddl.index(')', begin)]
    return [kind.lower() for kind in re.findall(r'\s-\s+(\S+)', section)]


def _objects_section(bddl: str) -> re.Match[str]:
    found = re.search(r'\(:objects\b', bddl)
    if found is None:
        raise PerturbationError('the BDDL text has no (:objects ...); objects cannot be added.')
    return found
