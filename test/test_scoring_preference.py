"""Pairs: the right trials against each other, in a fixed order, or a reason why not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grape_trainer.scoring.preference import (
    PairingError,
    PairSettings,
    make_pairs,
    pair_scores,
    read_pairs,
    write_pairs,
)
from grape_trainer.scoring.score_table import (
    ScoreRow,
    ScoreTableError,
    append_score,
    read_scores,
    write_scores,
)

STAGES = ('grasp', 'transport', 'place')


def row(name, score, success=False, init_state=0, folder=Path('/bags'), **other):
    return ScoreRow(
        **{
            'bag': folder / name,
            'episode_id': name,
            'task': 'libero_object/0',
            'init_state': init_state,
            'seed': 3,
            'temperature': 1.0,
            'adapter_id': 'base',
            'policy_sha256': 'abcdef0123',
            'outcome': 'success' if success else 'failure',
            'success': success,
            'steps': 100,
            'r_self': -123.456,
            'stage_costs': {'grasp': 0.1, 'transport': 0.2, 'place': 0.30000000000000004},
            'r_ext': 0.5,
            'r_gcpg': score,
            'lambda_self': 0.01,
            'lambda_ext': 0.01,
            'lambda_success': 2.0,
            'self_reward': 'sum',
            'objective': 'completion',
            'cost_sha256': 'c' * 64,
            'config_sha256': 'd' * 64,
            'code_version': 'v1',
        }
        | other
    )


def named(pair_set):
    return [(pair.chosen.episode_id, pair.rejected.episode_id) for pair in pair_set.pairs]


def test_top_two_are_paired_with_bottom_two_each_with_each():
    rows = [row('c', 3.0), row('a', 5.0), row('e', 1.0), row('b', 4.0), row('d', 2.0)]
    pairs = make_pairs(rows, PairSettings(m=2))
    assert named(pairs) == [('a', 'e'), ('a', 'd'), ('b', 'e'), ('b', 'd')]
    assert [pair.margin for pair in pairs.pairs] == [4.0, 3.0, 3.0, 2.0]


def test_order_of_the_rows_does_not_matter():
    rows = [
        row('a', 1.0),
        row('b', 2.0),
        row('c', 2.0),
        row('d', 0.0),
        row('x', 9.0, init_state=1),
    ]
    settings = PairSettings(m=3)
    assert make_pairs(rows, settings) == make_pairs(rows[::-1], settings)


def test_a_trial_is_never_paired_with_itself_or_with_an_equal():
    rows = [row('a', 2.0), row('b', 1.0), row('c', 1.0)]
    assert named(make_pairs(rows, PairSettings(m=3))) == [('a', 'c'), ('a', 'b')]


def test_trials_of_different_initial_states_are_never_paired():
    rows = [row('a', 2.0), row('b', 1.0), row('c', 9.0, init_state=1), row('d', 8.0, init_state=1)]
    assert named(make_pairs(rows, PairSettings(m=1))) == [('a', 'b'), ('c', 'd')]


def test_a_float_margin_ranks_trials_that_integers_would_not():
    """Fault G5: the published score is an int in a file name."""
    assert named(make_pairs([row('a', 1.2), row('b', 1.7)], PairSettings(m=1))) == [('b', 'a')]


def test_rows_without_a_score_are_left_out():
    rows = [row('a', 2.0), row('b', 1.0), row('e', None, status='error'), row('f', None)]
    assert named(make_pairs(rows, PairSettings())) == [('a', 'b')]


def test_outcome_gap_keeps_only_successes_over_failures():
    rows = [row('a', 4.0, True), row('b', 3.0, True), row('c', 2.0), row('d', 1.0)]
    pairs = make_pairs(rows, PairSettings(m=3, require_outcome_gap=True))
    assert named(pairs) == [('a', 'd'), ('a', 'c'), ('b', 'd'), ('b', 'c')]


def test_margin_leaves_out_near_ties_and_says_so():
    rows = [row('a', 2.0), row('b', 1.9), row('x', 5.0, init_state=1), row('y', 1.0, init_state=1)]
    pairs = make_pairs(rows, PairSettings(min_margin=0.5))
    assert named(pairs) == [('x', 'y')]
    assert [(g.init_state, g.trials) for g in pairs.skipped] == [(0, 2)]
    assert pairs.skipped[0].reason == 'the largest margin is 0.1, min_margin 0.5'


def test_no_pair_at_all_is_an_error_that_says_why_and_what_to_do():
    rows = [row('a', 2.0), row('b', 2.0), row('c', 1.0, init_state=1)]
    with pytest.raises(PairingError) as caught:
        make_pairs(rows, PairSettings())
    text = str(caught.value)
    assert 'initial state 0, 2 trials: all trials score the same' in text
    assert 'initial state 1, 1 trials: fewer than 2 scored trials' in text
    assert 'higher temperature' in text


def test_table_without_scores_is_an_error_that_counts_what_is_there():
    rows = [row('a', None, status='error'), row('b', None, status='no_log_probs')]
    with pytest.raises(PairingError, match='1 error, 1 no_log_probs'):
        make_pairs(rows, PairSettings())
    with pytest.raises(PairingError, match='no rows'):
        make_pairs([], PairSettings())


def test_two_policies_in_one_group_are_an_error_unless_allowed():
    rows = [row('a', 2.0), row('b', 1.0, adapter_id='iter1-00ff00ff')]
    with pytest.raises(PairingError, match='adapter base, policy abcdef01 adapter iter1-00ff00ff'):
        make_pairs(rows, PairSettings())
    assert named(make_pairs(rows, PairSettings(allow_mixed_policies=True))) == [('a', 'b')]
    apart = [row('a', 2.0), row('b', 1.0), *(replace(r, init_state=1) for r in rows[1:])]
    assert named(make_pairs(apart, PairSettings())) == [('a', 'b')]


def test_scores_of_different_making_are_an_error():
    for change in ({'cost_sha256': 'e' * 64}, {'code_version': 'v2'}, {'lambda_ext': 1.0}):
        with pytest.raises(PairingError, match=f'differ in {next(iter(change))}'):
            make_pairs([row('a', 2.0), row('b', 1.0, **change)], PairSettings())


def test_settings_out_of_range_are_an_error():
    with pytest.raises(PairingError, match='m is 0'):
        PairSettings(m=0)
    with pytest.raises(PairingError, match='min_margin is -1'):
        PairSettings(min_margin=-1)
    with pytest.raises(PairingError, match="ranking is 'best'"):
        PairSettings(ranking='best')
    with pytest.raises(PairingError, match='nearest_m is 0'):
        PairSettings(nearest_m=0.0)
    with pytest.raises(PairingError, match='Random pairs look at no score'):
        PairSettings(ranking='random', min_margin=1.0)


def test_random_ranking_draws_the_order_and_makes_as_many_pairs():
    rows = [row(name, score) for name, score in zip('abcde', (5.0, 4, 3, 2, 1), strict=True)]
    drawn = [named(make_pairs(rows, PairSettings(ranking='random', seed=s))) for s in range(20)]
    assert all(len(set(pairs)) == 4 for pairs in drawn)
    assert all(chosen != rejected for pairs in drawn for chosen, rejected in pairs)
    assert drawn[0] == named(make_pairs(rows[::-1], PairSettings(ranking='random', seed=0)))
    chosen = [c for pairs in drawn for c, _ in pairs]
    # 80 draws of 5 trials: 16 of each are expected, and the worst is chosen too.
    assert min(chosen.count(name) for name in 'abcde') >= 6
    assert any(drawn[0] != other for other in drawn[1:])


def test_random_ranking_pairs_trials_of_equal_score():
    rows = [row('a', 1.0), row('b', 1.0)]
    pairs = make_pairs(rows, PairSettings(m=2, ranking='random')).pairs
    assert len(pairs) == 1 and pairs[0].margin == 0.0


def test_random_ranking_does_not_follow_the_scores():
    """An order of ranks would be the same in every group and every round of an iteration."""
    rows = [row(f'{i}-{n}', float(n), init_state=i) for i in range(40) for n in range(4)]
    pairs = make_pairs(rows, PairSettings(m=1, ranking='random')).pairs
    better = sum(pair.margin > 0 for pair in pairs)
    assert 10 <= better <= 30
    assert {pair.chosen.score for pair in pairs} == {0.0, 1.0, 2.0, 3.0}


def test_pairs_file_reads_back_and_moves_with_its_folder(tmp_path):
    folder = tmp_path / 'run'
    rows = [row('a', 2.5, folder=folder / 'bags'), row('b', 1.0, folder=Path('/elsewhere'))]
    pairs = make_pairs(rows, PairSettings(m=1))
    write_pairs(folder / 'pairs.json', pairs)
    assert read_pairs(folder / 'pairs.json') == pairs
    entry = json.loads((folder / 'pairs.json').read_text())['pairs'][0]
    assert (entry['chosen']['bag'], entry['rejected']['bag']) == ('bags/a', '/elsewhere/b')
    moved = folder.rename(tmp_path / 'moved')
    assert read_pairs(moved / 'pairs.json').pairs[0].chosen.bag == moved / 'bags' / 'a'


def test_file_that_is_no_pairs_file_is_an_error(tmp_path):
    with pytest.raises(PairingError, match="'grape pair'"):
        read_pairs(tmp_path / 'none.json')
    for text in ('{', '[]', '{"pairs": []}'):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(PairingError, match='not a pairs file'):
            read_pairs(tmp_path / 'bad.json')
    (tmp_path / 'bad.json').write_text('{"version": 99}')
    with pytest.raises(PairingError, match='version 99; expected 1'):
        read_pairs(tmp_path / 'bad.json')


def test_score_table_reads_back_every_digit(tmp_path):
    rows = [
        row('a', 1 / 3, True, folder=tmp_path / 'bags'),
        ScoreRow(bag=Path('/far/b'), status='corrupted', detail='no, "really"\tno'),
    ]
    write_scores(tmp_path / 'scores.csv', rows, STAGES)
    assert read_scores(tmp_path / 'scores.csv') == rows
    lines = (tmp_path / 'scores.csv').read_text().splitlines()
    assert lines[1].startswith('bags/a,a,libero_object/0,0,3,1.0,base,')
    assert 'cost_grasp,cost_transport,cost_place' in lines[0]


def test_score_table_cut_off_in_its_last_line_reads_without_it(tmp_path, caplog):
    path = tmp_path / 'scores.csv'
    write_scores(path, [row('a', 1.0)], STAGES)
    append_score(path, row('b', 2.0), STAGES)
    path.write_text(path.read_text()[:-40])
    assert [r.episode_id for r in read_scores(path)] == ['a']
    assert 'incomplete' in caplog.text


def test_file_that_is_no_score_table_is_an_error(tmp_path):
    path = tmp_path / 'scores.csv'
    with pytest.raises(ScoreTableError, match="'grape score'"):
        read_scores(path)
    path.write_text('a,b\n1,2\n')
    with pytest.raises(ScoreTableError, match='its columns are: a, b'):
        read_scores(path)
    write_scores(path, [row('a', 1.0)], STAGES)
    path.write_text(path.read_text().replace('libero_object/0,0,', 'libero_object/0,zero,'))
    with pytest.raises(ScoreTableError, match="line 2: .*'zero'"):
        read_scores(path)


def test_pairing_a_table_keeps_its_hash(tmp_path):
    write_scores(tmp_path / 'scores.csv', [row('a', 2.0), row('b', 1.0)], STAGES)
    made = pair_scores(tmp_path / 'scores.csv', PairSettings(m=1), tmp_path / 'pairs.json')
    assert read_pairs(tmp_path / 'pairs.json') == made
    assert len(made.hashes['scores_sha256']) == 64
    assert made.hashes['cost_sha256'] == 'c' * 64
