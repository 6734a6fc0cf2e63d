"""What the guard is told and what it answers: values without ROS."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from grape_bringup.robot.arm import ArmTarget
from grape_episode.action import EndEffectorDelta

POLICY, TELEOP, HOLD = 'policy', 'teleop', 'hold'


class GuardMode(IntEnum):
    """The values of GuardState.msg."""

    DISARMED = 0
    ARMED = 1
    INTERVENED = 2
    PAUSED = 3
    STOPPED = 4
    FAULT = 5


class Verdict(IntEnum):
    """The values of PolicyStep.msg."""

    OK = 0
    CLAMPED = 1
    HELD = 2


@dataclass(frozen=True)
class Now:
    """One moment on both clocks: monotonic for silence, the node's for stamps."""

    monotonic_s: float
    clock_ns: int


@dataclass(frozen=True)
class Finding:
    """What a rule found; `rule` is its name in diagnostics and documentation."""

    rule: str
    text: str


@dataclass(frozen=True)
class Step:
    """A control step to answer: a PolicyStep, or an observation of a teleoperated episode."""

    stamp_ns: int  # of the observation
    frame_id: str
    episode_id: str
    step: int
    delta: EndEffectorDelta
    source: str = POLICY
    verdict: Verdict = Verdict.OK  # of the policy's own gate
    reason: str = ''


@dataclass(frozen=True)
class Observation:
    """A picture came that a control step begins with."""

    stamp_ns: int


@dataclass(frozen=True)
class EpisodeStart:
    """START."""

    episode_id: str
    controller: str


@dataclass(frozen=True)
class EpisodeEnd:
    """STOP, or an ERROR after which nobody may go on."""

    episode_id: str
    why: str


@dataclass(frozen=True)
class EmergencyStop:
    """Stop at once, and stay so."""

    why: str


@dataclass(frozen=True)
class Teleop:
    """What a person asks: velocities in the base frame."""

    arrived_s: float
    is_engaged: bool
    linear_m_s: np.ndarray  # (3,)
    angular_rad_s: np.ndarray  # (3,)
    gripper_opening: float  # NaN: as it is


@dataclass(frozen=True)
class Deadman:
    """The deadman switch."""

    arrived_s: float
    is_pressed: bool


@dataclass(frozen=True)
class Latest:
    """What only the newest of counts."""

    teleop: Teleop | None = None
    deadman: Deadman | None = None
    publishers: str = ''  # why the guard is not the only one who commands; empty: it is


@dataclass(frozen=True)
class Executed:
    """The answer to a step: what was done from it to the next one."""

    step: Step
    delta: EndEffectorDelta
    source: str  # policy (or who the step is by), teleop, hold
    verdict: Verdict
    reason: str
    latency_s: float  # observation -> first target sent to the arm; 0: none


@dataclass
class Outcome:
    """What is to be done after one tick."""

    target: ArmTarget | None = None
    hold: bool = False
    recover: bool = False  # the arm
    recover_gripper: bool = False
    gripper: float | None = None
    executed: list[Executed] = field(default_factory=list)
    interventions: list[tuple[str, str]] = field(default_factory=list)  # begin | end, episode id
    acted: Step | None = None  # whose command the target follows from now on
