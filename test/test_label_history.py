"""The history of labels: undo, two people at once, and lines that a kill cut."""

import logging
import multiprocessing
import os

import pytest
from episode_bags import make_bag

from grape_bringup.label_page.queue import ConflictError, LabelQueue
from grape_episode.label import (
    FILE,
    append_label,
    effective_outcome,
    read_labels,
    standing,
    undo_label,
)
from grape_episode.outcome import Outcome


def unlabelled(folder, name='e0', **options):
    return make_bag(folder, name, **{'outcome': Outcome.INTERRUPTED} | options)


def test_undo_restores_the_verdict_before_and_erases_nothing(tmp_path):
    bag = unlabelled(tmp_path)
    append_label(bag, 'failure', labeller='ada')
    append_label(bag, 'success', labeller='ada', score=8, stage='place')
    assert undo_label(bag, 'ada').outcome == 'failure'
    assert effective_outcome(bag) == 'failure'
    assert undo_label(bag, 'ada') is None
    assert effective_outcome(bag) == 'interrupted'  # unlabelled is not failure
    assert [x.outcome for x in read_labels(bag)] == ['failure', 'success', 'undo', 'undo']
    with pytest.raises(ValueError, match='no label to take back'):
        undo_label(bag)


def test_undo_never_takes_back_what_somebody_else_said_meanwhile(tmp_path):
    bag = unlabelled(tmp_path)
    mine = append_label(bag, 'success', labeller='ada')
    append_label(bag, 'failure', labeller='bob')
    with pytest.raises(ValueError, match='bob labelled it failure'):
        undo_label(bag, 'ada', expected=mine)
    assert effective_outcome(bag) == 'failure'


@pytest.mark.parametrize('cut', range(1, 12))
def test_line_cut_by_a_kill_is_left_out_and_named_and_the_next_one_is_whole(tmp_path, cut, caplog):
    bag = unlabelled(tmp_path)
    append_label(bag, 'success', labeller='ada')
    append_label(bag, 'failure', labeller='bob')
    path = bag / FILE
    os.truncate(path, path.stat().st_size - 1 - cut * 7)
    with caplog.at_level(logging.WARNING):
        assert [x.labeller for x in read_labels(bag)] == ['ada']
    assert f'{FILE}: line 2 is incomplete' in caplog.text
    append_label(bag, 'discard', labeller='eve')
    assert [x.labeller for x in read_labels(bag)] == ['ada', 'eve']
    assert effective_outcome(bag) == 'interrupted'


def test_line_without_its_newline_is_whole(tmp_path):
    bag = unlabelled(tmp_path)
    append_label(bag, 'success', labeller='ada')
    path = bag / FILE
    os.truncate(path, path.stat().st_size - 1)
    append_label(bag, 'failure', labeller='bob')
    assert [x.labeller for x in read_labels(bag)] == ['ada', 'bob']


def test_line_of_another_version_is_an_error_and_not_dropped(tmp_path):
    bag = unlabelled(tmp_path)
    (bag / FILE).write_text('{"outcome": "success", "stars": 5}\n')
    with pytest.raises(ValueError, match='line 1 .*stars'):
        read_labels(bag)


@pytest.mark.parametrize('score', [-1, 11, float('nan')])
def test_score_out_of_range_is_refused_and_nothing_written(tmp_path, score):
    bag = unlabelled(tmp_path)
    with pytest.raises(ValueError, match='from 0 to 10'):
        append_label(bag, 'success', score=score)
    assert not (bag / FILE).exists()


def label_often(bag, name):
    for _ in range(50):
        append_label(bag, 'success', labeller=name)


def test_two_labellers_at_once_lose_no_line(tmp_path):
    bag = unlabelled(tmp_path)
    context = multiprocessing.get_context('fork')
    people = [context.Process(target=label_often, args=(bag, name)) for name in ('ada', 'bob')]
    for person in people:
        person.start()
    for person in people:
        person.join(30)
    said = [label.labeller for label in read_labels(bag)]
    assert (said.count('ada'), said.count('bob')) == (50, 50)


def test_queue_has_the_unlabelled_first_oldest_first_and_new_ones_at_the_end(tmp_path):
    for number, name in ((2, 'b'), (1, 'a')):
        unlabelled(tmp_path, name, started_at=f'2026-01-01T10:00:0{number}+00:00')
    make_bag(tmp_path, 'simulated', started_at='2026-01-01T09:00:00+00:00')
    queue = LabelQueue(tmp_path)

    def names():
        return [queue.entries[number].info.episode_id for number in queue.order()]

    assert names() == ['a', 'b', 'simulated']
    queue.label(queue.order()[0], 'success', 'ada', seen=None)
    assert names() == ['b', 'simulated', 'a']
    unlabelled(tmp_path, 'c', started_at='2025-01-01T09:00:00+00:00')
    assert queue.refresh() == 1 and names() == ['b', 'c', 'simulated', 'a']
    assert queue.after(queue.order()[0]) == queue.order()[1]


def test_queue_writes_nothing_over_a_verdict_that_the_person_has_not_seen(tmp_path):
    bag = unlabelled(tmp_path)
    queue = LabelQueue(tmp_path)
    append_label(bag, 'failure', labeller='bob')
    with pytest.raises(ConflictError, match='bob said failure'):
        queue.label(0, 'success', 'ada', seen=None)
    assert standing(read_labels(bag)).labeller == 'bob'
    queue.label(0, 'success', 'ada', seen=queue.holds(0))
    assert standing(read_labels(bag)).labeller == 'ada'


def test_empty_folder_is_an_empty_queue_until_something_is_recorded(tmp_path):
    queue = LabelQueue(tmp_path)
    assert queue.order() == []
    unlabelled(tmp_path)
    assert queue.refresh() == 1
