"""Trials without a common initial state are paired with those that began nearest."""

import json

import numpy as np
import pytest
from scoring_trials import BASKET_M, make_trial, record
from test_scoring_preference import STAGES, named, row

from grape_trainer.scoring.initial_state import (
    InitialState,
    initial_distance_m,
    read_initial_state,
)
from grape_trainer.scoring.preference import (
    PairingError,
    PairSettings,
    make_pairs,
    read_pairs,
    write_pairs,
)
from grape_trainer.scoring.preference_nearest import make_nearest_pairs, pair_nearest
from grape_trainer.scoring.score_table import write_scores


def state(x_m, end_effector_m=(0.0, 0.0, 0.5), names=('bowl', 'plate', 'soup')):
    """A state whose second object lies at x_m; it counts for a quarter of the distance."""
    positions_m = np.zeros((len(names), 3))
    positions_m[1, 0] = x_m
    return InitialState(names, positions_m, np.array(end_effector_m))


# Each trial in an initial state of its own, the basket 0, 4, 12 and 40 cm to the right.
ROWS = [
    row(n, s, s > 3, init_state=i)
    for i, (n, s) in enumerate(zip('abcd', (4.0, 3, 2, 1), strict=True))
]
STATES = {r.bag: state(x) for r, x in zip(ROWS, (0.0, 0.04, 0.12, 0.40), strict=True)}


def test_distance_is_the_mean_over_objects_and_the_end_effector():
    assert initial_distance_m(state(0.0), state(0.04)) == pytest.approx(0.01)
    moved_arm = state(0.04, end_effector_m=(0.0, 0.08, 0.5))
    assert initial_distance_m(state(0.0), moved_arm) == pytest.approx(0.03)
    assert initial_distance_m(state(0.0), state(0.0, names=('bowl', 'plate'))) == float('inf')


def test_each_trial_is_paired_with_the_nearest_that_score_less():
    one = make_nearest_pairs(ROWS, STATES, PairSettings(m=1, nearest_m=0.05))
    assert named(one) == [('a', 'b'), ('b', 'c')]
    assert [p.distance_m for p in one.pairs] == pytest.approx([0.01, 0.02])
    two = make_nearest_pairs(ROWS, STATES, PairSettings(m=2, nearest_m=0.05))
    assert named(two) == [('a', 'b'), ('a', 'c'), ('b', 'c')]
    far = make_nearest_pairs(ROWS, STATES, PairSettings(m=1, nearest_m=1.0))
    assert named(far) == [('a', 'b'), ('b', 'c'), ('c', 'd')]


def test_pair_keeps_the_chosen_trials_initial_state():
    pairs = make_nearest_pairs(ROWS, STATES, PairSettings(m=1, nearest_m=0.05)).pairs
    assert [pair.init_state for pair in pairs] == [0, 1]


def test_equals_margins_and_outcomes_are_respected():
    rows = [row('a', 2.0), row('b', 2.0), row('c', 1.5), row('d', 0.0, True)]
    states = {r.bag: state(0.0) for r in rows}

    def pairs(**settings):
        return named(make_nearest_pairs(rows, states, PairSettings(nearest_m=0.1, **settings)))

    assert pairs(m=1, min_margin=0.5) == [('a', 'd'), ('b', 'd'), ('c', 'd')]
    assert ('a', 'b') not in pairs(m=9) and ('b', 'a') not in pairs(m=9)
    with pytest.raises(PairingError, match='no trial scores more than another'):
        pairs(require_outcome_gap=True)


def test_tasks_are_never_mixed():
    rows = [row('a', 2.0), row('b', 1.0, task='libero_object/1')]
    with pytest.raises(PairingError, match='No pair could be made'):
        make_nearest_pairs(rows, {r.bag: state(0.0) for r in rows}, PairSettings(nearest_m=1.0))


def test_log_says_how_many_are_too_far_apart_and_the_distribution(caplog):
    caplog.set_level('INFO')
    make_nearest_pairs(ROWS, STATES, PairSettings(m=1, nearest_m=0.05))
    # 0.01 0.02 0.03 within, 0.07 0.09 0.10 above
    assert (
        'libero_object/0: 6 possible pairs began 0.010 to 0.100 m apart (quartiles 0.022, 0.050, '
        '0.085); 3 above 0.05 m are not made; 2 pairs are, of the 1 nearest of each trial'
    ) in caplog.text


def test_other_keypoints_are_a_warning_and_no_pair(caplog):
    states = STATES | {ROWS[3].bag: state(0.0, names=('bowl', 'plate'))}
    pairs = make_nearest_pairs(ROWS, states, PairSettings(m=3, nearest_m=1.0))
    assert 'd' not in {pair.rejected.episode_id for pair in pairs.pairs}
    assert '3 pairs of trials have different keypoints' in caplog.text


def test_all_too_far_apart_is_an_error_with_the_least_distance():
    with pytest.raises(PairingError, match='nearest two began 0.01 m apart, above 0.001 m'):
        make_nearest_pairs(ROWS, STATES, PairSettings(nearest_m=0.001))


def test_recorded_bags_are_paired_into_a_file_that_keeps_the_distance(tmp_path):
    rows = []
    for number, right_m in enumerate((0.0, 0.04, 0.40)):
        basket_m = np.add(BASKET_M, (0.0, right_m, 0.0))
        trial = make_trial(
            episode_id=f't{number}', init_state=number,
            basket_m=np.tile(basket_m, (131, 1)),
        )  # fmt: skip
        bag = record(tmp_path / 'bags', trial)
        rows.append(row(bag.name, 3.0 - number, init_state=number, folder=tmp_path / 'bags'))
    first = read_initial_state(rows[0].bag)
    assert first.names == ('basket_1', 'milk_1', 'target_1')
    assert first.positions_m[0] == pytest.approx(BASKET_M)
    write_scores(tmp_path / 'scores.csv', rows, STAGES)
    made = pair_nearest(
        tmp_path / 'scores.csv', PairSettings(nearest_m=0.05), tmp_path / 'pairs.json'
    )
    assert named(made) == [('t0', 't1')]
    assert made.pairs[0].distance_m == pytest.approx(0.01)
    assert read_pairs(tmp_path / 'pairs.json') == made


def test_files_of_before_read_without_a_distance(tmp_path):
    path = tmp_path / 'pairs.json'
    write_pairs(path, make_pairs([row('a', 2.0), row('b', 1.0)], PairSettings()))
    content = json.loads(path.read_text())
    assert 'distance_m' not in content['pairs'][0]
    for name in ('ranking', 'seed', 'nearest_m'):
        del content['settings'][name]
    path.write_text(json.dumps(content))
    read = read_pairs(path)
    assert read.pairs[0].distance_m is None and read.settings == PairSettings()
