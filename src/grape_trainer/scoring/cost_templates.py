"""The constraints of the templates that are not pick-and-place, in the form of cost.py.

Most are those of pick-and-place under another name, because the appendix has a stage of that kind
(E.2.1: reach; E.2.2: keep clear; E.2.3: go straight). Its own are what no carried object has: how
much of a motion is missing, and whether an object rests on top of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

TARGET, RECEPTACLE = 0, 1


def motion_missing(end_effector, keypoints, signals):
    """Share of the press, fall, move or turn that is still missing, 1 .. 0."""
    return 1.0 - signals.progress


def below_receptacle(end_effector, keypoints, signals):
    """How far the target's keypoint is below the one that it shall stand on, m."""
    return np.maximum(keypoints[:, RECEPTACLE, 2] - keypoints[:, TARGET, 2], 0.0)


_ACTED_ON: Mapping[str, Callable | str] = {
    'stage1_target_constraint1': 'stage1_target_constraint1',  # distance to the target
    'stage1_collision_constraint1': 'stage1_collision_constraint2',  # clearance missing
    'stage1_collision_constraint2': 'stage1_collision_constraint3',  # contacts
    'stage1_path_constraint1': 'stage1_path_constraint1',  # detour
    'stage1_path_constraint2': 'stage1_path_constraint2',  # delay
    'stage2_target_constraint1': motion_missing,
    'stage2_collision_constraint1': 'stage2_collision_constraint1',  # clearance missing
    'stage2_collision_constraint2': 'stage2_collision_constraint2',  # contacts
}
# Template -> constraint -> a function, or the constraint of pick-and-place that it is. What is
# not here (all of pick_place, the rest of stack) is pick-and-place's constraint of that name.
TEMPLATE_CONSTRAINTS: Mapping[str, Mapping[str, Callable | str]] = {
    'stack': {
        'stage3_target_constraint1': 'stage2_target_constraint1',  # horizontal distance
        'stage3_target_constraint2': below_receptacle,
    },
    'push_button': _ACTED_ON,
    'knock_down': _ACTED_ON,
    'open_close': _ACTED_ON,
    'turn_on': _ACTED_ON,
}
