"""Keypoints from an episode's camera: somebody says what is where first, a tracker does the rest.

    source = PerceivedSource(load_clicks('clicks.json'))
    track = source.track(read_episode('runs/bags/e0', images=False))   # origin 'perceived'

The simulator's truth is `keypoint.SceneSource`: both are a `keypoint.KeypointSource`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from grape_episode.episode import Episode
from grape_episode.rgbd import RgbdEpisode, rgbd_of
from grape_trainer.scoring.keypoint import PERCEIVED, KeypointError, KeypointTrack
from grape_trainer.scoring.keypoint_clicks import Clicks, masks_of_clicks
from grape_trainer.scoring.keypoint_height import HeightContour
from grape_trainer.scoring.keypoint_proposal import ColourContour, Proposal, Proposer
from grape_trainer.scoring.keypoint_segment_anything import SegmentAnything
from grape_trainer.scoring.keypoint_tracking import TrackingSettings, track_objects

PROPOSERS = ('height', 'colour', 'segment_anything')

# Asked once an episode: its first picture and what was proposed in it -> name -> u, v.
Chooser = Callable[[Episode, np.ndarray, tuple[Proposal, ...]], Clicks]


@dataclass(frozen=True)
class PerceivedSource:
    """Keypoints of one camera's pictures and depth.

    Attributes:
        choose: a person's clicks, or who is asked for them (a vision-language model).
        proposer: finds things in the first picture.
        camera: name in the contract; None: the policy's.
        settings: of the tracker.

    """

    choose: Clicks | Chooser
    proposer: Proposer = field(default_factory=HeightContour)
    camera: str | None = None
    settings: TrackingSettings = field(default_factory=TrackingSettings)
    origin = PERCEIVED

    def track(self, episode: Episode) -> KeypointTrack:
        """Return the chosen keypoints over T + 1 states.

        There is no picture of the state after the last action: the keypoints stay where they
        were, not visible.

        Raises:
            BagError: the episode was recorded without depth.
            KeypointError: what a click, a proposal or the tracker lacks.

        """
        if find_spec('cv2') is None:
            raise KeypointError(
                'OpenCV is not installed; keypoints from cameras need it. Run: pip install '
                'opencv-python'
            )
        seen = rgbd_of(episode, self.camera)
        if not len(seen.images):
            raise KeypointError(
                f"episode '{episode.info.episode_id}' has no picture; expected one or more."
            )
        proposals = self.propose(seen)
        clicks = self.choose
        if callable(clicks):
            clicks = clicks(episode, seen.images[0], proposals)
        masks = masks_of_clicks(clicks, proposals, seen.images[0], seen.depths_m[0], seen.camera)
        track = track_objects(seen.images, seen.depths_m, seen.camera, masks, self.settings)
        return _with_last_state(track, self.settings)

    def propose(self, seen: RgbdEpisode) -> tuple[Proposal, ...]:
        """Return what the proposer finds in the first picture."""
        return self.proposer.propose(seen.images[0], seen.depths_m[0], seen.camera)


def make_proposer(name: str, weights: Path | None = None, model: str = 'vit_b') -> Proposer:
    """Return a proposer by its name.

    Raises:
        KeypointError: an unknown name, or segment_anything without weights.

    """
    if name == 'height':
        return HeightContour()
    if name == 'colour':
        return ColourContour()
    if name != 'segment_anything':
        raise KeypointError(
            f"There is no proposer '{name}'; expected one of: {', '.join(PROPOSERS)}."
        )
    if weights is None:
        raise KeypointError(
            "proposer 'segment_anything' needs weights; give the path of a checkpoint, or take "
            "'height' or 'colour', which need none."
        )
    return SegmentAnything(Path(weights), model)


def _with_last_state(track: KeypointTrack, settings: TrackingSettings) -> KeypointTrack:
    drift = settings.hidden_sigma_m**2 * np.eye(3)
    return KeypointTrack(
        track.names,
        np.concatenate([track.positions_m, track.positions_m[-1:]]),
        PERCEIVED,
        np.concatenate([track.visible, np.zeros_like(track.visible[-1:])]),
        np.concatenate([track.covariance_m2, track.covariance_m2[-1:] + drift]),
    )
