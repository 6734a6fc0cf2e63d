"""Where the things that a task names were, at every step of an episode.

A keypoint is followed through the whole episode; it is never a pose taken at reset and kept. Here
the positions come from the recorded SceneState; a tracker's positions go behind the same
`KeypointTrack`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.episode import Scene


class KeypointError(ValueError):
    """Keypoints that cannot be used; the text names the keypoint, the step and what to do."""


@dataclass(frozen=True)
class KeypointTrack:
    """K keypoints over the T + 1 states of an episode of T steps, in the robot base frame."""

    names: tuple[str, ...]
    positions_m: np.ndarray  # (T+1, K, 3) float64, finite
    origin: str  # 'privileged' (simulator truth) or 'perceived' (from cameras)

    def __post_init__(self) -> None:
        """Check the shape, the names and that every number is finite."""
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


def track_from_scene(scene: Scene) -> KeypointTrack:
    """Return the keypoints that the environment recorded.

    Raises:
        KeypointError: a position that is not finite, or names that repeat.

    """
    positions_m = np.asarray(scene.positions_m, dtype=np.float64)
    return KeypointTrack(tuple(scene.names), positions_m, str(scene.origin))
