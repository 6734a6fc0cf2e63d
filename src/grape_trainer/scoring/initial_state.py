"""How far apart two trials began: for a real robot, which never resets to the same state twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grape_episode.bag import read_episode
from grape_trainer.scoring.keypoint import KeypointSource, SceneSource


@dataclass(frozen=True)
class InitialState:
    """Where the named objects and the end effector were before the first action."""

    names: tuple[str, ...]  # sorted
    positions_m: np.ndarray  # (K, 3) float64, robot base frame
    end_effector_m: np.ndarray  # (3,) float64, robot base frame


def read_initial_state(bag: Path, source: KeypointSource | None = None) -> InitialState:
    """Return the state that a recorded trial began in.

    Args:
        bag: of the trial.
        source: of the keypoints; None: what was recorded as scene_state, privileged or perceived.

    Raises:
        BagError: a bag that cannot be read.
        KeypointError: an episode without keypoints.

    """
    episode = read_episode(bag, images=source is not None)
    track = (source or SceneSource()).track(episode)
    names = tuple(sorted(track.names))
    return InitialState(names, track.select(names)[0], episode.ee_position_m[0])


def initial_distance_m(one: InitialState, other: InitialState) -> float:
    """Return the mean distance of the objects' and the end effector's positions, m.

    Orientations are not compared. Where the objects have other names there is no distance: inf.
    """
    if one.names != other.names:
        return float('inf')
    first = np.vstack([one.positions_m, one.end_effector_m])
    second = np.vstack([other.positions_m, other.end_effector_m])
    return float(np.linalg.norm(first - second, axis=1).mean())
