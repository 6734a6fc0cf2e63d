"""ROS messages <-> arrays: the camera image in, the policy step and the events out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import torch
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Vector3
from grape.msg import EpisodeEvent, PolicyStep
from sensor_msgs.msg import Image

from grape_policy_node.engine import Prediction
from grape_policy_node.safety import Gated

SOURCE = 'policy'


class ImageError(ValueError):
    """An image message that is not what the contract says."""


@dataclass
class RunningEpisode:
    """The episode that the policy acts in, from START to STOP.

    Attributes:
        episode_id, instruction, temperature: as START says.
        generator: seeded with START's seed; the same seed plays the same episode again.
        step: control steps taken.
        gripper_opening: as last commanded; held when a command is refused.
    """

    episode_id: str
    instruction: str
    temperature: float
    generator: torch.Generator = field(repr=False)
    step: int = 0
    gripper_opening: float = 1.0

    @classmethod
    def from_start(cls, event: EpisodeEvent, latched_instruction: str) -> RunningEpisode:
        """Read START; without an instruction in it, the latched topic's counts.

        Raises:
            ValueError: no instruction at all, or a temperature below 0.
        """
        instruction = event.instruction or latched_instruction
        if not instruction.strip():
            raise ValueError(
                'START has no instruction and none was published on the instruction topic'
            )
        if not event.temperature >= 0.0:
            raise ValueError(f'START has temperature {event.temperature}; expected 0 or more')
        return cls(
            episode_id=event.episode_id,
            instruction=instruction,
            temperature=float(event.temperature),
            generator=torch.Generator().manual_seed(int(event.seed)),
        )


def image_array(message: Image, encoding: str) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of an image message, without copying them."""
    if message.encoding != encoding:
        raise ImageError(
            f"the image has encoding '{message.encoding}'; the contract says '{encoding}'"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    rows, row_bytes = message.height, message.step
    if data.size != rows * row_bytes or row_bytes < 3 * message.width:
        raise ImageError(
            f'the image has {data.size} bytes in {rows} rows of {row_bytes}; expected '
            f'{message.height} x {message.width} pixels of 3 bytes'
        )
    return data.reshape(rows, row_bytes)[:, : 3 * message.width].reshape(rows, message.width, 3)


def policy_step(
    stamp: Time,
    frame_id: str,
    episode: RunningEpisode,
    prediction: Prediction,
    gated: Gated,
    adapter_id: str,
) -> PolicyStep:
    """Fill a PolicyStep; the latency is set when it is published."""
    step = PolicyStep()
    step.header.stamp = stamp
    step.header.frame_id = frame_id
    step.episode_id = episode.episode_id
    step.step = episode.step
    step.delta_translation = _vector(gated.command.translation_m)
    step.delta_rotation = _vector(gated.command.rotation_rotvec_rad)
    step.gripper_opening = float(gated.command.gripper_opening)
    step.action_token_ids = [int(token) for token in prediction.token_ids]
    step.token_log_probs = [float(value) for value in prediction.log_probs]
    step.temperature = episode.temperature
    step.adapter_id = adapter_id
    step.source = SOURCE
    step.verdict = int(gated.verdict)
    step.verdict_reason = gated.reason
    return step


def answer(
    start: EpisodeEvent, kind: int, adapter_id: str, config: dict[str, object], detail: str = ''
) -> EpisodeEvent:
    """Return the policy's answer to START: READY with its configuration, or ERROR with why."""
    event = EpisodeEvent()
    event.kind = kind
    event.source = SOURCE
    event.episode_id = start.episode_id
    event.task = start.task
    event.instruction = start.instruction
    event.init_state = start.init_state
    event.seed = start.seed
    event.temperature = start.temperature
    event.controller = start.controller
    event.adapter_id = adapter_id
    event.config_json = json.dumps(config, sort_keys=True)
    event.detail = detail
    return event


def error_event(episode: RunningEpisode, adapter_id: str, detail: str) -> EpisodeEvent:
    """Return the event that ends an episode in which the policy could not go on."""
    event = EpisodeEvent()
    event.kind = EpisodeEvent.ERROR
    event.source = SOURCE
    event.episode_id = episode.episode_id
    event.steps = episode.step
    event.adapter_id = adapter_id
    event.detail = detail
    return event


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = (float(value) for value in values)
    return Vector3(x=x, y=y, z=z)
