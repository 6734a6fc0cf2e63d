"""Scoring folders of recorded bags: every bag gets a row, and no work is done twice."""

import pytest
from scoring_trials import REACH, SUCCESS, make_trial, record

from grape_episode.label import append_label
from grape_episode.outcome import Outcome
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.preference import PairSettings, pair_scores, read_pairs
from grape_trainer.scoring.reward import score_episode
from grape_trainer.scoring.score_table import ScoreTableError, read_scores
from grape_trainer.scoring.scorer import score_bags

COMPLETION = load_objective('completion')


def failure(**other):
    # A failure ends at the step limit: longer than a success.
    return make_trial((REACH,) * 5, outcome=Outcome.FAILURE, **other)


@pytest.fixture
def bags(tmp_path):
    folder = tmp_path / 'bags'
    folder.mkdir()
    return [
        record(folder, make_trial(episode_id='good')),
        record(folder, failure(episode_id='poor')),
        record(folder, make_trial(episode_id='other', init_state=1)),
    ]


def statuses(report):
    return {row.bag.name: row.status for row in report.rows}


def test_bag_scores_the_same_as_the_episode_that_was_recorded(bags, tmp_path):
    row = score_bags(bags, COMPLETION, tmp_path / 'scores.csv').rows[0]
    score = score_episode(make_trial(episode_id='good'), COMPLETION)
    assert (row.r_self, row.r_gcpg) == (score.r_self, pytest.approx(score.r_gcpg, abs=1e-12))
    assert row.stage_costs == pytest.approx({c.stage: c.cost for c in score.stages})
    assert (row.success, row.steps, row.status) == (True, 130, 'scored')
    assert (row.cost_sha256, row.config_sha256) == (score.cost_sha256, score.config_sha256)


def test_table_on_disk_is_what_was_reported_and_gives_pairs(bags, tmp_path):
    seen = []
    out = tmp_path / 'scores.csv'
    report = score_bags(bags, COMPLETION, out, lambda *at: seen.append(at[:2]))
    assert read_scores(out) == list(report.rows)
    assert (seen, report.exit_code) == ([(1, 3), (2, 3), (3, 3)], 0)
    pairs = pair_scores(out, PairSettings(m=2), tmp_path / 'pairs.json')
    assert [(p.chosen.bag, p.rejected.bag) for p in pairs.pairs] == [(bags[0], bags[1])]
    assert read_pairs(tmp_path / 'pairs.json') == pairs


def test_two_runs_write_the_same_bytes(bags, tmp_path):
    texts = []
    for name in ('one.csv', 'two.csv'):
        score_bags(bags, COMPLETION, tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]


def test_several_processes_write_the_same_table_and_resume(tmp_path):
    folder = tmp_path / 'bags'
    folder.mkdir()
    many = [
        record(folder, make_trial((REACH,), episode_id=f'trial-{k}', init_state=k))
        for k in range(17)
    ]
    one, two = tmp_path / 'one.csv', tmp_path / 'two.csv'
    score_bags(many, COMPLETION, one)

    def stop_after_three(done, total, row):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_bags(many, COMPLETION, two, stop_after_three, jobs=2)
    assert len(read_scores(two)) == 3
    report = score_bags(many, COMPLETION, two, jobs=2)
    assert report.resumed == 3
    assert two.read_bytes() == one.read_bytes()


def test_scored_bags_are_not_scored_again(bags, tmp_path):
    out = tmp_path / 'scores.csv'
    assert score_bags(bags[:2], COMPLETION, out).resumed == 0
    marked = out.read_text().replace(',130,', ',131,')  # shows that the row was taken over
    out.write_text(marked)
    report = score_bags(bags, COMPLETION, out)
    assert (report.resumed, report.rows[0].steps, len(report.rows)) == (2, 131, 3)


def test_run_that_was_stopped_keeps_its_finished_rows(bags, tmp_path):
    out = tmp_path / 'scores.csv'

    def stop(done, total, row):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_bags(bags, COMPLETION, out, stop)
    assert [row.episode_id for row in read_scores(out)] == ['good', 'poor']
    whole = score_bags(bags, COMPLETION, out)
    assert whole.resumed == 2
    assert whole.rows == score_bags(bags, COMPLETION, tmp_path / 'fresh.csv').rows


def test_another_objective_weight_or_label_scores_again(bags, tmp_path):
    out = tmp_path / 'scores.csv'
    score_bags(bags, COMPLETION, out)
    assert score_bags(bags, COMPLETION.with_lambdas(0.01, 1.0, 2.0), out).resumed == 0
    assert score_bags(bags, load_objective('safety'), out).resumed == 0
    append_label(bags[0], 'failure', 'it fell out')
    report = score_bags(bags, load_objective('safety'), out)
    assert (report.resumed, report.rows[0].success) == (2, False)


def test_errors_and_discarded_trials_are_listed_and_not_scored(bags, tmp_path):
    error = make_trial(episode_id='bad', outcome=Outcome.ERROR, detail='policy\ntimed out')
    append_label(bags[0], 'discard')
    report = score_bags([*bags, record(tmp_path, error)], COMPLETION, tmp_path / 'scores.csv')
    found = {'good': 'interrupted', 'poor': 'scored', 'other': 'scored', 'bad': 'error'}
    assert statuses(report) == found
    assert report.rows[3].detail == 'policy timed out'
    assert (report.rows[3].r_ext, report.rows[3].outcome, report.exit_code) == (None, 'error', 0)


def test_expert_bag_is_scored_without_r_self(tmp_path):
    expert = record(tmp_path, make_trial(episode_id='expert', log_prob=None))
    row = score_bags([expert], COMPLETION, tmp_path / 'scores.csv').rows[0]
    assert (row.status, row.r_self, row.r_gcpg) == ('no_log_probs', None, None)
    assert row.r_ext > 0.9
    line = (tmp_path / 'scores.csv').read_text().splitlines()[1]
    assert ',no_log_probs,,,' in line


def test_corrupted_bag_is_reported_and_scoring_goes_on(bags, tmp_path):
    [recording] = bags[0].glob('*.mcap')
    recording.write_bytes(recording.read_bytes()[: recording.stat().st_size // 2])
    report = score_bags(bags, COMPLETION, tmp_path / 'scores.csv')
    assert statuses(report) == {'good': 'corrupted', 'poor': 'scored', 'other': 'scored'}
    assert 'grape bag recover' in report.rows[0].detail
    assert report.exit_code == 1
    again = score_bags(bags, COMPLETION, tmp_path / 'scores.csv')
    assert again.resumed == 2  # the corrupted one is tried again


def test_bag_without_roles_is_unscorable_and_says_what_to_do(bags, tmp_path):
    bag = record(tmp_path, make_trial(episode_id='plain', environment={}))
    report = score_bags([*bags, bag], COMPLETION, tmp_path / 'scores.csv')
    assert (report.rows[3].status, report.exit_code) == ('unscorable', 1)
    assert 'no target' in report.rows[3].detail


def test_folder_that_is_no_bag_is_reported(bags, tmp_path):
    (tmp_path / 'empty').mkdir()
    report = score_bags([tmp_path / 'empty', bags[0]], COMPLETION, tmp_path / 'scores.csv')
    assert statuses(report) == {'empty': 'corrupted', 'good': 'scored'}


def test_no_bags_and_a_foreign_table_are_errors(bags, tmp_path):
    with pytest.raises(ScoreTableError, match='no bags'):
        score_bags([], COMPLETION, tmp_path / 'scores.csv')
    (tmp_path / 'mine.csv').write_text('my,notes\n')
    with pytest.raises(ScoreTableError, match='its columns are: my, notes'):
        score_bags(bags, COMPLETION, tmp_path / 'mine.csv')
    assert (tmp_path / 'mine.csv').read_text() == 'my,notes\n'


def test_spread_of_the_scored_trials_comes_with_the_report(bags, tmp_path):
    report = score_bags(bags, COMPLETION, tmp_path / 'scores.csv')
    assert report.spread.n == 3
    assert [term.term for term in report.spread.terms] == ['self', 'ext', 'success']
    assert any('outweighs ext' in text for text in report.spread.warnings)


def test_rows_follow_the_order_of_the_bags_and_each_bag_counts_once(bags, tmp_path):
    out = tmp_path / 'scores.csv'
    report = score_bags([bags[2], bags[0], bags[2]], COMPLETION, out)
    assert [row.bag for row in report.rows] == [bags[2], bags[0]]
    assert len(SUCCESS) == 6 and out.read_text().splitlines()[1].startswith('bags/other,')
