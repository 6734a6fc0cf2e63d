"""The last look at a command before it leaves the policy node.

A pure function of the command, its age and the contract's bounds. What is not a number or comes
too late is replaced by the hold action (no motion, the gripper as last commanded); what is out of
bounds is moved to the nearest allowed command, component by component. On a robot the guard of
the arm follows; this gate only makes sure that no nonsense leaves this node.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from grape_episode.action import EndEffectorDelta

TOLERANCE = 1e-6  # relative; a bound met up to rounding is kept, not clamped


class Verdict(IntEnum):
    """What the gate did; the values of PolicyStep.msg's VERDICT constants."""

    OK = 0
    CLAMPED = 1
    HELD = 2


@dataclass(frozen=True)
class Bounds:
    """What a command may be.

    Attributes:
        max_translation_m: largest absolute translation along each axis in one step.
        max_rotation_rad: largest absolute component of the rotation vector in one step.
        max_image_age_s: oldest observation that may still be acted on; 0: any age, for lockstep,
            where the world waits for the command.
    """

    max_translation_m: float
    max_rotation_rad: float
    max_image_age_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ('max_translation_m', 'max_rotation_rad'):
            value = getattr(self, name)
            if not np.isfinite(value) or value <= 0.0:
                raise ValueError(f'{name} is {value}; expected more than 0')
        if not np.isfinite(self.max_image_age_s) or self.max_image_age_s < 0.0:
            raise ValueError(
                f'max_image_age_s is {self.max_image_age_s}; expected 0 (any age) or more'
            )


@dataclass(frozen=True)
class Gated:
    """The command that may be sent, and why it is not the proposed one.

    Attributes:
        command: the delta to send.
        verdict: what was done.
        reason: empty when the verdict is OK.
    """

    command: EndEffectorDelta
    verdict: Verdict
    reason: str = ''


def gate(
    proposed: EndEffectorDelta, bounds: Bounds, image_age_s: float, held_gripper: float
) -> Gated:
    """Let a command pass, clamp it, or hold.

    Args:
        proposed: what the policy chose.
        bounds: of the contract.
        image_age_s: time since the observation was received, monotonic clock.
        held_gripper: opening to keep when holding, 0 closed .. 1 open.
    """
    translation = np.asarray(proposed.translation_m, dtype=np.float64)
    rotation = np.asarray(proposed.rotation_rotvec_rad, dtype=np.float64)
    gripper = float(proposed.gripper_opening)
    if not (
        np.isfinite(translation).all() and np.isfinite(rotation).all() and np.isfinite(gripper)
    ):
        return hold(held_gripper, 'the command holds NaN or infinity')
    if bounds.max_image_age_s and not image_age_s <= bounds.max_image_age_s:
        return hold(
            held_gripper,
            f'the image is {image_age_s:.3f} s old, allowed are {bounds.max_image_age_s:.3f} s',
        )
    command = EndEffectorDelta(
        np.clip(translation, -bounds.max_translation_m, bounds.max_translation_m),
        np.clip(rotation, -bounds.max_rotation_rad, bounds.max_rotation_rad),
        min(max(gripper, 0.0), 1.0),
    )
    reasons = []
    if np.abs(translation).max() > bounds.max_translation_m * (1.0 + TOLERANCE):
        reasons.append(
            f'translation {np.abs(translation).max():.4f} m > {bounds.max_translation_m:.4f} m'
        )
    if np.abs(rotation).max() > bounds.max_rotation_rad * (1.0 + TOLERANCE):
        reasons.append(
            f'rotation {np.abs(rotation).max():.4f} rad > {bounds.max_rotation_rad:.4f} rad'
        )
    if abs(command.gripper_opening - gripper) > TOLERANCE:
        reasons.append(f'gripper opening {gripper:.3f} is not within 0..1')
    verdict = Verdict.CLAMPED if reasons else Verdict.OK
    return Gated(command, verdict, '; '.join(reasons))


def hold(gripper: float, reason: str) -> Gated:
    """Return the hold action: no motion, the gripper at `gripper` (0 closed .. 1 open)."""
    command = EndEffectorDelta(np.zeros(3), np.zeros(3), gripper)
    return Gated(command, Verdict.HELD, reason)
