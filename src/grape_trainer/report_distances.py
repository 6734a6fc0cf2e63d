"""A trial over time as its stages see it: the distance that each stage has to close.

The distances are the target constraints of scoring/cost.py (GRAPE appendix E.2.1) over the whole
trial, and the stages those that the scores were computed on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.episode import Episode
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.stage import Roles, control_rate_hz, segment

# Stage -> what its distance is between.
_LABELS = {
    'grasp': 'gripper to target',
    'transport': 'target to receptacle, horizontal',
    'place': 'target to receptacle',
}


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
    roles = Roles.from_environment(episode.info.environment)
    spans = segment(episode, track, roles, objective.segmentation).spans
    target_m, receptacle_m = track.position_m(roles.target), track.position_m(roles.receptacle)
    distances_m = {
        'grasp': np.linalg.norm(episode.ee_position_m - target_m, axis=1),
        'transport': np.linalg.norm((target_m - receptacle_m)[:, :2], axis=1),
        'place': np.linalg.norm(target_m - receptacle_m, axis=1),
    }
    lines = [
        DistanceLine(
            stage=span.stage.name,
            label=_LABELS[span.stage.name],
            distance_m=distances_m[span.stage.name],
            states=span.states if span.reached else None,
        )
        for span in spans
    ]
    time_s = np.arange(len(target_m)) / control_rate_hz(episode)
    return StageDistances(time_s, tuple(lines))
