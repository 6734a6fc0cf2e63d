"""An experiment's configuration, how its seeds are pooled, and its tables."""

import csv
import json

import pytest
import yaml

from grape_bringup.experiment_results import read_results
from grape_bringup.graph_setup import EpisodeRequest
from grape_bringup.manifest import Manifest
from grape_episode.outcome import Outcome
from grape_trainer.evaluation import EpisodeResult, evaluation_dict
from grape_trainer.experiment import BASE, Experiment, bootstrap_difference, cells
from grape_trainer.experiment_table import write_results
from grape_trainer.iteration_config import IterationError

COMMON = {
    'policy': 'policy',
    'tasks': ['libero_object/0'],
    'train_init_states': '0-3',
    'eval_init_states': '40-43',
    'evaluations': {'far': {'tasks': ['libero_object/1'], 'init_states': '40-41'}},
}


@pytest.fixture
def made(tmp_path):
    """An experiment with two runs and two seeds, without results."""

    def make(**changes):
        content = {
            'name': 'test',
            'out': str(tmp_path / 'out'),
            'seeds': [0, 1],
            'common': COMMON,
            'runs': {'tpo': {'rounds': 2, 'title': 'TPO'}, 'ppo': {'method': 'ppo'}},
        }
        path = tmp_path / 'experiment.yaml'
        path.write_text(yaml.safe_dump(content | changes))
        return Experiment.load(path)

    return make


def episodes(outcomes, task='libero_object/0'):
    return [
        EpisodeResult(
            task, 40 + i, Outcome.SUCCESS if letter == 's' else Outcome.FAILURE, 70 + 10 * i, False
        )
        for i, letter in enumerate(outcomes)
    ]


def record(folder, outcomes, name='eval.json', task='libero_object/0'):
    folder.mkdir(parents=True, exist_ok=True)
    content = evaluation_dict(episodes(outcomes, task), 'policy', 'adapter')
    (folder / name).write_text(json.dumps(content))


def trials(folder, steps):
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(folder, {})
    for index, count in enumerate(steps):
        request = EpisodeRequest(f't{index}', 'libero_object/0', 0, index)
        manifest.add(request, Outcome.FAILURE, count, None, '')
    with (folder / 'episodes.jsonl').open('a') as stream:
        stream.write('{"episode')  # a killed run's last line


def fill(experiment):
    """Base 1 of 4; TPO after one round 2 and 4 of 4, after two 3 of 4 with seed 0 only."""
    out = experiment.out
    trials(experiment.shared / 'trials_s0', [100, 50])
    trials(experiment.shared / 'trials_s1', [110, 60])
    for seed, first in ((0, 'ssff'), (1, 'ssss')):
        run = out / 'tpo' / f'seed_{seed}'
        record(run / 'base', 'sfff')
        record(run / 'round_1', first)
    trials(out / 'tpo' / 'seed_0' / 'round_2' / 'bags', [70])
    record(out / 'tpo' / 'seed_0' / 'round_2', 'ssfs')
    record(out / 'tpo' / 'seed_0' / 'base', 'fs', 'eval_far.json', 'libero_object/1')
    record(out / 'tpo' / 'seed_0' / 'round_2', 'ss', 'eval_far.json', 'libero_object/1')


def test_runs_share_the_first_trials_and_differ_in_folder_and_seed(made, tmp_path):
    experiment = made()
    config = experiment.runs['tpo'][1]
    assert (config.rounds, config.seed, config.method) == (2, 1, 'tpo')
    assert config.out == str(tmp_path / 'out' / 'tpo' / 'seed_1')
    assert config.shared == experiment.runs['ppo'][0].shared == str(tmp_path / 'out' / 'shared')
    assert experiment.titles == {'tpo': 'TPO', 'ppo': 'ppo'}


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'runs': {'tpo': {'seed': 3}}}, 'run tpo sets seed'),
        ({'runs': {'tpo': {'round': 3}}}, 'run tpo has the unknown keys round'),
        ({'seeds': []}, 'no seeds'),
        ({'budget': 4}, 'has the keys .*budget'),
    ],
)
def test_a_wrong_experiment_says_where(made, changes, text):
    with pytest.raises(IterationError, match=text):
        made(**changes)


def test_seeds_are_pooled_and_compared_with_the_base_on_the_same_states(made):
    experiment = made()
    fill(experiment)
    found = {(c.run, c.round, c.suite): c for c in cells(read_results(experiment))}
    base = found[BASE, 0, 'in_domain']
    assert (base.summary.n, base.summary.successes, base.difference) == (4, 1, None)
    first = found['tpo', 1, 'in_domain']
    assert (first.summary.n, first.summary.successes, first.seeds) == (8, 6, 2)
    assert first.by_seed == (0.5, 1.0)
    assert first.env_steps == pytest.approx((150 + 170) / 2)
    # Of 8 (seed, state) the base alone solved 0, TPO alone 1 and 3: p = 2 / 2**4.
    assert (first.against_base.only_first, first.against_base.only_second) == (0, 4)
    assert first.against_base.p_value == pytest.approx(0.125)
    second = found['tpo', 2, 'in_domain']
    assert (second.seeds, second.env_steps) == (1, 220)
    assert found['tpo', 2, 'far'].difference[0] == pytest.approx(0.5)
    assert ('ppo', 1, 'in_domain') not in found


def test_the_bootstrap_draws_initial_states_with_all_their_seeds():
    base = episodes('sf')
    # State 40: 1 before, 1 and 0 after: -0.5. State 41: 0 before, 1 and 1 after: +1.
    mean, low, high = bootstrap_difference(base, [episodes('ss'), episodes('fs')])
    assert (mean, low, high) == (pytest.approx(0.25), pytest.approx(-0.5), pytest.approx(1.0))
    with pytest.raises(ValueError, match='no decided initial state'):
        bootstrap_difference(base, [episodes('ss', 'libero_object/1')])


def test_tables_and_pictures_are_of_what_is_there(made):
    experiment = made()
    fill(experiment)
    found = cells(read_results(experiment))
    files = write_results(found, experiment.titles, experiment.out)
    with files[0].open() as stream:
        rows = {(r['run'], r['round'], r['suite']): r for r in csv.DictReader(stream)}
    assert rows['tpo', '1', 'in_domain']['n'] == '8'
    assert float(rows['tpo', '1', 'in_domain']['success']) == 0.75
    text = files[1].read_text()
    assert '| TPO | 1 | 8 (2) | 6/8 = 0.75 | 0.41 - 0.93 | 0.50, 1.00 |' in text
    assert '| SFT (the base policy) |  | 4 (1) | 1/4 = 0.25 |' in text
    for picture in files[2:]:
        assert picture.read_bytes().startswith(b'\x89PNG') and picture.stat().st_size > 5000
