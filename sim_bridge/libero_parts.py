"""What a LIBERO goal acts on and where it puts things: drawers, doors, knobs and regions.

A drawer, a door or a knob is a body of its own below its fixture, with one joint. Its keypoint
has that body's name, and is the handle (open, close) or the body's centre (turnon, turnoff). When
LIBERO calls a joint open, closed, on or off stands in its object's articulation ranges.

A region is a site. It becomes a keypoint where no recorded body says where it is: zones of the
table, insides of drawers, and any region of a task that acts on a part. Other tasks keep the
keypoints that they had, and with them their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from sim_bridge.environment import SimulatorError

# Goal predicate -> the opposite one; and where LIBERO keeps the joint values of each.
OPPOSITES = {'open': 'close', 'close': 'open', 'turnon': 'turnoff', 'turnoff': 'turnon'}
RANGES = {predicate: f'default_{predicate}_ranges' for predicate in OPPOSITES}
PUT = ('in', 'on')
KINDS = {mujoco.mjtJoint.mjJNT_SLIDE: 'slide', mujoco.mjtJoint.mjJNT_HINGE: 'hinge'}


@dataclass(frozen=True)
class FixedPoint:
    """A point that is fixed in a body."""

    name: str
    body: int
    local_m: np.ndarray  # (3,) in the body's frame


@dataclass(frozen=True)
class Part:
    """What moves when a goal's argument is opened, closed, turned on or off."""

    argument: str
    owner: str  # the fixture
    point: FixedPoint
    joint: int
    reached: Mapping[str, float]  # goal predicate -> the joint's value beyond which it is reached


def find_parts(
    domain: Any, model: mujoco.MjModel, goal: Sequence[Sequence[str]], centre: Callable
) -> tuple[Part, ...]:
    """Return the parts of a goal: what it opens or turns, and the drawers that it fills.

    Args:
        domain: LIBERO's environment below its wrapper.
        model: of the task.
        goal: predicates with their arguments.
        centre: body -> the centre (3,) of its bounding box in its frame.

    Raises:
        SimulatorError: an argument with another number of joints than one.

    """
    found: dict[str, Part] = {}
    for predicate, *arguments in goal:
        argument = arguments[-1]
        joints = _joints(domain, model, argument)
        fills = predicate in PUT and argument in domain.object_sites_dict and joints
        if not (predicate in OPPOSITES or fills):
            continue
        if len(joints) != 1:
            raise SimulatorError(
                f"'{argument}' has the joints {joints}; expected one that moves, to tell how far "
                f"'{predicate}' is."
            )
        found[argument] = _part(domain, model, argument, joints[0], centre)
    return tuple(found.values())


def find_regions(
    domain: Any, model: mujoco.MjModel, goal: Sequence[Sequence[str]], parts: Sequence[Part]
) -> tuple[FixedPoint, ...]:
    """Return the regions of a goal that are to be keypoints."""
    sites = domain.object_sites_dict
    found = {}
    for predicate, *arguments in goal:
        region = arguments[-1]
        if predicate in PUT and region in sites and (parts or sites[region].parent_name is None):
            site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, region)
            body, local_m = int(model.site_bodyid[site]), model.site_pos[site].copy()
            found[region] = FixedPoint(region, body, local_m)
    return tuple(found.values())


def _joints(domain: Any, model: mujoco.MjModel, argument: str) -> list[str]:
    """Return the joints of a region, or of an object, that slide or turn."""
    thing = domain.object_sites_dict.get(argument) or domain.get_object(argument)
    names = thing.joints or ()
    return [name for name in names if model.jnt_type[model.joint(name).id] in KINDS]


def _part(
    domain: Any, model: mujoco.MjModel, argument: str, joint_name: str, centre: Callable
) -> Part:
    site = domain.object_sites_dict.get(argument)
    owner = argument if site is None else site.parent_name
    reached = _limits(domain.get_object(owner).object_properties['articulation'])
    joint = model.joint(joint_name).id
    body = int(model.jnt_bodyid[joint])
    local_m = _handle(model, joint, reached) if 'open' in reached else centre(body)
    point = FixedPoint(model.body(body).name, body, local_m)
    return Part(argument, owner, point, joint, reached)


def _limits(ranges: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return where each goal begins: the end of its range that is nearer to the opposite one's."""
    limits = {}
    for predicate, opposite in OPPOSITES.items():
        own, other = ranges.get(RANGES[predicate]), ranges.get(RANGES[opposite])
        if own and other:
            limits[predicate] = float(min(own, key=lambda value: abs(value - np.mean(other))))
    return limits


def _handle(model: mujoco.MjModel, joint: int, reached: Mapping[str, float]) -> np.ndarray:
    """Return the centre (3,) of the geom that sticks out farthest, in the body's frame.

    Of a drawer, the way that it opens; of a door, away from its hinge.
    """
    body, axis = model.jnt_bodyid[joint], model.jnt_axis[joint]
    geoms = np.flatnonzero(model.geom_bodyid == body)
    centres = np.array([_geom_centre(model, geom) for geom in geoms])
    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
        out = centres @ axis * np.sign(reached['open'] - reached['close'])
    else:
        arms = centres - model.jnt_pos[joint]
        out = np.linalg.norm(arms - np.outer(arms @ axis, axis), axis=1)
    return centres[np.argmax(out)]


def _geom_centre(model: mujoco.MjModel, geom: int) -> np.ndarray:
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
    return model.geom_pos[geom] + turn.reshape(3, 3) @ model.geom_aabb[geom, :3]
