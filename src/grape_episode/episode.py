"""What an episode is: everything else is a function of these values.

A step t pairs observation t with the action chosen on it; scene and end-effector tracks hold one
more entry, the state after the last action. On a robot a guard stands between choice and arm, and
what it let through is kept beside what was chosen.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from grape_episode.action import EndEffectorDelta, to_policy_units
from grape_episode.contract import Contract
from grape_episode.outcome import Outcome

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of an episode without reading its messages.

    Attributes:
        policy: what the policy said of itself (READY), {} for an expert.
        environment: what the environment said of itself (START): roles, limits, versions.
        contract: resolved.
        lost: messages missing at the end, topic -> count.

    """

    episode_id: str
    task: str
    instruction: str
    init_state: int
    seed: int
    temperature: float
    controller: str
    outcome: Outcome
    steps: int
    adapter_id: str
    contract: dict[str, Any]
    policy: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    code_version: str = ''
    started_at: str = ''
    lost: dict[str, int] = field(default_factory=dict)
    detail: str = ''
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back."""
        return asdict(self) | {'outcome': str(self.outcome)}

    def with_policy(self, adapter_id: str, config_json: str) -> EpisodeInfo:
        """Return this with what the policy's READY says.

        Raises:
            ValueError: config_json is no JSON object.

        """
        return replace(self, adapter_id=adapter_id, policy=config_of('READY', config_json))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EpisodeInfo:
        """Check and take plain data.

        Raises:
            ValueError: a missing or unknown key, another schema version.

        """
        version = data.get('schema_version')
        if version != SCHEMA_VERSION:
            raise ValueError(f'schema_version is {version}; this code reads {SCHEMA_VERSION}')
        known = {f.name for f in fields(cls)}
        if set(data) != known:
            raise ValueError(f'missing or unknown keys: {sorted(set(data) ^ known)}')
        return cls(**(data | {'outcome': Outcome(data['outcome'])}))


def config_of(event: str, config_json: str) -> dict[str, Any]:
    """Return an EpisodeEvent's config_json as a mapping; empty text is {}.

    Raises:
        ValueError: it is no JSON object.

    """
    try:
        config = json.loads(config_json or '{}')
    except json.JSONDecodeError as error:
        raise ValueError(f'config_json of {event} is not JSON ({error})') from error
    if not isinstance(config, dict):
        raise ValueError(f'config_json of {event} is {config!r:.80}; expected a JSON object')
    return config


@dataclass(frozen=True)
class Scene:
    """Named keypoints and contacts, T + 1 entries, in the robot's base frame."""

    names: tuple[str, ...]
    positions_m: np.ndarray  # (T+1, K, 3) float64
    quaternions_xyzw: np.ndarray  # (T+1, K, 4) float64
    gripper_opening: np.ndarray  # (T+1,) float64, measured
    grasped: tuple[tuple[str, ...], ...]
    contacts: tuple[tuple[str, ...], ...]
    collisions: tuple[tuple[str, ...], ...]
    success: np.ndarray  # (T+1,) bool
    origin: str  # privileged | perceived


@dataclass(frozen=True)
class Event:
    """One EpisodeEvent as recorded; `kind` is its constant's name in lower case."""

    kind: str
    source: str
    stamp_ns: int
    detail: str


@dataclass(frozen=True)
class Executed:
    """What the guard let through in each of T control steps, beside what was proposed.

    Where a recording broke off before the guard's answer, the deltas are NaN and the episode's
    `sources` say 'unknown'.
    """

    translation_m: np.ndarray  # (T, 3) float64
    rotation_rotvec_rad: np.ndarray  # (T, 3) float64
    gripper_command: np.ndarray  # (T,) float64 opening
    verdict: np.ndarray  # (T,) uint8, of the guard
    reasons: tuple[str, ...]  # of the verdict
    proposed_by: tuple[str, ...]  # PolicyStep's sources


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T control steps.

    `sources` says whose command the arm followed: policy, expert, teleop, or hold (nobody's).
    """

    info: EpisodeInfo
    path: Path
    stamps_ns: np.ndarray  # (T,) int64
    images: dict[str, np.ndarray]  # camera -> (T, H, W, 3) uint8 RGB as published
    translation_m: np.ndarray  # (T, 3) float64
    rotation_rotvec_rad: np.ndarray  # (T, 3) float64
    gripper_command: np.ndarray  # (T,) float64 opening
    action_token_ids: np.ndarray  # (T, 7) int64, (T, 0) where no token policy acted
    token_log_probs: np.ndarray  # (T, 7) float32, or (T, 0)
    temperature: float
    verdict: np.ndarray  # (T,) uint8, PolicyStep's constants
    latency_ms: np.ndarray  # (T,) float32
    sources: tuple[str, ...]
    ee_position_m: np.ndarray  # (T+1, 3) float64
    ee_quaternion_xyzw: np.ndarray  # (T+1, 4) float64
    joint_names: tuple[str, ...]
    joint_positions: np.ndarray  # (T+1, J) float64
    scene: Scene | None
    events: tuple[Event, ...]
    executed: Executed | None = None  # None: no guard stood between

    @property
    def contract(self) -> Contract:
        """The contract that it was recorded under."""
        return Contract.from_dict(self.info.contract, str(self.path))

    def policy_images(self, camera: str | None = None) -> np.ndarray:
        """Return (T, H', W', 3) uint8: the pictures after the contract transform."""
        contract = self.contract
        camera = camera or contract.policy_camera
        if camera not in self.images:
            raise ValueError(
                f"{self.path} was read without camera '{camera}'; it has: {list(self.images)}."
            )
        return np.stack([contract.apply_image(camera, raw) for raw in self.images[camera]])

    def as_executed(self) -> Episode:
        """Return this with the executed deltas in the place of the proposed ones."""
        if self.executed is None:
            return self
        return replace(
            self,
            translation_m=self.executed.translation_m,
            rotation_rotvec_rad=self.executed.rotation_rotvec_rad,
            gripper_command=self.executed.gripper_command,
        )

    def policy_actions(self) -> np.ndarray:
        """Return (T, 7) float64 in policy units."""
        spec = self.contract.action
        deltas = zip(
            self.translation_m, self.rotation_rotvec_rad, self.gripper_command, strict=True
        )
        rows = [to_policy_units(EndEffectorDelta(*delta), spec) for delta in deltas]
        return np.array(rows, dtype=np.float64).reshape(-1, 7)


def policy_steps(episode: Episode) -> np.ndarray:
    """Return (T,) bool: the arm did what the policy chose; no person and no hold came between."""
    return np.array([source == 'policy' for source in episode.sources], bool)
