"""ROS messages <-> arrays: the camera image in, the policy step and the events out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, Vector3
from grape.msg import EpisodeEvent, PolicyStep
from sensor_msgs.msg import Image, JointState

from grape_policy_node.backend import Decision, Player, Start
from grape_policy_node.safety import Gated

SOURCE = 'policy'


class ImageError(ValueError):
    """An image message that is not what the contract says."""


@dataclass
class RunningEpisode:
    """The episode that the policy acts in, from START to STOP.

    Attributes:
        start: as START says.
        player: chooses the actions.
        temperature: that is recorded; NaN where the policy samples as it likes.
        step: control steps taken.
        gripper_opening: as last commanded; held when a command is refused.
    """

    start: Start
    player: Player = field(repr=False)
    temperature: float
    step: int = 0
    gripper_opening: float = 1.0

    @property
    def episode_id(self) -> str:
        """The episode's name."""
        return self.start.episode_id


def read_start(event: EpisodeEvent, latched_instruction: str) -> Start:
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
    return Start(event.episode_id, instruction, float(event.temperature), int(event.seed))


def stamp_ns(message: Image | PoseStamped | JointState) -> int:
    """Return a message's stamp."""
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def position_and_quaternion(message: PoseStamped) -> tuple[list[float], list[float]]:
    """Return a pose as (x, y, z) m and (x, y, z, w)."""
    at, turn = message.pose.position, message.pose.orientation
    return [at.x, at.y, at.z], [turn.x, turn.y, turn.z, turn.w]


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
    decision: Decision,
    gated: Gated,
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
    step.action_token_ids = [int(token) for token in decision.token_ids]
    step.token_log_probs = [float(value) for value in decision.log_probs]
    step.temperature = episode.temperature
    step.adapter_id = decision.adapter_id
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


def diagnostics(hardware: str, problem: str, values: dict[str, object]) -> DiagnosticArray:
    """Return the node's status; a problem makes it a warning."""
    status = DiagnosticStatus(name='policy_node: inference', hardware_id=hardware)
    status.level = DiagnosticStatus.WARN if problem else DiagnosticStatus.OK
    status.message = problem or 'ok'
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticArray(status=[status])


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
