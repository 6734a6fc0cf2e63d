"""Where the things that a task names were, at every step of an episode.

A keypoint is followed through the whole episode; it is never a pose taken at reset and kept. It
comes from the recorded SceneState (`SceneSource`), or from cameras (keypoint_source.py); both are
a `KeypointSource` and give a `KeypointTrack`, which says which of the two it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from grape_episode.episode import Episode, Scene

PRIVILEGED, PERCEIVED = 'privileged', 'perceived'


class KeypointError(ValueError):
    """Keypoints that cannot be used; the text names the keypoint, the step and what to do."""


@dataclass(frozen=True)
class KeypointTrack:
    """K keypoints over the T + 1 states of an episode of T steps, in the robot base frame.

    Where a keypoint is not visible its position is the best guess, and its covariance says so.
    """

    names: tuple[str, ...]
    positions_m: np.ndarray  # (T+1, K, 3) float64, finite
    origin: str  # 'privileged' (simulator truth) or 'perceived' (from cameras)
    visible: np.ndarray | None = None  # (T+1, K) bool; None becomes: all visible
    covariance_m2: np.ndarray | None = None  # (T+1, K, 3, 3) float64; None becomes: zero

    def __post_init__(self) -> None:
        """Check shapes, names and origin, and that every number is finite; fill the defaults."""
        if self.origin not in (PRIVILEGED, PERCEIVED):
            raise KeypointError(
                f"the keypoints' origin is '{self.origin}'; expected '{PRIVILEGED}' or "
                f"'{PERCEIVED}'."
            )
        expected = (len(self.positions_m), len(self.names), 3)
        if self.positions_m.shape != expected:
            raise KeypointError(
                f'keypoint positions have shape {self.positions_m.shape}; expected {expected} '
                f'for the {len(self.names)} names {", ".join(self.names)}.'
            )
        if len(set(self.names)) != len(self.names):
            raise KeypointError(f'keypoint names repeat: {", ".join(self.names)}.')
        bad = np.argwhere(~np.isfinite(self.positions_m))
        if len(bad):
            step, index, axis = bad[0]
            value = self.positions_m[step, index, axis]
            raise KeypointError(
                f"keypoint '{self.names[index]}' is {value} ({'xyz'[axis]}) at step {step}, and "
                f'{len(bad)} numbers in all are not finite; expected metres at every step. '
                'Record the episode again, or repair its scene_state.'
            )
        self._fill('visible', np.bool_, (), True)
        self._fill('covariance_m2', np.float64, (3, 3), 0.0)

    def _fill(self, name: str, dtype: type, cell: tuple[int, ...], default: object) -> None:
        """Set what was left out and check the shape of what was given."""
        shape = (*self.positions_m.shape[:2], *cell)
        value = getattr(self, name)
        value = np.full(shape, default, dtype) if value is None else np.asarray(value, dtype)
        if value.shape != shape or not np.isfinite(value).all():
            raise KeypointError(
                f'{name} of the keypoints has the shape {value.shape}; expected finite numbers of '
                f'the shape {shape}.'
            )
        object.__setattr__(self, name, value)

    def position_m(self, name: str) -> np.ndarray:
        """Return (T+1, 3) positions of one keypoint; KeypointError lists the names there are."""
        if name not in self.names:
            raise KeypointError(
                f"keypoint '{name}' is not in the recorded scene; it has: "
                f"{', '.join(self.names)}. Name one of these in the environment's roles."
            )
        return self.positions_m[:, self.names.index(name)]

    def select(self, names: tuple[str, ...]) -> np.ndarray:
        """Return (T+1, len(names), 3) positions in the order asked for."""
        return np.stack([self.position_m(name) for name in names], axis=1)


class KeypointSource(Protocol):
    """Gives the keypoints of an episode, whatever they come from."""

    origin: str  # 'privileged' or 'perceived'

    def track(self, episode: Episode) -> KeypointTrack:
        """Return T + 1 states of every keypoint.

        Raises:
            KeypointError: the episode lacks what this source needs; the text says what.

        """


class SceneSource:
    """The simulator's truth, or what another tracker published as SceneState."""

    origin = PRIVILEGED

    def track(self, episode: Episode) -> KeypointTrack:
        """Return the recorded keypoints; KeypointError without scene_state."""
        if episode.scene is None:
            raise KeypointError(
                f"episode '{episode.info.episode_id}' has no scene_state. Record with the "
                'scene_state topic in the contract, or take keypoints from its cameras '
                '(docs/reference/keypoints.md).'
            )
        return track_from_scene(episode.scene)


def track_from_scene(scene: Scene) -> KeypointTrack:
    """Return the keypoints that the environment recorded.

    Raises:
        KeypointError: a position that is not finite, or names that repeat.

    """
    positions_m = np.asarray(scene.positions_m, dtype=np.float64)
    return KeypointTrack(tuple(scene.names), positions_m, str(scene.origin))
