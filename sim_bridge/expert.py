"""A scripted expert for LIBERO's pick-and-place tasks and the stove's knob, one action a step.

It sees privileged state: the target's mesh and the goal region. Bowls, plates and pans are
grasped at the rim, anything else across its thinnest direction; a knob is grasped at its bar and
turned by the wrist. Demonstrations should be easy to
imitate from pictures, so the expert never stands still on purpose: it closes while it servoes to
the grasp pose and lifts as soon as the fingers have closed. Its tolerance at the grasp is wider
than the actuation noise: a narrower one made it wait there with open fingers, and policies that
learned from it waited for ever. Only a rim needs the narrow one, and the time that the fingers
take to meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from sim_bridge.environment import SimulatorError
from sim_bridge.libero import LiberoEnvironment
from sim_bridge.perturbation import OBSTACLE

TRANSLATION_SCALE_M, ROTATION_SCALE_RAD = 0.05, 0.5  # of one unit of OSC_POSE
GAIN = 1.6
MAX_ROTATION_UNITS = 0.5
OPEN, CLOSED = 1.0, 0.0
OPENING_STEPS = 6
CLEARANCE_M = 0.12
OBSTACLE_MARGIN_M = 0.05
TALL_M = 0.12
TURN_RAD, TURN_PIECES = 1.0, 10  # the fingers slip: LIBERO's stove is on from 0.5
BAR_SHARE = 0.6  # a knob's bar is above this share of its height
RIM_OBJECTS = ('bowl', 'plate', 'frypan', 'mug')


@dataclass(frozen=True)
class Attempt:
    """How a grasp is varied: rim angle (or preferred yaw) and extra depth."""

    angle_rad: float
    depth_m: float


ATTEMPTS = (
    Attempt(0.0, 0.0),
    Attempt(0.0, 0.008),
    Attempt(np.pi, 0.0),
    Attempt(np.pi / 2, 0.0),
    Attempt(-np.pi / 2, 0.005),
)


@dataclass(frozen=True)
class Approach:
    """How close the hand must be above the grasp and at it, how long it may try, then closes."""

    above_m: float
    grasp_m: float
    turn_rad: float
    grasp_steps: int
    closing_steps: int


APPROACH = Approach(0.012, 0.009, 0.1, 20, 6)
RIM_APPROACH = Approach(0.006, 0.004, 0.05, 30, 12)  # the fingers meet only at a thin rim


@dataclass(frozen=True)
class Grasp:
    """A grasp pose of the grip site in the world."""

    position_m: np.ndarray  # (3,)
    rotation: np.ndarray  # (3, 3)


class Expert:
    """Plays the current episode of an environment; call `action` once before each step."""

    def __init__(self, env: LiberoEnvironment, attempt: int = 0) -> None:
        """Plan for the scene as it is now.

        Raises:
            SimulatorError: the task has a goal that the expert cannot do, or no such attempt.

        """
        if not 0 <= attempt < len(ATTEMPTS):
            raise SimulatorError(f'attempt {attempt}; expected 0..{len(ATTEMPTS) - 1}.')
        unsupported = [goal for goal in env.scene.goal if goal[0] not in ('in', 'on', 'turnon')]
        if unsupported:
            raise SimulatorError(
                'the scripted expert picks, places and turns on only; this task asks for '
                f'{unsupported}.'
            )
        self._scene = env.scene
        self._data = env.scene.data
        self._attempt = ATTEMPTS[attempt]
        self._repeats = env.repeats
        self._site = env.simulation.robots[0].eef_site_id
        _, self._upright = self._pose()
        self._commands = self._episode()

    def action(self) -> np.ndarray | None:
        """Return the next (7,) policy units, or None when the plan has ended."""
        return next(self._commands, None)

    def _episode(self) -> Iterator[np.ndarray]:
        for predicate, target, *region in self._scene.goal:
            if predicate == 'turnon':
                yield from self._turn_on(target)
            else:
                yield from self._pick_and_place(target, *region)

    def _pick_and_place(self, name: str, region: str) -> Iterator[np.ndarray]:
        place = self._place_position(region)
        grasp = self._grasp(name, place[:2])
        up = np.array([0.0, 0.0, 1.0])
        yield from self._descend(grasp, RIM_APPROACH if _has_rim(name) else APPROACH)
        bottom = self._extent(name)[0][2]
        carry_z = max(grasp.position_m[2], place[2] + grasp.position_m[2] - bottom) + 0.13
        carry_z = max(carry_z, self._over_obstacles_z() + grasp.position_m[2] - bottom)
        yield from self._lift(grasp, carry_z, place)
        # Where the object hangs in the hand decides where the hand must go.
        low, high = self._extent(name)
        position, _ = self._pose()
        offset = position - np.append((low[:2] + high[:2]) / 2, low[2])
        above = Grasp(np.append(place[:2] + offset[:2], max(carry_z, position[2])), grasp.rotation)
        yield from self._go(above, 0.0 * up, CLOSED, 0.015, 80, 0.1)
        drop = 0.01 if 'basket' in region else 0.02
        low_point = Grasp(np.append(above.position_m[:2], place[2] + offset[2]), grasp.rotation)
        yield from self._go(low_point, drop * up, CLOSED, 0.012, 40, 0.1)
        released = Grasp(low_point.position_m + drop * up, grasp.rotation)
        yield from self._hold(released, OPEN, OPENING_STEPS)
        yield from self._go(released, CLEARANCE_M * up, OPEN, 0.02, 25, 0.1)
        yield from self._hold(
            Grasp(released.position_m + CLEARANCE_M * up, grasp.rotation), OPEN, 5
        )

    def _lift(self, grasp: Grasp, carry_z: float, place: np.ndarray) -> Iterator[np.ndarray]:
        """Raise the object in the hand to a height from which it goes straight to its place."""
        lift = np.array([0.0, 0.0, carry_z - grasp.position_m[2]])
        yield from self._go(grasp, lift, CLOSED, 0.02, 60, 0.1)

    def _turn_on(self, name: str) -> Iterator[np.ndarray]:
        part = next(part for part in self._scene.parts if part.argument == name)
        vertices = self._scene.body_vertices(part.point.body)
        low_z, high_z = vertices[:, 2].min(), vertices[:, 2].max()
        bar = vertices[vertices[:, 2] > low_z + BAR_SHARE * (high_z - low_z)]
        pivot = self._data.xanchor[part.joint]
        position = np.append(pivot[:2], high_z - 0.02 - self._attempt.depth_m)
        knob = Grasp(position, self._across_grasp(bar).rotation)
        yield from self._descend(knob, APPROACH)
        sense = np.sign(part.reached['turnon'] - part.reached['turnoff'])
        turned = knob
        for turn in np.linspace(0.0, sense * TURN_RAD, TURN_PIECES + 1)[1:]:
            turned = Grasp(position, Rotation.from_euler('z', turn).as_matrix() @ knob.rotation)
            yield from self._go(turned, np.zeros(3), CLOSED, 0.02, 8, 0.05)
        yield from self._hold(turned, OPEN, OPENING_STEPS)
        yield from self._go(turned, np.array([0.0, 0.0, CLEARANCE_M]), OPEN, 0.02, 25, 0.1)

    def _descend(self, grasp: Grasp, near: Approach) -> Iterator[np.ndarray]:
        """Come from above and close."""
        up = np.array([0.0, 0.0, 1.0])
        yield from self._go(grasp, self._above_m(grasp), OPEN, 0.02, 60, 0.1)
        yield from self._go(grasp, 0.05 * up, OPEN, near.above_m, 30, near.turn_rad)
        yield from self._go(grasp, 0.0 * up, OPEN, near.grasp_m, near.grasp_steps, near.turn_rad)
        yield from self._hold(grasp, CLOSED, near.closing_steps)

    def _above_m(self, grasp: Grasp) -> np.ndarray:
        """Return the offset (3,) from a grasp to where the hand comes from."""
        height = max(CLEARANCE_M, self._over_obstacles_z() - grasp.position_m[2])
        return np.array([0.0, 0.0, height])

    def _go(
        self,
        pose: Grasp,
        offset_m: np.ndarray,
        opening: float,
        tolerance_m: float,
        max_steps: int,
        tolerance_rad: float,
    ) -> Iterator[np.ndarray]:
        goal = Grasp(pose.position_m + offset_m, pose.rotation)
        for _ in range(self._actions(max_steps)):
            position, rotation = self._pose()
            turn = Rotation.from_matrix(goal.rotation @ rotation.T).magnitude()
            close = np.linalg.norm(goal.position_m - position) < tolerance_m
            if close and turn < tolerance_rad:
                return
            yield self._servo(goal, opening)

    def _hold(self, pose: Grasp, opening: float, steps: int) -> Iterator[np.ndarray]:
        for _ in range(self._actions(steps)):
            yield self._servo(pose, opening)

    def _actions(self, steps: int) -> int:
        """Return the actions that take as long as this many of LIBERO's steps."""
        return -(-steps // self._repeats)

    def _servo(self, goal: Grasp, opening: float) -> np.ndarray:
        """Return one proportional step towards a pose, in policy units."""
        position, rotation = self._pose()
        gain = GAIN / self._repeats
        move = gain * (goal.position_m - position) / TRANSLATION_SCALE_M
        turn = Rotation.from_matrix(goal.rotation @ rotation.T).as_rotvec()
        turn = gain * turn / ROTATION_SCALE_RAD
        return np.concatenate(
            [
                np.clip(move, -1, 1),
                np.clip(turn, -MAX_ROTATION_UNITS, MAX_ROTATION_UNITS),
                [opening],
            ]
        )

    def _pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the grip site's position and rotation in the world."""
        matrix = np.array(self._data.site_xmat[self._site]).reshape(3, 3)
        return np.array(self._data.site_xpos[self._site]), matrix

    def _over_obstacles_z(self) -> float:
        """Return a height over the obstacles that a perturbation added; -inf without any."""
        tops = [self._extent(n)[1][2] for n in self._scene.bodies if n.startswith(OBSTACLE)]
        return max(tops, default=-np.inf) + OBSTACLE_MARGIN_M

    def _extent(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        vertices = self._scene.vertices(name)
        return vertices.min(0), vertices.max(0)

    def _grasp(self, name: str, goal_xy: np.ndarray) -> Grasp:
        vertices = self._scene.vertices(name)
        if _has_rim(name):
            return self._rim_grasp(vertices, goal_xy)
        return self._across_grasp(vertices)

    def _rim_grasp(self, vertices: np.ndarray, goal_xy: np.ndarray) -> Grasp:
        """Grasp the rim on the side away from the goal; the fingers close radially."""
        low, high = vertices.min(0), vertices.max(0)
        centre = (low[:2] + high[:2]) / 2
        top = vertices[vertices[:, 2] > high[2] - 0.15 * (high[2] - low[2])]
        side = 1.0 if centre[1] < goal_xy[1] else -1.0
        angle = self._attempt.angle_rad
        outward = np.array([np.sin(angle), np.cos(angle) * side])
        yaw = -np.arctan2(outward[0], outward[1])
        yaw = (yaw + np.pi / 2) % np.pi - np.pi / 2
        radius = np.percentile((top[:, :2] - centre) @ outward, 97)
        across = np.array([outward[1], -outward[0]])
        relative = vertices[:, :2] - centre
        near = (relative @ outward > 0.8 * radius) & (np.abs(relative @ across) < 0.015)
        rim_z = vertices[near, 2].max() if near.any() else high[2]  # a bowl may be tilted
        point = centre + outward * (radius - 0.004)
        return Grasp(np.append(point, rim_z - 0.020 - self._attempt.depth_m), self._turned(yaw))

    def _across_grasp(self, vertices: np.ndarray) -> Grasp:
        """Grasp from above across the thinnest direction, preferring little wrist rotation."""
        low, high = vertices.min(0), vertices.max(0)
        height = high[2] - low[2]

        def width(yaw: float) -> float:
            along = vertices[:, :2] @ np.array([-np.sin(yaw), np.cos(yaw)])
            return float(np.ptp(along))

        yaws = np.deg2rad(np.arange(-90, 90, 5))
        yaw = min(yaws, key=lambda y: width(y) + 0.012 * abs(y - self._attempt.angle_rad))
        closing = np.array([-np.sin(yaw), np.cos(yaw)])
        across = np.array([closing[1], -closing[0]])
        point = sum(
            axis * (np.min(vertices[:, :2] @ axis) + np.max(vertices[:, :2] @ axis)) / 2
            for axis in (closing, across)
        )
        if height > 0.05:
            below = 0.043 if height > TALL_M else 0.035  # a carton held higher swings out
            z = max(high[2] - below, low[2] + 0.012)
        else:
            z = low[2] + max(0.006, 0.4 * height)
        z = max(z - self._attempt.depth_m, low[2] + 0.002)
        return Grasp(np.append(point, z), self._turned(yaw))

    def _turned(self, yaw: float) -> np.ndarray:
        return Rotation.from_euler('z', yaw).as_matrix() @ self._upright

    def _place_position(self, region: str) -> np.ndarray:
        """Return where the object's bottom should go: a region's site, or an object's surface."""
        if region in self._scene.bodies:
            low, high = self._extent(region)
            hollow = 'basket' in region or 'bowl' in region
            return np.append((low[:2] + high[:2]) / 2, low[2] + 0.02 if hollow else high[2])
        position = np.array(self._data.site_xpos[self._scene.site(region)])
        if 'basket' in region:
            position[2] = self._extent(self._scene.receptacle)[1][2]  # over the brim
        return position


def _has_rim(name: str) -> bool:
    return any(kind in name for kind in RIM_OBJECTS)
