"""End-effector actions: metres and radians on the wire, policy units inside the policy.

A policy unit is what OpenVLA un-normalises to: six numbers in about [-1, 1] and the gripper's
opening 0..1. The contract's ActionSpec says what one unit is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.contract import ActionSpec


@dataclass(frozen=True)
class EndEffectorDelta:
    """One command, in the contract's action frame.

    Attributes:
        translation_m: (3,) float64.
        rotation_rotvec_rad: (3,) float64 rotation vector.
        gripper_opening: 0 closed .. 1 open.

    """

    translation_m: np.ndarray
    rotation_rotvec_rad: np.ndarray
    gripper_opening: float


def from_policy_units(action: np.ndarray, spec: ActionSpec) -> EndEffectorDelta:
    """Turn (7,) policy units into a command."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (7,):
        raise ValueError(f'an action of shape {action.shape}; expected (7,)')
    return EndEffectorDelta(
        action[:3] * spec.translation_scale_m,
        action[3:6] * spec.rotation_scale_rad,
        float(action[6]),
    )


def to_policy_units(delta: EndEffectorDelta, spec: ActionSpec) -> np.ndarray:
    """Turn a command into (7,) float64 policy units."""
    return np.concatenate(
        [
            np.asarray(delta.translation_m, np.float64) / spec.translation_scale_m,
            np.asarray(delta.rotation_rotvec_rad, np.float64) / spec.rotation_scale_rad,
            [float(delta.gripper_opening)],
        ]
    )
