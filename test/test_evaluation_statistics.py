"""Success with n and interval, paired tests, and the separation of training and evaluation."""

import json
from dataclasses import replace

import learner_bags
import pytest
import scoring_trials as trials

from grape_episode.label import append_label
from grape_episode.outcome import Outcome
from grape_trainer.evaluation import (
    EpisodeResult,
    InitStateError,
    assert_disjoint,
    compare,
    evaluation_dict,
    mcnemar_exact,
    parse_init_states,
    read_result,
    summarise,
    wilson_interval,
)


def results(outcomes, task='libero_object/0', **fields):
    """One result a letter: s(uccess), f(ailure), e(rror), i(nterrupted)."""
    letters = {o.value[0]: o for o in Outcome}
    return [
        EpisodeResult(task, state, letters[letter], steps=10 * (state + 1), **fields)
        for state, letter in enumerate(outcomes)
    ]


def test_wilson_interval_equals_published_values():
    # Newcombe 1998, table I: 81/263 and 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    low, high = wilson_interval(0, 20)
    assert low == 0.0 and high == pytest.approx(0.1611, abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


@pytest.mark.parametrize(('successes', 'n'), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_interval_of_impossible_counts_is_refused(successes, n):
    with pytest.raises(ValueError, match='successes <= n'):
        wilson_interval(successes, n)


def test_errors_and_interruptions_are_no_failures():
    summary = summarise(results('sfesi'))
    assert (summary.n, summary.successes, summary.errors, summary.interrupted) == (3, 2, 1, 1)
    assert summary.success == pytest.approx(2 / 3)
    assert summary.mean_steps == pytest.approx((10 + 20 + 40) / 3)
    assert summary.mean_steps_success == pytest.approx((10 + 40) / 2)


def test_evaluation_of_errors_only_has_no_rate():
    summary = summarise(results('ee'))
    assert summary.success is None and summary.wilson_low is None and summary.errors == 2
    assert 'unknown' in str(summary)


def test_collision_rate_counts_only_episodes_that_recorded_the_scene():
    mixed = results('sf', collided=True) + results('ss', collided=False) + results('s')
    assert summarise(mixed).collision_rate == 0.5
    assert summarise(results('s')).collision_rate is None


def test_json_form_has_the_names_that_others_read():
    episodes = results('sf') + results('s', task='libero_object/1')
    content = json.loads(json.dumps(evaluation_dict(episodes, 'tiny', 'base')))
    for name in ('success', 'n', 'wilson_low', 'wilson_high', 'errors', 'mean_steps'):
        assert content[name] is not None
    assert 'collision_rate' in content
    assert content['tasks']['libero_object/1']['n'] == 1
    assert content['episodes'][1]['outcome'] == 'failure'


def test_mcnemar_is_the_two_sided_binomial_of_the_discordant_cells():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(9, 1) == pytest.approx(2 * 11 / 1024)


def test_comparison_pairs_by_task_and_initial_state():
    first, second = results('ssfes'), results('sffss')
    found = compare(first, second)
    assert (found.n, found.both, found.only_first, found.only_second, found.neither) == (
        4, 2, 1, 0, 1,
    )  # fmt: skip


def test_comparison_without_common_cells_is_refused():
    with pytest.raises(ValueError, match='share no decided'):
        compare(results('s'), results('s', task='other/1'))
    with pytest.raises(ValueError, match='two results for'):
        compare(results('s') + results('s'), results('s'))


@pytest.mark.parametrize(
    ('text', 'states'),
    [('0-4,7', (0, 1, 2, 3, 4, 7)), ('3', (3,)), (' 5 , 1-2, 2', (1, 2, 5)), ('40-40', (40,))],
)
def test_init_states_are_read(text, states):
    assert parse_init_states(text) == states


@pytest.mark.parametrize('text', ['', '4-', '-3', 'a', '1,,2', '7-5', '1.5'])
def test_unreadable_init_states_say_what_was_found(text):
    with pytest.raises(InitStateError, match='expected a form|runs backwards'):
        parse_init_states(text)


def test_overlap_of_training_and_evaluation_is_an_error_that_names_it():
    train = [('libero_object/0', s) for s in range(5)]
    assert_disjoint(train, [('libero_object/0', 5), ('libero_object/1', 0)])
    with pytest.raises(InitStateError, match='libero_object/0 state 4.*Choose other'):
        assert_disjoint(train, [('libero_object/0', s) for s in range(4, 8)])


def test_result_of_a_bag_takes_a_persons_label_over_the_recording(tmp_path):
    bag = learner_bags.write_expert_bag(tmp_path, 'a', seed=0, outcome='failure')
    assert read_result(bag) == EpisodeResult('test/0', 0, Outcome.FAILURE, 16, collided=None)
    append_label(bag, 'success')
    assert read_result(bag).outcome == Outcome.SUCCESS


@pytest.mark.parametrize(
    ('phases', 'grasped', 'continuously'),
    [
        ((trials.REACH, trials.CLOSE), False, False),
        ((trials.REACH, trials.CLOSE, replace(trials.LIFT, seconds=0.9)), True, False),
        ((trials.REACH, trials.CLOSE, trials.LIFT), True, True),
        (
            (
                trials.REACH,
                *(replace(trials.LIFT, seconds=0.5), replace(trials.REACH, seconds=0.5)) * 3,
            ),
            True,
            False,
        ),
    ],
)
def test_a_continuous_grasp_holds_the_target_for_a_second(tmp_path, phases, grasped, continuously):
    trial = trials.make_trial(phases, rate_hz=10.0, outcome=Outcome.FAILURE)
    found = read_result(trials.record(tmp_path, trial))
    assert (found.grasped, found.grasped_continuously) == (grasped, continuously)


def test_grasp_rates_count_only_episodes_that_recorded_the_scene():
    mixed = results('s', grasped=True, grasped_continuously=False) + results('f', task='b')
    summary = summarise(mixed)
    assert (summary.grasp_rate, summary.continuous_grasp_rate) == (1.0, 0.0)
