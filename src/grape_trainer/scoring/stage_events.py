"""The events that end stages: grasps, arrivals, touches, motions of one recorded trial.

Each event is a condition over the T + 1 states, and a progress from 0 to 1 towards it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from grape_trainer.scoring.stage_cut import Condition
from grape_trainer.scoring.stage_definition import Roles, StageError
from grape_trainer.scoring.stage_part import AIMED_EVENTS
from grape_trainer.scoring.stage_signals import TrialSignals


@dataclass(frozen=True)
class Event:
    """One event of one target over a trial."""

    condition: Condition
    progress: np.ndarray  # (T+1,) float64, 0 .. 1


def event(trial: TrialSignals, name: str, roles: Roles) -> Event:
    """Return an event of a trial.

    Raises:
        StageError: no such event, or the trial or the settings lack what it looks at.
        KeypointError: a role that names no recorded keypoint.

    """
    known = {**EVENTS, **JOINT_EVENTS}
    if name not in known:
        raise StageError(f"there is no event '{name}'; there are: {', '.join(known)}.")
    return known[name](trial, roles)


def _grasped(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint is in the gripper."""
    held, _ = trial.holds(roles.target)
    return Event(Condition(held, attempt=True, lasting=True), 1.0 * held)


def _arrived(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint was lifted, and is over the second one."""
    arrived = trial.arrived(roles)
    return Event(Condition(arrived, attempt=False, lasting=True), 1.0 * arrived)


def _placed(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint is over the second one, and let go."""
    placed = trial.over(roles) & ~trial.holds(roles.target)[0]
    return Event(Condition(placed, attempt=False, lasting=True), 1.0 * placed)


def _stacked(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint is on top of the second one, and let go."""
    offset_m, motion = trial.offset_m(roles), trial.motion
    on = np.hypot(offset_m[:, 0], offset_m[:, 1]) <= motion.stack_m
    stacked = on & (offset_m[:, 2] >= motion.stack_above_m) & ~trial.holds(roles.target)[0]
    return Event(Condition(stacked, attempt=False, lasting=True), 1.0 * stacked)


def _released(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint was held before, and is let go."""
    held, _ = trial.holds(roles.target)
    released = np.logical_or.accumulate(held) & ~held
    return Event(Condition(released, attempt=False, lasting=True), 1.0 * released)


def _reached(trial: TrialSignals, roles: Roles) -> Event:
    """The end effector is at the first keypoint, or touches it."""
    distance_m, reach_m = trial.hand_distance_m(roles.target), trial.motion.reach_m
    reached = trial.bridge(trial.touching(roles.target) | (distance_m <= reach_m))
    progress = np.where(reached, 1.0, np.minimum(reach_m / np.maximum(distance_m, reach_m), 1.0))
    return Event(Condition(reached, attempt=True, lasting=False), progress)


def _pressed(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint, a button, went in."""
    travel = np.minimum(trial.displacement_m(roles.target) / trial.motion.press_m, 1.0)
    if trial.still(roles.target):
        # A button whose travel is not seen: to touch it is to press it.
        travel = np.maximum(travel, trial.touching(roles.target))
    # A button springs back: what counts is how far it ever was.
    return Event(Condition(travel >= 1.0, attempt=False, lasting=False), travel)


def _moved(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint is away from where it was: a drawer, a door."""
    return _part(trial, roles, trial.displacement_m(roles.target) / trial.motion.move_m)


def _turned(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint is turned: a knob."""
    turn = trial.rotation(roles.target)
    if turn is None:
        raise StageError(
            f"'{roles.target}' has no recorded orientation, so that its turning is not seen; "
            'record it in scene_state, or take the template open_close with a keypoint on its rim.'
        )
    return _part(trial, roles, turn.magnitude() / trial.motion.turn_rad)


def _fallen(trial: TrialSignals, roles: Roles) -> Event:
    """The first keypoint no longer stands upright."""
    height_m, motion = trial.height_m(roles.target), trial.motion
    share = (height_m[0] - height_m) / motion.fall_m
    turn = trial.rotation(roles.target)
    if turn is not None:
        upright = np.clip(turn.apply((0.0, 0.0, 1.0))[:, 2], -1.0, 1.0)
        share = np.maximum(share, np.arccos(upright) / motion.fall_rad)
    share = np.clip(share, 0.0, 1.0)
    return Event(Condition(share >= 1.0, attempt=False, lasting=True), share)


def _part(trial: TrialSignals, roles: Roles, share: np.ndarray) -> Event:
    """Return the event of a part; one that never moved goes by the environment's verdict.

    Fixtures are often recorded by a body that stands still (LIBERO's cabinets, stoves).
    """
    if trial.still(roles.target):
        share = np.maximum(share, trial.success)
    share = np.minimum(share, 1.0)
    return Event(Condition(share >= 1.0, attempt=False, lasting=True), share)


def _aimed(trial: TrialSignals, roles: Roles, aim: str) -> Event:
    """The first keypoint's part was brought to where a goal is reached, and was not so before."""
    joint, values = trial.joint(roles.target)
    if aim not in joint.reached:
        raise StageError(
            f"the joint of '{roles.target}' is declared for {', '.join(joint.reached)}; expected "
            f"'{aim}' among its 'reached'."
        )
    done = joint.done(values, aim)
    return Event(Condition(done, attempt=False, lasting=True), joint.share(values, aim))


# The first line of each is what a vision-language model is told about it.
EVENTS: Mapping[str, Callable[[TrialSignals, Roles], Event]] = {
    'grasped': _grasped,
    'arrived': _arrived,
    'placed': _placed,
    'stacked': _stacked,
    'released': _released,
    'reached': _reached,
    'pressed': _pressed,
    'moved': _moved,
    'turned': _turned,
    'fallen': _fallen,
}
# What a part does whose joint the environment declares: a model that looks at a picture does not
# know which are, so that it is not told about these.
JOINT_EVENTS: Mapping[str, Callable[[TrialSignals, Roles], Event]] = {
    name: partial(_aimed, aim=aim) for aim, name in AIMED_EVENTS.items()
}
