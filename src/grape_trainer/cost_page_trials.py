"""Recorded trials as the page about a cost program shows them: frames at the stages' boundaries.

One trial is read at a time, and only its few frames are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from grape_episode.bag import BagError, read_episode
from grape_episode.camera import CameraGeometry
from grape_episode.episode import Episode
from grape_episode.rgbd import recorded_camera
from grape_trainer.cost_page_plots import timeline_plot
from grape_trainer.frame_overlay import (
    END_EFFECTOR,
    OBSTACLE,
    RECEPTACLE,
    TARGET,
    NamedPoint,
    frame_svg,
    project_points,
)
from grape_trainer.scoring.cost import keypoint_names
from grape_trainer.scoring.cost_examples import Example
from grape_trainer.scoring.cost_program import CostFunction
from grape_trainer.scoring.cost_review import Trial
from grape_trainer.scoring.keypoint import KeypointSource, KeypointTrack
from grape_trainer.scoring.stage import StageSpan, control_rate_hz
from grape_trainer.scoring.stage_definition import declared_passable

PLACES = ('start', 'middle', 'end')
NO_CAMERA = 'No camera geometry in this bag: keypoints are not drawn.'


@dataclass(frozen=True)
class ShownFrame:
    """One state of a stage."""

    place: str  # one of PLACES
    state: int
    time_s: float
    svg: Markup | None  # None: no picture in the bag
    costs: tuple[tuple[str, float], ...]  # (function, its cost at this state)


@dataclass(frozen=True)
class ShownStage:
    """One stage of a trial."""

    number: int
    name: str
    completed: bool
    frames: tuple[ShownFrame, ...]  # () where it was never reached
    legend: tuple[NamedPoint, ...]


@dataclass(frozen=True)
class ShownTrial:
    """One trial in pictures; `problem` says what of it cannot be shown."""

    why: str
    name: str
    success: bool
    instruction: str
    timeline: Markup
    stages: tuple[ShownStage, ...]
    problems: tuple[str, ...]


def show_trial(
    example: Example, functions: Sequence[CostFunction], source: KeypointSource
) -> ShownTrial:
    """Read a trial with its pictures and keep what the page shows.

    Raises:
        BagError, StageError, KeypointError: the bag has changed since its costs were computed.

    """
    trial, problems = example.trial, []
    try:
        episode = read_episode(trial.bag)
        images = _upright(episode)
    except BagError as error:
        episode, images = read_episode(trial.bag, images=False), None
        problems.append(f'No frames: {error}')
    camera, problem = (None, '') if images is None else _camera(episode)
    problems += [problem] if problem else []
    recording = _Recording(
        episode, source.track(episode), images, camera, control_rate_hz(episode)
    )
    return ShownTrial(
        why=example.why,
        name=trial.name,
        success=trial.success,
        instruction=episode.info.instruction,
        timeline=Markup(timeline_plot(trial, functions, recording.rate_hz)),
        stages=tuple(_stage(recording, trial, span, functions) for span in trial.spans),
        problems=tuple(problems),
    )


@dataclass(frozen=True)
class _Recording:
    episode: Episode
    track: KeypointTrack
    images: np.ndarray | None  # (T, H, W, 3) uint8 RGB, turned, not cropped
    camera: CameraGeometry | None  # of these pictures
    rate_hz: float


def _upright(episode: Episode) -> np.ndarray:
    """Return the policy camera's pictures as a person looks at them."""
    contract = episode.contract
    images = episode.images[contract.policy_camera]
    is_turned = contract.cameras[contract.policy_camera].transform.rotate_deg == 180
    return images[:, ::-1, ::-1] if is_turned else images


def _camera(episode: Episode) -> tuple[CameraGeometry | None, str]:
    """Return the camera of the pictures, or None and why no keypoint is drawn."""
    try:
        camera = recorded_camera(episode)
    except BagError as error:
        return None, f'Keypoints are not drawn: {error}'
    return camera, '' if camera else NO_CAMERA


def _stage(
    recording: _Recording, trial: Trial, span: StageSpan, functions: Sequence[CostFunction]
) -> ShownStage:
    stage = span.stage
    if not span.reached:
        return ShownStage(stage.number, stage.name, span.completed, (), ())
    costs = {
        function.name: trial.costs[function.name]
        for function in functions
        if function.stage == stage.number
    }
    frames = []
    states = (span.start, (span.start + span.stop) // 2, span.stop)
    for place, state in zip(PLACES, states, strict=True):
        values = ((name, float(curve[state - span.start])) for name, curve in costs.items())
        svg = _picture(recording, span, state, f'Stage {stage.name}, {place}')
        time_s = state / recording.rate_hz
        frames.append(ShownFrame(place, state, time_s, svg, tuple(values)))
    legend = _points(recording, span, span.start)
    return ShownStage(stage.number, stage.name, span.completed, tuple(frames), legend)


def _picture(recording: _Recording, span: StageSpan, state: int, alt: str) -> Markup | None:
    """Return the picture of a state; the last state has none, the one before stands for it."""
    if recording.images is None:
        return None
    taken = min(state, len(recording.images) - 1)
    marks = ()
    if recording.camera is not None:
        marks = project_points(_points(recording, span, taken), recording.camera)
    return Markup(frame_svg(recording.images[taken], marks, alt))


def _points(recording: _Recording, span: StageSpan, state: int) -> tuple[NamedPoint, ...]:
    """Return the keypoints as the costs of a stage number them, and the end effector."""
    track = recording.track
    passable = declared_passable(recording.episode.info.environment)
    points = []
    for number, name in enumerate(keypoint_names(track, span.roles, passable)):
        if number == 1 and not span.roles.receptacle:
            continue  # keypoint 1 is the target again
        role = {0: TARGET, 1: RECEPTACLE}.get(number, OBSTACLE)
        is_seen = bool(track.visible[state, track.names.index(name)])
        points.append(NamedPoint(str(number), name, role, track.position_m(name)[state], is_seen))
    effector_m = recording.episode.ee_position_m[state]
    return (*points, NamedPoint('E', 'end effector', END_EFFECTOR, effector_m))
