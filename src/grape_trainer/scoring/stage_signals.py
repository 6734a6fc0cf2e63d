"""What a recorded trial says about its target: holds, touches, arrivals, motions, over time.

Read off the gripper's commands, the recorded grasps and contacts where there are any (perceived
keypoints have none), the distances of the end effector to keypoints, and how keypoints moved.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.spatial.transform import Rotation

from grape_episode.episode import Episode
from grape_trainer.scoring.keypoint import KeypointTrack
from grape_trainer.scoring.stage_definition import Roles, StageError
from grape_trainer.scoring.stage_part import Joint, declared_joint

# How SceneState names the robot's own bodies in `contacts`.
ROBOT_BODIES = frozenset(('robot', 'finger_left', 'finger_right'))
# A keypoint that moves and turns less than this in a whole trial stands still.
STILL_M, STILL_RAD = 1e-3, 1e-2


class SegmentSettings(BaseModel):
    """Thresholds of the segmenter; the values and their reasons are in config/objective/."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    closed_below: float = Field(gt=0, lt=1)  # commanded opening that means closed
    near_m: float = Field(gt=0)  # end effector to a held object's keypoint
    lift_m: float = Field(gt=0)  # above its first position: lifted
    arrive_m: float = Field(gt=0)  # horizontal, target to receptacle: arrived
    min_hold_s: float = Field(ge=0)  # a shorter hold is a touch, not a grasp
    bridge_gap_s: float = Field(ge=0)  # a shorter loss of contact is a flicker, not a drop


class MotionSettings(BaseModel):
    """Thresholds for what is pushed, opened, turned, knocked down or stacked."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    reach_m: float = Field(gt=0)  # end effector to a keypoint without contacts: reached
    press_m: float = Field(gt=0)  # a button's travel: pressed
    move_m: float = Field(gt=0)  # a part's distance from its first position: opened, closed
    turn_rad: float = Field(gt=0)  # a part's rotation from its first one: turned
    fall_rad: float = Field(gt=0)  # tilt of what stood upright: fallen
    fall_m: float = Field(gt=0)  # the same without orientations: its keypoint is that much lower
    stack_m: float = Field(gt=0)  # horizontal, upper to lower object: on it
    stack_above_m: float = Field(ge=0)  # upper above lower keypoint: on it, not beside it


class TrialSignals:
    """What the stages look at in one trial; grasps are computed once and kept."""

    def __init__(
        self,
        episode: Episode,
        track: KeypointTrack,
        settings: SegmentSettings,
        motion: MotionSettings | None,
        rate_hz: float,
    ) -> None:
        """Take a trial; `motion` may be None where nothing but grasps and arrivals counts."""
        self._episode, self._track = episode, track
        self._settings, self._motion, self._rate_hz = settings, motion, rate_hz
        self.last = len(episode.gripper_command)
        scene, nothing = episode.scene, ((),) * (self.last + 1)
        # A real robot records no scene: no grasps, no contacts, no verdict, only keypoints.
        self._grasped = nothing if scene is None else scene.grasped
        self._contacts = nothing if scene is None else scene.contacts
        # The command of step t acts on state t + 1.
        self._closed = np.concatenate(([False], episode.gripper_command < settings.closed_below))
        self.holds = cache(self._holds)

    def _holds(self, target: str) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
        """Return (T+1,) held and its runs as (first, last) states, without touches and flickers.

        Held means: the gripper was commanded closed, and either both fingers touch the target
        (the recorded grasped list) or the target is off its place and at the end effector. The
        second finds rim grasps of bowls and works on perceived keypoints, without contacts.
        """
        settings, closed = self._settings, self._closed
        target_m = self._track.position_m(target)
        touched = np.array([target in names for names in self._grasped])
        near = self.hand_distance_m(target) <= settings.near_m
        held = closed & (touched | (self.lifted(target) & near))
        runs = _bridged(_runs(held), closed, settings.bridge_gap_s * self._rate_hz)
        shortest = max(1, round(settings.min_hold_s * self._rate_hz))
        holds = tuple(run for run in runs if run[1] - run[0] + 1 >= shortest)
        clean = np.zeros(len(target_m), dtype=bool)
        for start, stop in holds:
            clean[start : stop + 1] = True
        return clean, holds

    def height_m(self, target: str) -> np.ndarray:
        """Return (T+1,) heights of a keypoint."""
        return self._track.position_m(target)[:, 2]

    def hand_distance_m(self, target: str) -> np.ndarray:
        """Return (T+1,) distances from the end effector to a keypoint."""
        offset_m = self._episode.ee_position_m - self._track.position_m(target)
        return np.linalg.norm(offset_m, axis=1)

    def lifted(self, target: str) -> np.ndarray:
        """Return (T+1,) whether the target is off the height that it had at first."""
        height_m = self.height_m(target)
        return height_m - height_m[0] >= self._settings.lift_m

    def offset_m(self, roles: Roles) -> np.ndarray:
        """Return (T+1, 3) from receptacle to target; StageError without a receptacle."""
        if not roles.receptacle:
            raise StageError(
                f"the stage of '{roles.target}' needs a receptacle and has none; name a second "
                'keypoint for it.'
            )
        return self._track.position_m(roles.target) - self._track.position_m(roles.receptacle)

    def over(self, roles: Roles) -> np.ndarray:
        """Return (T+1,) whether the target is over the receptacle, horizontally."""
        offset_m = self.offset_m(roles)
        return np.hypot(offset_m[:, 0], offset_m[:, 1]) <= self._settings.arrive_m

    def arrived(self, roles: Roles) -> np.ndarray:
        """Return (T+1,) whether the target is over the receptacle, lifted since its last grasp."""
        over, lifted = self.over(roles), self.lifted(roles.target)
        _, holds = self.holds(roles.target)
        arrived = np.zeros(len(over), dtype=bool)
        for index, (start, _) in enumerate(holds):
            following = holds[index + 1][0] if index + 1 < len(holds) else self.last + 1
            window = slice(start, following)
            arrived[window] = np.logical_or.accumulate(lifted[window]) & over[window]
        return arrived

    def touching(self, target: str) -> np.ndarray:
        """Return (T+1,) whether the robot is recorded in contact with the target.

        Contacts are of whole objects: to touch a cabinet is to touch its drawer, by the names
        `cabinet_1` and `cabinet_1_top_region`.
        """
        names = self._track.names
        owners = {name for name in names if target == name or target.startswith(f'{name}_')}
        wanted = {'|'.join(sorted((body, name))) for body in ROBOT_BODIES for name in owners}
        grasped = np.array([target in names for names in self._grasped])
        return grasped | np.array([not wanted.isdisjoint(pairs) for pairs in self._contacts])

    def displacement_m(self, target: str) -> np.ndarray:
        """Return (T+1,) distances of a keypoint from its first position."""
        position_m = self._track.position_m(target)
        return np.linalg.norm(position_m - position_m[0], axis=1)

    def rotation(self, target: str) -> Rotation | None:
        """Return the T+1 rotations of a keypoint from its first one; None where none is known."""
        scene = self._episode.scene
        if scene is None or target not in scene.names:
            return None
        quaternions = scene.quaternions_xyzw[:, scene.names.index(target)]
        if not np.isfinite(quaternions).all() or not np.linalg.norm(quaternions, axis=1).all():
            return None
        turns = Rotation.from_quat(quaternions)
        return turns * turns[0].inv()

    def still(self, target: str) -> bool:
        """Return whether a keypoint stands still and unturned through the whole trial."""
        turn = self.rotation(target)
        turned = 0.0 if turn is None else turn.magnitude().max()
        return self.displacement_m(target).max() < STILL_M and turned < STILL_RAD

    def joint(self, target: str) -> tuple[Joint, np.ndarray]:
        """Return the declared joint of a keypoint's part, and its value (T+1,).

        Raises:
            StageError: none is declared, or its value cannot be told.

        """
        joint = declared_joint(self._episode.info.environment, target)
        if joint is None:
            raise StageError(
                f"the environment declares no joint of '{target}', so that open is not told from "
                "closed; declare it under 'joints' at START (docs/reference/stages.md), or end "
                "the stage with 'moved' or 'turned'."
            )
        return joint, joint.values(self._track.position_m(target), self.rotation(target))

    @property
    def success(self) -> np.ndarray:
        """Return (T+1,) the environment's own verdict at each state."""
        if self._episode.scene is None:
            return np.zeros(self.last + 1, dtype=bool)
        return np.asarray(self._episode.scene.success, dtype=bool)

    @property
    def motion(self) -> MotionSettings:
        """Return the thresholds of motions; StageError where the objective has none."""
        if self._motion is None:
            raise StageError(
                "the objective has no section 'motion', which these stages need; copy it from "
                'config/objective/open_close.yaml.'
            )
        return self._motion

    def bridge(self, holds: np.ndarray) -> np.ndarray:
        """Return the condition without gaps that are flickers."""
        everywhere = np.ones(len(holds), dtype=bool)
        bridged = np.zeros(len(holds), dtype=bool)
        gap = self._settings.bridge_gap_s * self._rate_hz
        for start, stop in _bridged(_runs(holds), everywhere, gap):
            bridged[start : stop + 1] = True
        return bridged


def _bridged(
    runs: list[tuple[int, int]], throughout: np.ndarray, gap: float
) -> list[tuple[int, int]]:
    """Join runs that are at most `gap` states apart where `throughout` holds between them."""
    joined: list[tuple[int, int]] = []
    for start, stop in runs:
        flicker = bool(joined) and throughout[joined[-1][1] : start + 1].all()
        if flicker and start - joined[-1][1] - 1 <= gap:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
