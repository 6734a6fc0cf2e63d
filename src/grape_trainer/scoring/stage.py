"""Where the stages of a task begin and end in a recorded episode (GRAPE Eq. 7).

A plan says which stages a task has and who plays which part (stage_plan.py picks one, from
stage_templates.py or from what a VLM proposed); `segment_plan` cuts an episode of T steps, which
has the states 0 .. T, at the events that end the stages (stage_events.py). For pick-and-place:

    grasp [0, g]    transport [g, a]    place [a, T]

The spans are monotone in time, share their boundary state and cover the episode, whatever was
tried again (stage_cut.py): a trial that drops the object and grasps it again is cut at the first
grasp that carried the object to the receptacle, or at its last grasp if none did. A stage that a
trial never reaches has no span; cost.py charges its worst cost.

Each stage can be reached, and is tested to be: the published implementation's third branch is
shadowed by its second, so that its stage 3 always costs 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.episode import Episode
from grape_trainer.scoring.keypoint import KeypointTrack
from grape_trainer.scoring.stage_cut import Cut, best_order, cut
from grape_trainer.scoring.stage_definition import (
    PlannedStage,
    Roles,
    Stage,
    StageError,
    StagePlan,
)
from grape_trainer.scoring.stage_events import Event, event
from grape_trainer.scoring.stage_signals import MotionSettings, SegmentSettings, TrialSignals
from grape_trainer.scoring.stage_templates import PICK_PLACE, TEMPLATES

__all__ = [
    'PICK_PLACE',
    'TEMPLATES',
    'MotionSettings',
    'PlannedStage',
    'Roles',
    'SegmentSettings',
    'Segmentation',
    'Stage',
    'StageError',
    'StagePlan',
    'StageSpan',
    'control_rate_hz',
    'segment',
    'segment_plan',
]


@dataclass(frozen=True)
class StageSpan:
    """The states start .. stop (both included) of one stage; None where it was never reached."""

    stage: Stage
    start: int | None
    stop: int | None
    completed: bool
    roles: Roles

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
    """An episode cut into the stages of its plan, in the order in which they were done."""

    spans: tuple[StageSpan, ...]
    holds: tuple[np.ndarray, ...]  # one a span: (T+1,) bool, its target is in the gripper
    progress: tuple[np.ndarray, ...]  # one a span: (T+1,) 0 .. 1, towards the event that ends it
    grasps: int  # how often a target was grasped
    drops: int  # grasps that ended before the target arrived, without the episode's end

    @property
    def held(self) -> np.ndarray:
        """(T+1,) bool, the first target is in the gripper, touches and flickers removed."""
        return self.holds[0]


def segment(
    episode: Episode, track: KeypointTrack, roles: Roles, settings: SegmentSettings
) -> Segmentation:
    """Cut a pick-and-place episode into grasp, transport and place.

    Raises:
        StageError: no steps, or arrays whose lengths do not belong together.
        KeypointError: a role that names no recorded keypoint.

    """
    link = tuple(PlannedStage(stage, roles) for stage in PICK_PLACE)
    plan = StagePlan('pick_place', (link,), any_order=False, reason='given')
    return segment_plan(episode, track, plan, settings)


def segment_plan(
    episode: Episode,
    track: KeypointTrack,
    plan: StagePlan,
    settings: SegmentSettings,
    motion: MotionSettings | None = None,
) -> Segmentation:
    """Cut an episode into the stages of a plan.

    Where the plan's links may be done in any order, they are cut in the order in which the trial
    completed most stages.

    Args:
        episode: with a recorded scene, or without one (no contacts are known then).
        track: its keypoints.
        plan: the stages, and who plays which part.
        settings: thresholds of grasps and arrivals.
        motion: thresholds of other events; may be None for pick-and-place.

    Raises:
        StageError: no steps, lengths that do not belong together, or an event that needs
            something that was not recorded.
        KeypointError: a role that names no recorded keypoint.

    """
    _check_lengths(episode, track)
    trial = TrialSignals(episode, track, settings, motion, control_rate_hz(episode))
    links = [[event(trial, p.stage.ends, p.roles) for p in link] for link in plan.links]
    order = tuple(range(len(links)))
    if plan.any_order and len(links) > 1:
        order = best_order([[found.condition for found in link] for link in links])
    planned = [stage for index in order for stage in plan.links[index]]
    events = [found for index in order for found in links[index]]
    grasps, drops = _grasp_counts(trial, planned)
    return Segmentation(
        spans=_spans(planned, cut([found.condition for found in events]), trial.last),
        holds=tuple(trial.holds(p.roles.target)[0] for p in planned),
        progress=tuple(_reached_so_far(found) for found in events),
        grasps=grasps,
        drops=drops,
    )


def control_rate_hz(episode: Episode) -> float:
    """Return the control rate of the recorded contract; StageError where it has none."""
    rate = episode.info.contract.get('control_rate_hz')
    if not isinstance(rate, int | float) or not rate > 0:
        raise StageError(
            f"the recorded contract's control_rate_hz is {rate!r}; expected a positive number. "
            'Record the episode with a contract that states it.'
        )
    return float(rate)


def _spans(planned: list[PlannedStage], found: Cut, last: int) -> tuple[StageSpan, ...]:
    spans = []
    start: int | None = 0
    for index, (item, end) in enumerate(zip(planned, (*found.ends, None), strict=True), start=1):
        completed = found.finished if index == len(planned) else end is not None
        stop = None if start is None else last if end is None else end
        spans.append(StageSpan(item.stage, start, stop, completed, item.roles))
        start = end
    return tuple(spans)


def _reached_so_far(found: Event) -> np.ndarray:
    """Return the progress; of a momentary event (a button springs back) the most so far."""
    if found.condition.lasting:
        return found.progress
    return np.maximum.accumulate(found.progress)


def _grasp_counts(trial: TrialSignals, planned: list[PlannedStage]) -> tuple[int, int]:
    """Return the grasps of all targets that are to be grasped, and drops of the carried ones."""
    targets = dict.fromkeys(p.roles.target for p in planned if p.stage.ends == 'grasped')
    grasps = sum(len(trial.holds(target)[1]) for target in targets)
    drops = 0
    for roles in dict.fromkeys(p.roles for p in planned if p.stage.ends == 'arrived'):
        arrived = trial.arrived(roles)
        _, holds = trial.holds(roles.target)
        for index, (start, stop) in enumerate(holds):
            following = holds[index + 1][0] if index + 1 < len(holds) else trial.last + 1
            drops += bool(not arrived[start:following].any() and stop < trial.last)
    return grasps, drops


def _check_lengths(episode: Episode, track: KeypointTrack) -> None:
    steps = len(episode.gripper_command)
    if steps == 0:
        raise StageError(
            'the episode has no control step; expected one or more. Leave it out, or record it '
            'again.'
        )
    lengths = {'scene_state': len(track.positions_m)}
    if episode.scene is not None:
        lengths['grasped'] = len(episode.scene.grasped)
        lengths['collisions'] = len(episode.scene.collisions)
    lengths['ee_pose'] = len(episode.ee_position_m)
    wrong = {name: length for name, length in lengths.items() if length != steps + 1}
    if wrong:
        raise StageError(
            f'{steps} policy steps need {steps + 1} states; found '
            f'{", ".join(f"{name}: {length}" for name, length in wrong.items())}. The recording '
            "lost messages; 'grape bag info' shows which."
        )
