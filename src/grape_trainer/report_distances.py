"""A trial over time as its stages see it: the distance that each stage has to close.

The distances are the target constraints of scoring/cost.py (GRAPE appendix E.2.1) over the whole
trial, and the stages those that the scores were computed on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.episode import Episode
from grape_trainer.scoring.keypoint import KeypointTrack, track_from_scene
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.stage import Roles, control_rate_hz, segment_plan
from grape_trainer.scoring.stage_plan import plan_for

# The event that ends a stage -> what its distance is between; all others: _TRAVEL.
_LABELS = {
    'grasped': 'gripper to target',
    'reached': 'gripper to target',
    'arrived': 'target to receptacle, horizontal',
    'placed': 'target to receptacle',
    'stacked': 'target to receptacle',
}
_TRAVEL = 'target from where it was'


@dataclass(frozen=True)
class DistanceLine:
    """One stage's distance over all T + 1 states."""

    stage: str
    label: str
    distance_m: np.ndarray  # (T+1,)
    states: slice | None  # the stage's own states; None: never reached


@dataclass(frozen=True)
class StageDistances:
    """The distances of one trial."""

    time_s: np.ndarray  # (T+1,)
    lines: tuple[DistanceLine, ...]


def stage_distances(episode: Episode, objective: Objective) -> StageDistances | None:
    """Return the distances of an episode's stages; None where no scene was recorded.

    Raises:
        KeypointError, StageError: a scene or roles that cannot be used.

    """
    if episode.scene is None:
        return None
    track = track_from_scene(episode.scene)
    plan = plan_for(episode.info, track.names, objective.template)
    cut = segment_plan(episode, track, plan, objective.segmentation, objective.motion)
    lines = [
        DistanceLine(
            stage=span.stage.name,
            label=_LABELS.get(span.stage.ends, _TRAVEL),
            distance_m=_distance_m(episode, track, span.roles, span.stage.ends),
            states=span.states if span.reached else None,
        )
        for span in cut.spans
    ]
    time_s = np.arange(len(track.positions_m)) / control_rate_hz(episode)
    return StageDistances(time_s, tuple(lines))


def _distance_m(episode: Episode, track: KeypointTrack, roles: Roles, ends: str) -> np.ndarray:
    """Return the (T+1,) distance that a stage with this end has to close, or to open."""
    target_m = track.position_m(roles.target)
    label = _LABELS.get(ends, _TRAVEL)
    if label == _TRAVEL:
        return np.linalg.norm(target_m - target_m[0], axis=1)
    if label == _LABELS['reached']:
        return np.linalg.norm(episode.ee_position_m - target_m, axis=1)
    offset_m = target_m - track.position_m(roles.receptacle)
    return np.linalg.norm(offset_m[:, :2] if ends == 'arrived' else offset_m, axis=1)
