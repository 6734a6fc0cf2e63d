"""Trials without likelihoods: read, ranked by what happened, refused where that is too little."""

import numpy as np
import pytest
import yaml
from episode_bags import make_bag, rewrite
from learner_bags import write_pairs_file
from scoring_trials import make_trial, record

from grape_bringup.ros_environment import config_file
from grape_episode.bag import BagError, read_episode
from grape_trainer.dataset import DataError, read_pairs
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.preference import PairingError, PairSettings, pair_scores
from grape_trainer.scoring.scorer import score_bags

SERVED = {'policy': 'ws://gpu:8000', 'protocol': 'openpi', 'has_log_probs': False}


def test_a_step_that_was_held_without_an_answer_leaves_the_episode_without_likelihood(tmp_path):
    """The connection to the policy's server was lost: not an error, and not a guess either."""

    def hold(topic, message):
        if topic == 'policy_step' and message.step == 2:
            message.action_token_ids, message.token_log_probs = np.zeros(0, int), np.zeros(0)
            message.verdict = 2
        return [message]

    episode = read_episode(rewrite(make_bag(tmp_path / 'held'), hold))
    assert episode.action_token_ids.shape == episode.token_log_probs.shape == (6, 0)
    assert list(episode.verdict) == [0, 0, 2, 0, 0, 0]


def test_a_step_that_lacks_tokens_for_no_reason_is_still_an_error(tmp_path):
    def drop(topic, message):
        if topic == 'policy_step' and message.step == 2:
            message.action_token_ids = np.zeros(0, int)
        return [message]

    with pytest.raises(BagError, match='step 2: 0 values; expected 7'):
        read_episode(rewrite(make_bag(tmp_path / 'broken'), drop))


def test_a_foreign_policys_trial_is_read_with_a_temperature_that_nobody_knows(tmp_path):
    def unknown(topic, message):
        if topic == 'policy_step':
            message.temperature = np.nan
        return [message]

    bag = rewrite(make_bag(tmp_path / 'served', tokens=0, policy=SERVED), unknown)
    episode = read_episode(bag)
    assert episode.token_log_probs.shape == (6, 0) and np.isnan(episode.temperature)
    assert episode.info.policy['has_log_probs'] is False


def test_served_trials_have_no_r_self_and_are_ranked_only_with_lambda_self_0(tmp_path):
    trials = [
        make_trial(episode_id=name, log_prob=None, controller='policy', policy=SERVED, outcome=o)
        for name, o in (('good', 'success'), ('bad', 'failure'))
    ]
    bags = [record(tmp_path, trial) for trial in trials]
    usual, table = load_objective('completion'), tmp_path / 'scores.csv'
    rows = score_bags(bags, usual, table).rows
    assert {row.status for row in rows} == {'no_log_probs'} and rows[0].r_gcpg is None
    assert 'served policy without them' in rows[0].detail and 'lambda_self 0' in rows[0].detail
    with pytest.raises(PairingError, match='pi0 and Octo give none.*lambda_self: 0'):
        pair_scores(table, PairSettings(), tmp_path / 'pairs.json')

    content = yaml.safe_load(config_file('objective/completion.yaml').read_text())
    content['reward']['lambda_self'] = 0
    (tmp_path / 'outcome.yaml').write_text(yaml.safe_dump(content))
    rows = score_bags(bags, load_objective(str(tmp_path / 'outcome.yaml')), table).rows
    assert rows[0].r_gcpg > rows[1].r_gcpg
    assert pair_scores(table, PairSettings(), tmp_path / 'pairs.json').pairs


def test_preference_training_refuses_served_trials_before_it_loads_a_model(tmp_path):
    chosen = make_bag(tmp_path / 'a', 'a', tokens=0, policy=SERVED)
    rejected = make_bag(tmp_path / 'b', 'b')
    write_pairs_file(tmp_path / 'pairs.json', [(chosen, rejected)])
    with pytest.raises(DataError, match='ws://gpu:8000, which gives no log-probabilities'):
        read_pairs(tmp_path / 'pairs.json')
    write_pairs_file(tmp_path / 'pairs.json', [(rejected, rejected)])
    assert len(read_pairs(tmp_path / 'pairs.json')) == 1
