"""Pictures of trials for the report: a GIF and a contact sheet, small enough to be inlined.

The frames are what the policy saw (the contract's transform applied), read from the bag.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from grape_episode.bag import BagError, read_episode
from grape_episode.contract import ContractError
from grape_episode.episode import Episode
from grape_episode.label import effective_outcome
from grape_trainer.report_distances import StageDistances, stage_distances
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.stage import StageError, control_rate_hz

SHEET_FRAMES = 12
SHEET_WIDTH_PX = 112
GIF_FRAMES = 40
GIF_WIDTH_PX = 144
GIF_COLOURS = 96
GIF_LONGEST_S = 8.0


class MediaError(ValueError):
    """A trial that can't be shown; the text names the bag and says why."""


@dataclass(frozen=True)
class Frame:
    """One picture of a contact sheet."""

    uri: str  # data: URI, JPEG
    step: int
    time_s: float
    stage: str  # empty where the stages are not known


@dataclass(frozen=True)
class Film:
    """One trial in pictures."""

    episode_id: str
    task: str
    instruction: str
    init_state: int
    outcome: str
    steps: int
    duration_s: float
    gif_uri: str
    gif_speed: float  # times real time
    still_uri: str  # the last frame, for readers who prefer no motion
    frames: tuple[Frame, ...]
    distances: StageDistances | None
    distances_problem: str


def film(bag: Path, objective: Objective | None) -> Film:
    """Make the pictures of one recorded trial.

    Args:
        bag: bag folder.
        objective: what the trials were scored for; its stages name the frames. None: no stages.

    Raises:
        MediaError: a bag that cannot be read, or that has no images.

    """
    try:
        episode = read_episode(bag)
        if len(episode.stamps_ns) == 0:
            raise MediaError(f"The trial in '{bag}' has no images.")
        images = episode.policy_images()
        rate_hz = control_rate_hz(episode)
    except (BagError, ContractError, StageError, OSError) as error:
        raise MediaError(f"The trial in '{bag}' cannot be shown: {error}") from error
    distances, problem = _distances(episode, objective)
    duration_s = len(images) / rate_hz
    gif, speed = _gif(images, duration_s)
    return Film(
        episode_id=episode.info.episode_id,
        task=episode.info.task,
        instruction=episode.info.instruction,
        init_state=episode.info.init_state,
        outcome=effective_outcome(bag),
        steps=episode.info.steps,
        duration_s=duration_s,
        gif_uri=_data_uri('image/gif', gif),
        gif_speed=speed,
        still_uri=jpeg_uri(images[-1], GIF_WIDTH_PX),
        frames=tuple(
            Frame(jpeg_uri(images[t], SHEET_WIDTH_PX), t, t / rate_hz, _stage_at(distances, t))
            for t in spread_indices(len(images), SHEET_FRAMES)
        ),
        distances=distances,
        distances_problem=problem,
    )


def spread_indices(length: int, count: int) -> list[int]:
    """Return at most `count` of 0..length-1, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, length - 1, min(count, length))})


def jpeg_uri(image: np.ndarray, width_px: int) -> str:
    """Return (H, W, 3) uint8 RGB as a JPEG data URI, not wider than that."""
    buffer = io.BytesIO()
    _resized(image, width_px).save(buffer, 'JPEG', quality=85)
    return _data_uri('image/jpeg', buffer.getvalue())


def _distances(episode: Episode, objective: Objective | None) -> tuple[StageDistances | None, str]:
    if objective is None:
        return None, 'the objective that the trials were scored for is not known'
    try:
        found = stage_distances(episode, objective)
    except (StageError, KeypointError) as error:
        return None, str(error)
    return found, '' if found else 'the bag has no scene_state'


def _stage_at(distances: StageDistances | None, state: int) -> str:
    for line in distances.lines if distances else ():
        # Neighbouring stages share a state; it is the earlier one's end.
        if line.states is not None and line.states.start <= state < line.states.stop:
            return line.stage
    return ''


def _gif(images: np.ndarray, duration_s: float) -> tuple[bytes, float]:
    """Return an endless GIF and how much faster than real time it plays."""
    shown = spread_indices(len(images), GIF_FRAMES)
    played_s = min(duration_s, GIF_LONGEST_S)
    frames = [_resized(images[t], GIF_WIDTH_PX) for t in shown]
    # One palette for all frames: no flicker, and a smaller file.
    joined = Image.fromarray(
        np.concatenate([np.asarray(f) for f in frames[:: len(frames) // 8 + 1]])
    )
    palette = joined.quantize(GIF_COLOURS, method=Image.Quantize.MEDIANCUT)
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    # GIF counts in hundredths of a second; the last frame stays for a second.
    each_ms = max(20, round(100 * played_s / len(shown)) * 10)
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        'GIF',
        save_all=True,
        append_images=frames[1:],
        duration=[each_ms] * (len(frames) - 1) + [1000],
        loop=0,
        optimize=False,
    )
    return buffer.getvalue(), duration_s / (each_ms * len(shown) / 1000)


def _resized(image: np.ndarray, width_px: int) -> Image.Image:
    """Return (H, W, 3) uint8 RGB as a picture of that width; a smaller one keeps its size."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    if picture.width <= width_px:
        return picture
    height_px = max(1, round(picture.height * width_px / picture.width))
    return picture.resize((width_px, height_px), Image.Resampling.LANCZOS)


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'
