"""The guard's rules on one command: pure functions that say what they changed.

Order matters: first the step itself (norm, then speed), then the goal that it leads to (lead,
cone, and last the box, so that nothing moves it out again).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import Pose
from grape_bringup.robot.guard_inputs import Finding
from grape_episode.action import EndEffectorDelta

TOLERANCE = 1e-6  # relative; a bound that is met up to rounding is not reported


def not_numbers(delta: EndEffectorDelta) -> Finding | None:
    """Find NaN, infinity or a wrong shape; such a step is refused as a whole."""
    for name, value, shape in (
        ('translation', delta.translation_m, (3,)),
        ('rotation', delta.rotation_rotvec_rad, (3,)),
        ('gripper opening', delta.gripper_opening, ()),
    ):
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            return Finding('shape', f'{name} is {value!r}; expected numbers of shape {shape}')
        if array.shape != shape:
            return Finding('shape', f'{name} has shape {array.shape}; expected {shape}')
        if not np.isfinite(array).all():
            return Finding('not_finite', f'{name} is {array.tolist()}; expected finite numbers')
    return None


def limit_step(
    delta: EndEffectorDelta,
    max_step_m: float,
    max_step_rad: float,
    axis_step_m: float,
    axis_step_rad: float,
) -> tuple[EndEffectorDelta, list[Finding]]:
    """Shorten a step to its bounds; its direction stays.

    Args:
        delta: finite.
        max_step_m: largest norm of the translation.
        max_step_rad: largest norm of the rotation vector.
        axis_step_m: what one axis can move in a control period at its largest speed.
        axis_step_rad: the same for a rotation.

    """
    findings: list[Finding] = []
    translation = _shorten(
        delta.translation_m, max_step_m, axis_step_m, 'translation', 'm', findings
    )
    rotation = _shorten(
        delta.rotation_rotvec_rad, max_step_rad, axis_step_rad, 'rotation', 'rad', findings
    )
    opening = min(max(float(delta.gripper_opening), 0.0), 1.0)
    if abs(opening - delta.gripper_opening) > TOLERANCE:
        text = f'gripper opening {delta.gripper_opening:.3f} is not within 0..1'
        findings.append(Finding('gripper_range', text))
    return EndEffectorDelta(translation, rotation, opening), findings


def _shorten(
    vector: np.ndarray,
    max_norm: float,
    max_axis: float,
    name: str,
    unit: str,
    findings: list[Finding],
) -> np.ndarray:
    vector = np.asarray(vector, np.float64)
    norm = float(np.linalg.norm(vector))
    if norm > max_norm * (1.0 + TOLERANCE):
        findings.append(Finding(f'step_{name}', f'{name} {norm:.4f} > {max_norm:.4f} {unit}'))
        vector = vector * (max_norm / norm)
    largest = float(np.abs(vector).max())
    if largest > max_axis * (1.0 + TOLERANCE):
        text = f'{name} {largest:.4f} {unit} in one period is too fast; at most {max_axis:.4f}'
        findings.append(Finding(f'speed_{name}', text))
        vector = vector * (max_axis / largest)
    return vector


def limit_vector(vector: np.ndarray, max_norm: float, max_axis: float) -> np.ndarray:
    """Shorten a vector to a norm, and to what one axis may do."""
    norm, largest = float(np.linalg.norm(vector)), float(np.abs(vector).max())
    share = min(1.0, max_norm / max(norm, TOLERANCE), max_axis / max(largest, TOLERANCE))
    return vector * share


def compose(pose: Pose, delta: EndEffectorDelta, in_base_frame: bool) -> Pose:
    """Return the pose that a delta leads to.

    In the base frame p' = p + d and R' = exp(r) R; in the end effector's own p' = p + R d and
    R' = R exp(r).
    """
    here = Rotation.from_quat(pose.quaternion_xyzw)
    turn = Rotation.from_rotvec(delta.rotation_rotvec_rad)
    if in_base_frame:
        return Pose(pose.position_m + delta.translation_m, (turn * here).as_quat())
    return Pose(pose.position_m + here.apply(delta.translation_m), (here * turn).as_quat())


def difference(old: Pose, new: Pose, in_base_frame: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (translation, rotation vector) with compose(old, it) = new."""
    before, after = map(Rotation.from_quat, (old.quaternion_xyzw, new.quaternion_xyzw))
    way = new.position_m - old.position_m
    if in_base_frame:
        return way, (after * before.inv()).as_rotvec()
    return before.inv().apply(way), (before.inv() * after).as_rotvec()


def limit_lead(
    goal: Pose, measured: Pose, max_m: float, max_rad: float
) -> tuple[Pose, list[Finding]]:
    """Keep the goal near the arm, so that it does not run away from an arm that is blocked."""
    findings = []
    position, quaternion = goal.position_m, goal.quaternion_xyzw
    ahead, turned = difference(measured, goal, in_base_frame=True)
    distance, angle = float(np.linalg.norm(ahead)), float(np.linalg.norm(turned))
    if distance > max_m * (1.0 + TOLERANCE):
        text = f'goal {distance:.3f} m ahead of the arm; at most {max_m:.3f}'
        findings.append(Finding('lead_translation', text))
        position = measured.position_m + ahead * (max_m / distance)
    if angle > max_rad * (1.0 + TOLERANCE):
        text = f'goal turned {angle:.2f} rad ahead of the arm; at most {max_rad:.2f}'
        findings.append(Finding('lead_rotation', text))
        turn = Rotation.from_rotvec(turned * (max_rad / angle))
        quaternion = (turn * Rotation.from_quat(measured.quaternion_xyzw)).as_quat()
    return Pose(position, quaternion), findings


def limit_tilt(goal: Pose, start_xyzw: np.ndarray, cone_rad: float) -> tuple[Pose, list[Finding]]:
    """Keep the tool's z axis in a cone about where it pointed at the start; spin is free."""
    here = Rotation.from_quat(goal.quaternion_xyzw)
    axis = here.apply([0.0, 0.0, 1.0])
    start = Rotation.from_quat(start_xyzw).apply([0.0, 0.0, 1.0])
    normal = np.cross(axis, start)
    sine = float(np.linalg.norm(normal))
    tilt = math.atan2(sine, float(axis @ start))
    if tilt <= cone_rad * (1.0 + TOLERANCE):
        return goal, []
    # Upside down, every way back is as short: about the tool's own x axis.
    normal = normal / sine if sine > TOLERANCE else here.apply([1.0, 0.0, 0.0])
    back = Rotation.from_rotvec(normal * (tilt - cone_rad))
    text = f'tool tilted {tilt:.2f} rad from the start; at most {cone_rad:.2f}'
    return Pose(goal.position_m, (back * here).as_quat()), [Finding('cone', text)]


def limit_box(goal: Pose, low_m: np.ndarray, high_m: np.ndarray) -> tuple[Pose, list[Finding]]:
    """Move the goal to the nearest place in the box."""
    inside = np.clip(goal.position_m, low_m, high_m)
    outside = np.abs(inside - goal.position_m)
    if outside.max() <= TOLERANCE:
        return Pose(inside, goal.quaternion_xyzw), []
    axis = int(outside.argmax())
    text = (
        f'goal {"xyz"[axis]} {goal.position_m[axis]:.3f} m is outside of '
        f'{low_m[axis]:.3f}..{high_m[axis]:.3f}'
    )
    return Pose(inside, goal.quaternion_xyzw), [Finding('box', text)]
