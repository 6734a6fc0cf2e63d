"""The pool and its manifest: order, resumption, retries; graphs that record stand in."""

import json
import threading
import time

import pytest
from episode_bags import make_bag

from grape_bringup import pool as pool_module
from grape_bringup.bag_names import free_bag_name
from grape_bringup.graph import EpisodeResult, GraphSetup
from grape_bringup.interruption import Interrupted
from grape_bringup.manifest import FILE, ManifestError, read_manifest
from grape_bringup.pool import Pool
from grape_bringup.pool_run import MAX_ERRORS_IN_A_ROW, PoolError
from grape_bringup.rollouts import demo_requests, next_attempt, trial_requests
from grape_episode.outcome import Outcome

BY = {'policy_sha256': 'abc', 'adapter_id': 'base'}


class RecordingGraph:
    """Plays nothing; remembers what it was asked, and answers as told."""

    played: list[tuple[str, str]] = []  # (task, episode id), of all graphs
    answers: dict[str, list[Outcome]] = {}
    on_play = staticmethod(lambda request: None)
    lock = threading.Lock()

    def __init__(self, setup, bags, logs, environment):
        self.bags, self.logs, self.adapter = bags, logs, 'unset'

    def record_to(self, bags):
        self.bags = bags

    def use_adapter(self, path):
        self.adapter = path

    def run_episode(self, request, cancel=None):
        with self.lock:
            self.played.append((request.task, request.episode_id))
            waiting = self.answers.get(request.episode_id.split('-r')[0], [])
            outcome = waiting.pop(0) if waiting else Outcome.FAILURE
        self.on_play(request)
        bag = self.bags / request.episode_id
        bag.mkdir(parents=True)
        content = {'outcome': str(outcome)}
        (bag / 'metadata.yaml').write_text('complete')
        (bag / 'said.json').write_text(json.dumps(content))
        return EpisodeResult(outcome, 3, bag, '')

    def stop(self):
        pass

    kill = stop


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(pool_module, 'Graph', RecordingGraph)
    monkeypatch.setattr(RecordingGraph, 'played', [])
    monkeypatch.setattr(RecordingGraph, 'answers', {})
    return RecordingGraph


def requests(tasks=('libero_object/0',), states=(0, 1), trials=2, seed=0, temperature=1.0):
    cells = [(task, state) for task in tasks for state in states]
    return trial_requests(cells, trials, seed, temperature)


def play(folder, asked, workers=1, by=BY, **options):
    with Pool(GraphSetup(), folder / 'logs', workers) as pool:
        return pool.run(asked, folder, by, **options)


def test_the_same_command_asks_for_the_same_episodes_with_seeds_of_their_own():
    first, again, other = requests(), requests(), requests(seed=1)
    assert first == again
    assert first[0].episode_id == 'libero_object_0-i00-t0-s0'
    assert len({r.seed for r in first + other}) == 8


def test_records_come_in_the_order_asked_for_whatever_worker_played_them(graphs, tmp_path):
    asked = requests(('libero_object/0', 'libero_object/4'))
    records = play(tmp_path, asked, workers=2)
    assert [r.episode_id for r in records] == [r.episode_id for r in asked]


def test_a_worker_stays_with_its_task(graphs, tmp_path):
    """Building another task's simulator takes seconds."""
    asked = requests(('libero_object/0', 'libero_object/4'), states=(0, 1, 2))
    play(tmp_path, sorted(asked, key=lambda r: r.init_state))
    tasks = [task for task, _ in graphs.played]
    assert tasks == sorted(tasks)


def test_the_same_call_plays_only_what_is_missing(graphs, tmp_path):
    first = play(tmp_path, requests(states=(0,)))
    graphs.played.clear()
    counted = []
    both = play(
        tmp_path, requests(), on_record=lambda record, done, total: counted.append((done, total))
    )
    assert [name for _, name in graphs.played] == [r.episode_id for r in requests(states=(1,))]
    assert both[:2] == first and counted[-1] == (4, 4)


def test_other_settings_in_the_same_folder_are_refused_and_named(graphs, tmp_path):
    play(tmp_path, requests())
    with pytest.raises(ManifestError, match='temperature: 1.0 there, 0.5 now'):
        play(tmp_path, requests(temperature=0.5))
    with pytest.raises(ManifestError, match='adapter_id: base there, other now'):
        play(tmp_path, requests(), by=BY | {'adapter_id': 'other'})


def test_an_infrastructure_error_is_played_again_and_its_bag_is_kept(graphs, tmp_path):
    asked = requests(states=(0,), trials=1)
    name = asked[0].episode_id
    graphs.answers[name] = [Outcome.ERROR, Outcome.SUCCESS]
    (record,) = play(tmp_path, asked)
    assert record.outcome == Outcome.SUCCESS and record.bag == f'{name}-r1'
    assert (tmp_path / name).is_dir() and len(read_manifest(tmp_path)) == 1


def test_an_error_that_stays_is_recorded_as_error_and_played_by_the_next_call(graphs, tmp_path):
    asked = requests(states=(0,), trials=1)
    graphs.answers[asked[0].episode_id] = [Outcome.ERROR, Outcome.ERROR, Outcome.FAILURE]
    assert play(tmp_path, asked)[0].outcome == Outcome.ERROR
    assert play(tmp_path, asked)[0].outcome == Outcome.FAILURE


def test_nothing_but_errors_stops_the_pool(graphs, tmp_path, monkeypatch):
    # As slow as the pool is to notice; a real episode takes seconds.
    monkeypatch.setattr(graphs, 'on_play', staticmethod(lambda request: time.sleep(0.05)))
    asked = requests(states=range(10))
    graphs.answers |= {r.episode_id: [Outcome.ERROR] * 2 for r in asked}
    with pytest.raises(PoolError, match='in a row'):
        play(tmp_path, asked)
    assert MAX_ERRORS_IN_A_ROW <= len(graphs.played) < 2 * len(asked)


def test_ctrl_c_keeps_what_was_finished(graphs, tmp_path, monkeypatch):
    asked = requests(states=range(3))

    def interrupt(record, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        play(tmp_path, asked, on_record=interrupt)
    assert len(read_manifest(tmp_path)) >= 2
    assert len(play(tmp_path, asked)) == 6
    assert len({name for _, name in graphs.played}) == 6


def test_a_half_written_last_line_is_left_out_and_played_again(graphs, tmp_path):
    asked = requests(states=(0,))
    play(tmp_path, asked)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-40])
    graphs.played.clear()
    play(tmp_path, asked)
    assert len(graphs.played) == 1
    assert len(read_manifest(tmp_path)) == 2


def test_the_expert_tries_other_grasps_until_one_succeeds(graphs, tmp_path):
    asked = demo_requests([('libero_object/0', 0), ('libero_object/0', 1)], 0, 0.15)
    second = 'libero_object_0-i01-t1-s0'
    graphs.answers |= {asked[0].episode_id: [Outcome.SUCCESS], second: [Outcome.SUCCESS]}
    records = play(tmp_path, asked, follow_up=next_attempt(asked, 0))
    found = [(r.init_state, r.asked['expert_attempt'], str(r.outcome)) for r in records]
    assert found == [(0, 0, 'success'), (1, 0, 'failure'), (1, 1, 'success')]
    graphs.played.clear()
    assert play(tmp_path, asked, follow_up=next_attempt(asked, 0)) == records
    assert graphs.played == []


def test_several_demonstrations_of_a_state_each_have_their_own_attempts(graphs, tmp_path):
    """Trial numbers do not meet, and the same command goes on with the same ones."""
    asked = demo_requests([('libero_object/0', 0)], 0, 0.25, trials=2)
    names = [f'libero_object_0-i00-t{number}-s0' for number in range(8)]
    graphs.answers |= {names[1]: [Outcome.SUCCESS], names[6]: [Outcome.SUCCESS]}
    records = play(tmp_path, asked, follow_up=next_attempt(asked, 0))
    assert sorted(r.episode_id for r in records) == [*names[:2], *names[4:7]]
    assert len({r.asked['seed'] for r in records}) == len(records)
    assert [str(r.outcome) for r in records].count('success') == 2
    graphs.played.clear()
    assert len(play(tmp_path, asked, follow_up=next_attempt(asked, 0))) == 5
    assert graphs.played == []


def test_what_a_stopped_run_left_is_moved_aside_not_deleted(tmp_path):
    """Its episode is played again, and would be in the folder twice."""
    for content in ('first', 'second'):
        bag = tmp_path / 'bags' / 'x'
        bag.mkdir(parents=True)
        (bag / 'x.mcap').write_text(content)
        assert free_bag_name(tmp_path / 'bags', 'x') == 'x' and not bag.exists()
    kept = sorted(path.read_text() for path in (tmp_path / 'discarded').glob('*/x.mcap'))
    assert kept == ['first', 'second']


@pytest.mark.parametrize(
    ('outcome', 'name'),
    [(Outcome.ERROR, '-r1'), (Outcome.INTERRUPTED, ''), (Outcome.SUCCESS, '')],
)
def test_only_the_bag_of_an_error_keeps_its_place(tmp_path, outcome, name):
    """An error's bag says why; a trial that the manifest lacks must not be scored twice."""
    bag = make_bag(tmp_path / 'bags', 'x', outcome=outcome)
    assert free_bag_name(tmp_path / 'bags', 'x') == f'x{name}'
    assert bag.is_dir() == (outcome == Outcome.ERROR)
