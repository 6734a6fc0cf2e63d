"""Labels: a person's verdict counts over the recording, and nothing is ever overwritten."""

import pytest
from episode_bags import make_bag

from grape_episode.bag import read_info
from grape_episode.label import append_label, effective_outcome, read_labels
from grape_episode.outcome import Outcome


def test_last_verdict_counts_and_the_history_stays(tmp_path):
    bag = make_bag(tmp_path)
    assert (effective_outcome(bag), read_labels(bag)) == ('success', [])
    append_label(bag, 'failure', 'the milk lies beside the basket', 'ada')
    append_label(bag, 'success', 'it is inside', 'bob')
    assert effective_outcome(bag) == 'success'
    assert [(x.outcome, x.labeller) for x in read_labels(bag)] == [
        ('failure', 'ada'), ('success', 'bob'),
    ]  # fmt: skip
    assert read_info(bag).outcome is Outcome.SUCCESS


def test_discarded_episode_counts_as_interrupted(tmp_path):
    bag = make_bag(tmp_path)
    append_label(bag, 'discard')
    assert effective_outcome(bag) == 'interrupted'


def test_unknown_verdict_and_missing_bag_are_errors(tmp_path):
    with pytest.raises(ValueError, match="'good' is not one of: success, failure, discard"):
        append_label(make_bag(tmp_path), 'good')
    with pytest.raises(ValueError, match='no bag folder'):
        append_label(tmp_path / 'none', 'success')
