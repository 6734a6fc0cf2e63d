"""A kinematic arm and gripper without hardware: for dry runs, demonstrations and tests.

The arm follows its targets with a lag, as a compliant controller does, and can be told to fail in
the ways that a real one fails. It records what it was told.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmMode, ArmState, ArmTarget, Pose
from grape_bringup.robot.arm_command import HoldPoint, check_ready, checked
from grape_bringup.robot.gripper import GripperError, GripperState

HOME = Pose(np.array([0.45, 0.0, 0.35]), np.array([1.0, 0.0, 0.0, 0.0]))  # tool looks down
JOINTS = ('fake_x', 'fake_y', 'fake_z', 'fake_turn_x', 'fake_turn_y', 'fake_turn_z')
TROUBLES = {
    'reflex': ArmMode.REFLEX,
    'stop': ArmMode.STOPPED,
    'guide': ArmMode.GUIDED,
    'ready': ArmMode.READY,
}


@dataclass(frozen=True)
class FakeLimits:
    """How the fake arm follows."""

    lag_s: float = 0.03
    speed_m_s: float = 1.5
    turn_rad_s: float = 2.5
    recovery_s: float = 0.3


class FakeArm:
    """An ArmOutput of its own; any thread may call it."""

    def __init__(
        self,
        say: Callable[[str, Pose | None], None] = lambda what, pose: None,
        limits: FakeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        home: Pose = HOME,
    ) -> None:
        """Stand at `home`; `say` hears of every send, hold, recover and close."""
        self._say = say
        self._limits = limits or FakeLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._hold_point = HoldPoint()
        self._position = np.array(home.position_m, np.float64)
        self._rotation = Rotation.from_quat(home.quaternion_xyzw)
        self._target: Pose | None = None
        self._mode = ArmMode.READY
        self._errors: tuple[str, ...] = ()
        self._recovered_s = math.inf
        self._silent = False
        self._broken = False
        self._stamp_s = self._moved_s = clock()

    # ArmOutput

    def state(self) -> ArmState:
        """Return where it is now; RuntimeError once it was told to break."""
        with self._lock:
            if self._broken:
                raise RuntimeError('the fake arm was told to break')
            return self._state()

    def send(self, target: ArmTarget) -> None:
        """Go there."""
        target = checked(target)
        with self._lock:
            check_ready(self._state())
            self._target = target.pose
            self._hold_point.sent(target.pose)
        self._say('send', target.pose)

    def hold(self) -> None:
        """Stay here."""
        with self._lock:
            self._target = self._hold_point.hold(None if self._broken else self._state())
        self._say('hold', self._target)

    def recover(self) -> None:
        """Begin to clear a reflex."""
        with self._lock:
            if self._mode is ArmMode.REFLEX:
                self._mode = ArmMode.RECOVERING
                self._recovered_s = self._clock() + self._limits.recovery_s
        self._say('recover', None)

    def close(self) -> None:
        """Hold, and hear no more."""
        self.hold()
        self._say('close', None)

    def joints(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Return its joints: it is a Cartesian robot with a rotation vector for a wrist."""
        with self._lock:
            return JOINTS, np.concatenate([self._position, self._rotation.as_rotvec()])

    # What happens to it

    def trouble(self, what: str) -> None:
        """Make something happen: a key of TROUBLES, 'silent', 'break', or 'push' (by 5 cm).

        Raises:
            ValueError: it knows no such thing.

        """
        with self._lock:
            self._step()
            if what in TROUBLES:
                self._mode, self._silent = TROUBLES[what], False
                self._errors = ('cartesian_reflex',) if what == 'reflex' else ()
                if what != 'ready':
                    self._target = None
            elif what == 'silent':
                self._silent = True
            elif what == 'break':
                self._broken = True
            elif what == 'push':
                self._position = self._position + np.array([0.0, 0.05, 0.0])
            else:
                known = ', '.join([*TROUBLES, 'silent', 'break', 'push'])
                raise ValueError(f"the fake arm has no trouble '{what}'; it has: {known}")

    def _state(self) -> ArmState:
        if not self._silent:
            self._step()
        pose = Pose(self._position.copy(), self._rotation.as_quat())
        mode = ArmMode.LOST if self._silent else self._mode
        return ArmState(pose, mode, self._stamp_s, self._errors)

    def _step(self) -> None:
        now = self._clock()
        elapsed_s, self._moved_s, self._stamp_s = now - self._moved_s, now, now
        if self._mode is ArmMode.RECOVERING and now >= self._recovered_s:
            self._mode, self._errors = ArmMode.READY, ()
        if self._target is None or self._mode is not ArmMode.READY:
            return
        share = 1.0 - math.exp(-elapsed_s / self._limits.lag_s)
        way = (self._target.position_m - self._position) * share
        self._position = self._position + _at_most(way, self._limits.speed_m_s * elapsed_s)
        goal = Rotation.from_quat(self._target.quaternion_xyzw)
        turn = (goal * self._rotation.inv()).as_rotvec() * share
        turn = _at_most(turn, self._limits.turn_rad_s * elapsed_s)
        self._rotation = Rotation.from_rotvec(turn) * self._rotation


class FakeGripper:
    """A GripperOutput of its own, which travels in half a second."""

    SPEED = 2.0  # openings a second

    def __init__(
        self,
        say: Callable[[float], None] = lambda opening: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Be open; `say` hears of every command."""
        self._say = say
        self._clock = clock
        self._from = self._to = 1.0
        self._since_s = clock()

    def state(self) -> GripperState:
        """Return how far it is open now."""
        now = self._clock()
        travelled = self.SPEED * (now - self._since_s)
        way = self._to - self._from
        opening = self._from + math.copysign(min(abs(way), travelled), way)
        return GripperState(opening, False, now)

    def command(self, opening: float) -> None:
        """Open so far."""
        if not 0.0 <= opening <= 1.0:
            raise GripperError(f'opening {opening} is not within 0 (closed) .. 1 (open)')
        self._from = self.state().opening
        self._to, self._since_s = float(opening), self._clock()
        self._say(opening)

    def recover(self) -> None:
        """Nothing can be wrong with it."""

    def close(self) -> None:
        """Let go."""


def _at_most(vector: np.ndarray, norm: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector if length <= norm or length == 0.0 else vector * (norm / length)
