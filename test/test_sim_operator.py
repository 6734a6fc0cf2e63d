"""The made-up operator: a few speeds, and habits that a policy can learn and unlearn."""

import numpy as np
import pytest

from sim_bridge.keyboard_operator import (
    ROTATION_SPEEDS,
    SLOWLY,
    TRANSLATION_SPEEDS,
    Habits,
    Operator,
    nearest_speed,
)
from sim_bridge.rollout import play

pytestmark = pytest.mark.sim


@pytest.fixture(scope='module')
def blind():
    """An environment that renders nothing, at the rate of libero_tiny10."""
    from sim_bridge.libero import LiberoEnvironment

    env = LiberoEnvironment(None, rate_hz=10)
    yield env
    env.close()


def trial(env, habits, task='libero_object/0', seed=3):
    """Return what an operator did to an initial state: the rollout and (T, 7) actions."""
    start = env.reset(task, 20, 0)
    operator = Operator(env, 0, seed, habits)
    actions = []

    def act(_):
        action = operator.action()
        if action is not None:
            actions.append(action)
        return action

    return play(env, act, start, 200), np.array(actions)


def speeds(actions, dims):
    return set(np.unique(np.abs(actions[:, dims])).round(6)) - {0.0}


def closings(actions):
    return int((np.diff(actions[:, 6]) < 0).sum())


def test_a_command_takes_the_nearest_speed_and_none_below_half_the_slowest():
    command = np.array([0.039, -0.041, 0.14, -0.16, 0.5, -0.6, 1.0])
    expected = [0, -0.08, 0.08, -0.28, 0.28, -1.0, 1.0]
    assert nearest_speed(command, (0.08, 0.28, 1.0)) == pytest.approx(expected)


def test_without_habits_the_operator_is_the_expert_in_a_few_speeds(blind):
    done, actions = trial(blind, Habits(fumble=0, low=0, slow=0))
    assert done.success and done.collisions == 0 and closings(actions) == 1
    assert speeds(actions, slice(0, 3)) == set(TRANSLATION_SPEEDS)
    assert speeds(actions, slice(3, 6)) <= set(ROTATION_SPEEDS)
    assert set(actions[:, 6]) == {0.0, 1.0}


def test_a_fumble_closes_too_high_and_costs_time_but_not_success(blind):
    straight, _ = trial(blind, Habits(fumble=0, low=0, slow=0))
    fumbled, actions = trial(blind, Habits(fumble=0.5, low=0, slow=0), seed=1)
    assert closings(actions) >= 2
    assert fumbled.success and fumbled.steps >= straight.steps + 10 * (closings(actions) - 1)


def test_a_slow_trial_never_uses_the_fastest_speed(blind):
    done, actions = trial(blind, Habits(fumble=0, low=0, slow=1))
    assert done.success
    assert speeds(actions, slice(0, 3)) == {*TRANSLATION_SPEEDS[:-1], SLOWLY}


def test_carrying_low_strikes_the_obstacle_that_carrying_high_clears(blind):
    task = 'libero_object/0+obstacle'
    low, _ = trial(blind, Habits(fumble=0, low=1, slow=0), task)
    high, _ = trial(blind, Habits(fumble=0, low=0, slow=0), task)
    assert low.collisions > 0 and high.collisions == 0 and high.success


def test_the_same_seed_has_the_same_habits(blind):
    first, second = (trial(blind, Habits(), seed=2)[1] for _ in range(2))
    assert np.array_equal(first, second) and speeds(first, slice(0, 3)) != set(TRANSLATION_SPEEDS)
