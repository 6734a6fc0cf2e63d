"""Names, poses and contacts in a LIBERO scene, in the robot's base frame.

Many geoms have no name, so contacts are told by bodies: every body belongs to an entity, which is
an object or fixture of the task, the robot, a finger, or the body's own name (table, floor).
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from sim_bridge.environment import PartJoint, SceneSnapshot
from sim_bridge.libero_parts import KINDS, FixedPoint, Part, find_parts, find_regions

ROBOT = 'robot'
FINGERS = ('finger_left', 'finger_right')
FINGER_BODIES = {'gripper0_leftfinger': FINGERS[0], 'gripper0_rightfinger': FINGERS[1]}
ROBOT_ROOTS = ('robot0_', 'gripper0_', 'mount0_')
BASE_BODY = 'robot0_base'
GRIPPER = 'gripper'
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


class LiberoScene:
    """What is where; `begin` once an episode, `snapshot` once a step."""

    def __init__(self, env: Any) -> None:
        """Read the model's names and extents (`env`: LIBERO's wrapper)."""
        self._env = env
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.bodies: dict[str, int] = dict(env.env.obj_body_id)
        self.goal = tuple(tuple(map(str, g)) for g in env.env.parsed_problem['goal_state'])
        self.target = self._entity_named(self.goal[0][1])
        self.receptacle = self._entity_named(self.goal[0][2]) if len(self.goal[0]) > 2 else ''
        self.support: tuple[str, ...] = ()
        joints = [*env.robots[0].robot_model.joints, *env.robots[0].gripper.joints]
        self.joint_names = tuple(joints)
        self._entity = self._entities()
        self._site = env.robots[0].eef_site_id
        self._base = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, BASE_BODY)
        self.parts = find_parts(env.env, self.model, self.goal, self._local_centre)
        self.regions = find_regions(env.env, self.model, self.goal, self.parts)
        self._points = (
            *(FixedPoint(n, body, self._local_centre(body)) for n, body in self.bodies.items()),
            *(part.point for part in self.parts),
            *self.regions,
        )
        self.part_joints: dict[str, PartJoint] = {}

    def begin(self) -> None:
        """Note what the target rests on and how the parts are; call it when the scene settled."""
        pairs = self._contact_pairs()
        touching = {b if a == self.target else a for a, b in pairs if self.target in (a, b)}
        self.support = tuple(sorted(touching - {ROBOT, *FINGERS}))
        self.part_joints = {part.point.name: self._part_joint(part) for part in self.parts}

    def end_effector(self) -> tuple[np.ndarray, np.ndarray]:
        """Return position (3,) m and rotation (3, 3) of the grip site in the base frame."""
        return self._in_base(self.data.site_xpos[self._site], self.data.site_xmat[self._site])

    def snapshot(self, opening: float, success: bool) -> SceneSnapshot:
        """Return what is where now."""
        positions, quaternions = [], []
        for point in self._points:
            turn = self.data.xmat[point.body].reshape(3, 3)
            centre = self.data.xpos[point.body] + turn @ point.local_m
            position, rotation = self._in_base(centre, turn)
            positions.append(position)
            quaternions.append(Rotation.from_matrix(rotation).as_quat())
        position, rotation = self.end_effector()
        positions.append(position)
        quaternions.append(Rotation.from_matrix(rotation).as_quat())
        pairs = self._contact_pairs()
        grasped = self._grasped(pairs)
        return SceneSnapshot(
            names=(*(point.name for point in self._points), GRIPPER),
            positions_m=np.array(positions),
            quaternions_xyzw=np.array(quaternions),
            gripper_opening=opening,
            grasped=grasped,
            contacts=tuple(f'{a}|{b}' for a, b in pairs),
            collisions=self._collisions(pairs, self.target in grasped),
            success=success,
        )

    def collisions(self) -> tuple[str, ...]:
        """Return the collisions now, as in a snapshot."""
        pairs = self._contact_pairs()
        return self._collisions(pairs, self.target in self._grasped(pairs))

    def receptacle_keypoint(self) -> str:
        """Return where the target goes: the goal's region if it is a keypoint, or its entity."""
        regions = {point.name for point in self.regions}
        return next((name for name in self.goal[0][2:] if name in regions), self.receptacle)

    def not_obstacles(self) -> tuple[str, ...]:
        """Return the keypoints of parts and regions, and the fixtures that the parts belong to."""
        points = (*(part.point for part in self.parts), *self.regions)
        owners = dict.fromkeys(part.owner for part in self.parts)
        return (*(point.name for point in points), *owners)

    def site(self, region: str) -> int:
        """Return the id of a goal region's site."""
        return mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, region)

    def vertices(self, name: str) -> np.ndarray:
        """Return the world positions (N, 3) of an entity's display meshes."""
        return self.body_vertices(self.bodies[name])

    def body_vertices(self, body: int) -> np.ndarray:
        """Return the world positions (N, 3) of the display meshes of a body and those below."""
        found = []
        for geom in self._geoms_below(body):
            is_mesh = self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
            if is_mesh and self.model.geom_group[geom] == 1:
                mesh = self.model.geom_dataid[geom]
                start, count = self.model.mesh_vertadr[mesh], self.model.mesh_vertnum[mesh]
                local = self.model.mesh_vert[start : start + count]
                turn = self.data.geom_xmat[geom].reshape(3, 3)
                found.append(local @ turn.T + self.data.geom_xpos[geom])
        return np.concatenate(found)

    def _part_joint(self, part: Part) -> PartJoint:
        joint = part.joint
        kind = KINDS[self.model.jnt_type[joint]]
        pivot_m, turn = self._in_base(self.data.xanchor[joint], np.eye(3))
        return PartJoint(
            kind=kind,
            axis=tuple(map(float, turn @ self.data.xaxis[joint])),
            pivot_m=tuple(map(float, pivot_m)) if kind == 'hinge' else None,
            value=float(self.data.qpos[self.model.jnt_qposadr[joint]]),
            reached=dict(part.reached),
        )

    def _collisions(self, pairs: tuple[tuple[str, str], ...], holding: bool) -> tuple[str, ...]:
        return tuple(f'{a}|{b}' for a, b in pairs if self._is_collision(a, b, holding))

    def _is_collision(self, a: str, b: str, holding: bool) -> bool:
        """Robot or held target against what is neither target, support nor receptacle."""
        allowed = {self.target, self.receptacle, *self.support, ROBOT, *FINGERS}
        moving = {ROBOT, *FINGERS} | ({self.target} if holding else set())
        return (a in moving and b not in allowed) or (b in moving and a not in allowed)

    def _grasped(self, pairs: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
        left, right = (
            {b if a == finger else a for a, b in pairs if finger in (a, b)} for finger in FINGERS
        )
        return tuple(sorted((left & right) & set(self.bodies)))

    def _contact_pairs(self) -> tuple[tuple[str, str], ...]:
        geoms = self.data.contact.geom[: self.data.ncon]
        owners = self.model.geom_bodyid[geoms]
        pairs = {
            tuple(sorted((self._entity[int(a)], self._entity[int(b)])))
            for a, b in np.unique(owners, axis=0)
        }
        return tuple(sorted(pair for pair in pairs if pair[0] != pair[1]))

    def _entities(self) -> list[str]:
        """Return the entity of each body; a body without its own has its parent's."""
        names = {body: name for name, body in self.bodies.items()}
        found: list[str] = []
        for body in range(self.model.nbody):
            own = mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_BODY, body) or ''
            parent = found[self.model.body_parentid[body]] if body else ''
            if own in FINGER_BODIES:
                found.append(FINGER_BODIES[own])
            elif own.startswith(ROBOT_ROOTS):
                found.append(parent if parent in FINGERS else ROBOT)
            elif body in names:
                found.append(names[body])
            elif parent in ('', 'world'):
                found.append(own or 'world')
            else:
                found.append(parent)
        return found

    def _entity_named(self, region: str) -> str:
        """Return the entity of an object name or of one of its regions."""
        fits = [name for name in self.bodies if region == name or region.startswith(f'{name}_')]
        return max(fits, key=len) if fits else region

    def _geoms_below(self, body: int) -> list[int]:
        below = {body}
        for child in range(body + 1, self.model.nbody):
            if self.model.body_parentid[child] in below:
                below.add(child)
        return [g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] in below]

    def _local_centre(self, body: int) -> np.ndarray:
        """Return the centre (3,) of the bounding box, in the body's own frame."""
        turn = self.data.xmat[body].reshape(3, 3)
        corners = []
        for geom in self._geoms_below(body):
            centre, half = self.model.geom_aabb[geom, :3], self.model.geom_aabb[geom, 3:]
            geom_turn = self.data.geom_xmat[geom].reshape(3, 3)
            world = (centre + CORNERS * half) @ geom_turn.T + self.data.geom_xpos[geom]
            corners.append((world - self.data.xpos[body]) @ turn)
        if not corners:
            return np.zeros(3)
        points = np.concatenate(corners)
        return (points.min(0) + points.max(0)) / 2

    def _in_base(self, position: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turn = self.data.xmat[self._base].reshape(3, 3)
        return (
            turn.T @ (np.asarray(position) - self.data.xpos[self._base]),
            turn.T @ np.asarray(matrix).reshape(3, 3),
        )
