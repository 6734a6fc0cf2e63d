"""The gate: no nonsense leaves the policy node."""

import numpy as np
import pytest

from grape_episode.action import EndEffectorDelta
from grape_policy_node.safety import Bounds, Verdict, gate

BOUNDS = Bounds(max_translation_m=0.05, max_rotation_rad=0.5, max_image_age_s=0.2)


def delta(translation=(0.01, 0.0, -0.02), rotation=(0.1, 0.0, 0.0), gripper=0.7):
    return EndEffectorDelta(np.array(translation), np.array(rotation), gripper)


def test_an_allowed_command_passes_unchanged():
    gated = gate(delta(), BOUNDS, 0.1, held_gripper=0.0)
    assert gated.verdict == Verdict.OK and gated.reason == ''
    np.testing.assert_array_equal(gated.command.translation_m, [0.01, 0.0, -0.02])
    assert gated.command.gripper_opening == 0.7


def test_a_bound_met_up_to_rounding_is_no_clamp():
    assert gate(delta((0.05 + 1e-17, 0, 0)), BOUNDS, 0.0, 0.0).verdict == Verdict.OK


@pytest.mark.parametrize(
    ('proposed', 'word'),
    [
        (delta(translation=(0.2, 0.0, -0.01)), 'translation'),
        (delta(rotation=(0.0, -0.9, 0.0)), 'rotation'),
        (delta(gripper=1.2), 'gripper'),
    ],
)
def test_out_of_bounds_is_moved_to_the_nearest_allowed_command(proposed, word):
    gated = gate(proposed, BOUNDS, 0.0, 0.0)
    assert gated.verdict == Verdict.CLAMPED and word in gated.reason
    assert np.abs(gated.command.translation_m).max() <= 0.05
    assert np.abs(gated.command.rotation_rotvec_rad).max() <= 0.5
    assert 0.0 <= gated.command.gripper_opening <= 1.0
    inside = np.abs(proposed.translation_m) <= 0.05
    np.testing.assert_array_equal(
        gated.command.translation_m[inside], proposed.translation_m[inside]
    )


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('place', ['translation', 'rotation', 'gripper'])
def test_nan_and_infinity_hold_with_the_gripper_as_it_was(bad, place):
    value = bad if place == 'gripper' else (0.0, bad, 0.0)
    gated = gate(delta(**{place: value}), BOUNDS, 0.0, held_gripper=0.3)
    assert gated.verdict == Verdict.HELD and 'NaN' in gated.reason
    assert not gated.command.translation_m.any() and not gated.command.rotation_rotvec_rad.any()
    assert gated.command.gripper_opening == 0.3


@pytest.mark.parametrize('age_s', [0.21, float('nan'), float('inf')])
def test_a_stale_image_holds(age_s):
    gated = gate(delta(), BOUNDS, age_s, held_gripper=0.3)
    assert gated.verdict == Verdict.HELD and 'old' in gated.reason


def test_in_lockstep_no_image_is_stale():
    assert gate(delta(), Bounds(0.05, 0.5), 3600.0, 0.0).verdict == Verdict.OK


@pytest.mark.parametrize('bounds', [(0.0, 0.5, 0.0), (0.05, float('nan'), 0.0), (0.05, 0.5, -1.0)])
def test_meaningless_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match='expected'):
        Bounds(*bounds)


def test_verdicts_are_those_of_the_message():
    message = pytest.importorskip('grape.msg', reason='make setup builds the grape messages')
    step = message.PolicyStep
    assert (step.VERDICT_OK, step.VERDICT_CLAMPED, step.VERDICT_HELD) == tuple(Verdict)
