"""The robot's own state beside a picture, for policies that ask for it.

Eight numbers in the order of openpi's LIBERO policies: end-effector position (m), its orientation
as axis times angle (rad), and the two finger joints (m). The pose is the contract's ee_pose, in
the robot's base frame; LIBERO's own observations, on which openpi's checkpoints learned, are in
the world's, so a server of those has to convert. Messages of different topics arrive in any order,
so the state of a picture's stamp is waited for shortly.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

STATE_SIZE = 8
FINGERS = 2
WAIT_S = 0.5
OLDEST_NS = 100_000_000  # before its picture
KEPT = 64  # messages of each kind; half a second at 100 Hz


class StateError(RuntimeError):
    """The state of a picture is not there; the text says what is missing."""


class StateTrack:
    """Remembers the latest poses and joints; written by one thread and read by another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._poses: dict[int, np.ndarray] = {}
        self._fingers: dict[int, np.ndarray] = {}

    def put_pose(self, stamp_ns: int, position_m: Sequence[float], xyzw: Sequence[float]) -> None:
        """Take an end-effector pose: (3,) m and an (x, y, z, w) quaternion."""
        pose = np.concatenate([np.asarray(position_m, np.float64), axis_angle(xyzw)])
        self._put(self._poses, stamp_ns, pose)

    def put_joints(self, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """Take joint positions; those with 'finger' in their name are kept.

        Raises:
            StateError: not two of them.
        """
        found = [p for name, p in zip(names, positions, strict=True) if 'finger' in name]
        if len(found) != FINGERS:
            raise StateError(
                f"the joint states have {len(found)} joints with 'finger' in their name; "
                f'expected {FINGERS}. The joints are: {", ".join(names)}'
            )
        self._put(self._fingers, stamp_ns, np.asarray(found, np.float64))

    def forget(self) -> None:
        """Drop all: in simulation an episode's stamps begin at 0 again."""
        with self._changed:
            self._poses.clear()
            self._fingers.clear()

    def at(self, stamp_ns: int, wait_s: float = WAIT_S) -> np.ndarray:
        """Return the (8,) float64 state of a picture's stamp, or the newest one shortly before it.

        Raises:
            StateError: there is none, and none came in `wait_s`.
        """

        def is_there() -> bool:
            tracks = (self._poses, self._fingers)
            return all(track and min(track) <= stamp_ns <= max(track) for track in tracks)

        with self._changed:
            self._changed.wait_for(is_there, wait_s)
            parts = [_latest(track, stamp_ns) for track in (self._poses, self._fingers)]
        if parts[0] is None or parts[1] is None:
            missing = [
                n for n, p in zip(('ee_pose', 'joint_state'), parts, strict=True) if p is None
            ]
            raise StateError(
                f'no message of {" and ".join(missing)} for a picture with stamp {stamp_ns} ns; '
                'the policy asks for the robot state (remote_state_key)'
            )
        return np.concatenate(parts)

    def _put(self, track: dict[int, np.ndarray], stamp_ns: int, value: np.ndarray) -> None:
        with self._changed:
            track[stamp_ns] = value
            while len(track) > KEPT:
                del track[next(iter(track))]
            self._changed.notify_all()


def axis_angle(xyzw: Sequence[float]) -> np.ndarray:
    """Turn a unit quaternion into (3,) axis times angle in 0..2 pi.

    The sign of the quaternion is kept, so that the angle may exceed pi, as in openpi's LIBERO
    example.
    """
    x, y, z, w = (float(value) for value in xyzw)
    w = min(max(w, -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0, abs_tol=1e-12):
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * math.acos(w) / sine)


def _latest(track: dict[int, np.ndarray], stamp_ns: int) -> np.ndarray | None:
    known = [stamp for stamp in track if stamp_ns - OLDEST_NS <= stamp <= stamp_ns]
    return track[max(known)] if known else None
