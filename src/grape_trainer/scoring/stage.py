"""The stages of a task, and where each begins and ends in a recorded episode (GRAPE Eq. 7).

A template says which stages a task has; `segment` cuts an episode of T steps, which has the
states 0 .. T, at the grasp that counted and at the arrival over the receptacle:

    grasp [0, g]    transport [g, a]    place [a, T]

The spans are monotone in time, share their boundary state and cover the episode. A trial that
drops the object and grasps it again is cut at the first grasp that carried the object to the
receptacle, or at its last grasp if none did: what came before belongs to the grasp stage. A
stage that a trial never reaches has no span; cost.py charges its worst cost.

Each stage can be reached, and is tested to be: the published implementation's third branch is
shadowed by its second, so that its stage 3 always costs 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from grape_episode.episode import Episode
from grape_trainer.scoring.keypoint import KeypointTrack


class StageError(ValueError):
    """An episode that cannot be cut into stages; the text says what it lacks."""


@dataclass(frozen=True)
class Stage:
    """One stage of a template; constraints are the cost terms that cost.py knows for it."""

    number: int  # from 1, as in the paper's stageN_..._constraintM
    name: str
    description: str
    keypoints: tuple[str, ...]  # roles
    grasp: bool  # ends with a grasp
    release: bool  # ends with a release
    constraints: tuple[str, ...]


PICK_PLACE = (
    Stage(
        1,
        'grasp',
        'reach the target and grasp it',
        ('target', 'obstacles'),
        grasp=True,
        release=False,
        constraints=(
            'stage1_target_constraint1',
            'stage1_grasp_constraint1',
            'stage1_collision_constraint1',
            'stage1_collision_constraint2',
            'stage1_collision_constraint3',
            'stage1_path_constraint1',
            'stage1_path_constraint2',
        ),
    ),
    Stage(
        2,
        'transport',
        'lift the target and carry it over the receptacle',
        ('target', 'receptacle', 'obstacles'),
        grasp=False,
        release=False,
        constraints=(
            'stage2_target_constraint1',
            'stage2_grasp_constraint1',
            'stage2_collision_constraint1',
            'stage2_collision_constraint2',
            'stage2_path_constraint1',
            'stage2_path_constraint2',
        ),
    ),
    Stage(
        3,
        'place',
        'lower the target into or onto the receptacle and release it',
        ('target', 'receptacle', 'obstacles'),
        grasp=False,
        release=True,
        constraints=(
            'stage3_target_constraint1',
            'stage3_grasp_constraint1',
            'stage3_collision_constraint1',
            'stage3_collision_constraint2',
            'stage3_collision_constraint3',
            'stage3_path_constraint1',
            'stage3_path_constraint2',
        ),
    ),
)

TEMPLATES: Mapping[str, tuple[Stage, ...]] = {'pick_place': PICK_PLACE}


@dataclass(frozen=True)
class Roles:
    """Which recorded keypoint plays which part in the task."""

    target: str
    receptacle: str
    support: tuple[str, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, object]) -> Roles:
        """Read the roles that the environment declared at START (EpisodeInfo.environment).

        They stand under 'roles' or at the top level: target, receptacle, support (a name or a
        list of names).

        Raises:
            StageError: target or receptacle missing.

        """
        roles = environment.get('roles', environment)
        if not isinstance(roles, Mapping):
            raise StageError(f"the environment's 'roles' is {roles!r}; expected a mapping.")
        absent = [key for key in ('target', 'receptacle') if not roles.get(key)]
        if absent:
            raise StageError(
                f"the episode's environment declares no {' and no '.join(absent)}; it has: "
                f"{', '.join(map(str, roles)) or 'nothing'}. Pick-and-place needs 'target' and "
                "'receptacle' (names of keypoints) in the configuration that START carries."
            )
        support = roles.get('support') or ()
        support = (support,) if isinstance(support, str) else tuple(support)
        return cls(str(roles['target']), str(roles['receptacle']), support)


class SegmentSettings(BaseModel):
    """Thresholds of the segmenter; the values and their reasons are in config/objective/."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    closed_below: float = Field(gt=0, lt=1)  # commanded opening that means closed
    near_m: float = Field(gt=0)  # end effector to a held object's keypoint
    lift_m: float = Field(gt=0)  # above its first position: lifted
    arrive_m: float = Field(gt=0)  # horizontal, target to receptacle: arrived
    min_hold_s: float = Field(ge=0)  # a shorter hold is a touch, not a grasp
    bridge_gap_s: float = Field(ge=0)  # a shorter loss of contact is a flicker, not a drop


@dataclass(frozen=True)
class StageSpan:
    """The states start .. stop (both included) of one stage; None where it was never reached."""

    stage: Stage
    start: int | None
    stop: int | None
    completed: bool

    @property
    def reached(self) -> bool:
        """Whether the trial got this far."""
        return self.start is not None

    @property
    def states(self) -> slice:
        """The span as a slice over the T + 1 states; StageError where it was never reached."""
        if self.start is None or self.stop is None:
            raise StageError(f"stage '{self.stage.name}' was never reached: it has no states.")
        return slice(self.start, self.stop + 1)


@dataclass(frozen=True)
class Segmentation:
    """An episode cut into the stages of its template."""

    spans: tuple[StageSpan, ...]
    held: np.ndarray  # (T+1,) bool, the target is in the gripper, touches and flickers removed
    grasps: int  # how often the target was grasped
    drops: int  # grasps that ended before the target arrived, without the episode's end


def segment(
    episode: Episode, track: KeypointTrack, roles: Roles, settings: SegmentSettings
) -> Segmentation:
    """Cut a pick-and-place episode into grasp, transport and place.

    Raises:
        StageError: no steps, or arrays whose lengths do not belong together.
        KeypointError: a role that names no recorded keypoint.

    """
    _check_lengths(episode, track)
    last = len(episode.gripper_command)
    held, holds = _holds(episode, track, roles, settings)
    target_m = track.position_m(roles.target)
    offset_m = target_m - track.position_m(roles.receptacle)
    over = np.hypot(offset_m[:, 0], offset_m[:, 1]) <= settings.arrive_m
    lifted = target_m[:, 2] - target_m[0, 2] >= settings.lift_m

    arrivals = []
    for index, (start, _) in enumerate(holds):
        following = holds[index + 1][0] if index + 1 < len(holds) else last + 1
        arrivals.append(_first_arrival(over, lifted, start, following))
    drops = sum(a is None and stop < last for a, (_, stop) in zip(arrivals, holds, strict=True))
    carried = next((i for i, arrival in enumerate(arrivals) if arrival is not None), None)
    grasp = holds[-1 if carried is None else carried][0] if holds else None
    arrival = None if carried is None else arrivals[carried]
    placed = bool(arrival is not None and over[last] and not held[last])
    spans = (
        StageSpan(PICK_PLACE[0], 0, last if grasp is None else grasp, grasp is not None),
        _span(PICK_PLACE[1], grasp, last if arrival is None else arrival, arrival is not None),
        _span(PICK_PLACE[2], arrival, last, placed),
    )
    return Segmentation(spans, held, len(holds), drops)


def control_rate_hz(episode: Episode) -> float:
    """Return the control rate of the recorded contract; StageError where it has none."""
    rate = episode.info.contract.get('control_rate_hz')
    if not isinstance(rate, int | float) or not rate > 0:
        raise StageError(
            f"the recorded contract's control_rate_hz is {rate!r}; expected a positive number. "
            'Record the episode with a contract that states it.'
        )
    return float(rate)


def _holds(
    episode: Episode, track: KeypointTrack, roles: Roles, settings: SegmentSettings
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return (T+1,) held and its runs as (first, last) states.

    Held means: the gripper was commanded closed, and either both fingers touch the target (the
    recorded grasped list) or the target is off its place and at the end effector. The second
    finds rim grasps of bowls and works on perceived keypoints, which have no contacts.
    """
    target_m = track.position_m(roles.target)
    # The command of step t acts on state t + 1.
    closed = np.concatenate(([False], episode.gripper_command < settings.closed_below))
    touched = np.array([roles.target in names for names in episode.scene.grasped])
    lifted = target_m[:, 2] - target_m[0, 2] >= settings.lift_m
    near = np.linalg.norm(episode.ee_position_m - target_m, axis=1) <= settings.near_m
    held = closed & (touched | (lifted & near))

    rate = control_rate_hz(episode)
    runs: list[tuple[int, int]] = []
    for start, stop in _runs(held):
        flicker = bool(runs) and closed[runs[-1][1] : start + 1].all()
        if flicker and start - runs[-1][1] - 1 <= settings.bridge_gap_s * rate:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    shortest = max(1, round(settings.min_hold_s * rate))
    holds = [(start, stop) for start, stop in runs if stop - start + 1 >= shortest]
    clean = np.zeros(len(held), dtype=bool)
    for start, stop in holds:
        clean[start : stop + 1] = True
    return clean, holds


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _first_arrival(over: np.ndarray, lifted: np.ndarray, start: int, following: int) -> int | None:
    """Return the first state of [start, following) over the receptacle after having lifted."""
    raised = np.logical_or.accumulate(lifted[start:following])
    hits = np.flatnonzero(raised & over[start:following])
    return start + int(hits[0]) if len(hits) else None


def _span(stage: Stage, start: int | None, stop: int, completed: bool) -> StageSpan:
    return StageSpan(stage, start, None if start is None else stop, completed)


def _check_lengths(episode: Episode, track: KeypointTrack) -> None:
    steps = len(episode.gripper_command)
    if steps == 0:
        raise StageError(
            'the episode has no control step; expected one or more. Leave it out, or record it '
            'again.'
        )
    lengths = {
        'scene_state': len(track.positions_m),
        'grasped': len(episode.scene.grasped),
        'collisions': len(episode.scene.collisions),
        'ee_pose': len(episode.ee_position_m),
    }
    wrong = {name: length for name, length in lengths.items() if length != steps + 1}
    if wrong:
        raise StageError(
            f'{steps} policy steps need {steps + 1} states; found '
            f'{", ".join(f"{name}: {length}" for name, length in wrong.items())}. The recording '
            "lost messages; 'grape bag info' shows which."
        )
