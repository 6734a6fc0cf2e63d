"""The order of Algorithm 1's phases and where a run goes on; the phases are recorded."""

import json

import pytest
import yaml

from grape_trainer.iteration import run_iterations
from grape_trainer.iteration_config import IterateConfig, IterationError

CONFIG = {
    'policy': 'policy',
    'tasks': ['libero_object/0'],
    'out': 'run',
    'train_init_states': '0-3',
    'eval_init_states': '40-44',
    'rounds': 2,
}


class RecordingSteps:
    """Remembers what was done with which adapter; raises where told."""

    def __init__(self, break_at=None):
        self.done, self._break_at = [], break_at
        self.cells, self.bags = {}, []

    def _note(self, *entry):
        self.done.append(entry)
        if self._break_at == entry[:2]:
            raise KeyboardInterrupt

    def evaluate(self, cells, folder, out_json, adapter):
        self.cells[out_json] = list(cells)
        name = out_json.parent.name + out_json.stem.removeprefix('eval')
        self._note('evaluate', name, adapter and adapter.parent.name)

    def collect(self, round_, adapter):
        self.bags.append(round_.bags)
        self._note('collect', round_.path.name, adapter and adapter.parent.name)

    def score(self, round_):
        self._note('score', round_.path.name)

    def pair(self, round_):
        self._note('pair', round_.path.name)

    def train(self, round_, adapter):
        self._note('train', round_.path.name, adapter and adapter.parent.name)


WHOLE = [
    ('evaluate', 'base', None),
    ('collect', 'round_1', None),
    ('score', 'round_1'),
    ('pair', 'round_1'),
    ('train', 'round_1', None),
    ('evaluate', 'round_1', 'round_1'),
    ('collect', 'round_2', 'round_1'),
    ('score', 'round_2'),
    ('pair', 'round_2'),
    ('train', 'round_2', 'round_1'),
    ('evaluate', 'round_2', 'round_2'),
]


@pytest.fixture
def config(tmp_path):
    def write(**changes):
        path = tmp_path / 'experiment.yaml'
        path.write_text(yaml.safe_dump(CONFIG | changes))
        return IterateConfig.load(path)

    return write


def test_each_round_collects_and_starts_with_the_adapter_of_the_round_before(config, tmp_path):
    steps = RecordingSteps()
    adapter = run_iterations(config(), tmp_path / 'run', steps)
    assert steps.done == WHOLE
    assert adapter == tmp_path / 'run' / 'round_2' / 'tpo'
    assert yaml.safe_load((tmp_path / 'run' / 'config.yaml').read_text())['trials'] == 5


@pytest.mark.parametrize('at', range(len(WHOLE)))
def test_a_run_stopped_at_any_phase_goes_on_with_that_phase(config, tmp_path, at):
    with pytest.raises(KeyboardInterrupt):
        run_iterations(config(), tmp_path / 'run', RecordingSteps(WHOLE[at][:2]))
    steps = RecordingSteps()
    run_iterations(config(workers=1), tmp_path / 'run', steps)
    assert steps.done == WHOLE[at:]
    phases = json.loads((tmp_path / 'run' / 'state.json').read_text())['phases']
    assert len(phases) == len(WHOLE) and all('ended_at' in p for p in phases.values())


def test_another_configuration_in_the_same_folder_is_refused_and_named(config, tmp_path):
    run_iterations(config(), tmp_path / 'run', RecordingSteps())
    with pytest.raises(IterationError, match='trials: 5 there, 6 now'):
        run_iterations(config(trials=6), tmp_path / 'run', RecordingSteps())


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'temperature': 0.0}, 'greedy trials are equal'),
        ({'trials': 1}, 'trials is 1'),
        ({'tasks': 'libero_object/0'}, 'list of names'),
        ({'seed': 'x'}, 'expected int'),
        ({'eval_init_states': '3-5'}, 'state 3'),
        ({'policy': None}, 'policy is None'),
        ({'method': 'dagger'}, "method is 'dagger'; expected one of: tpo, dpo"),
        ({'reward': 2}, 'reward is 2; expected a mapping'),
        ({'evaluations': {'far': {'tasks': ['a/0'], 'states': '1'}}}, 'far has the unknown keys'),
        (
            {'evaluations': {'far': {'tasks': ['libero_object/0+obstacle'], 'init_states': '2'}}},
            'libero_object/0 state 2',
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(config, changes, text):
    with pytest.raises(ValueError, match=text):
        config(**changes)


def test_a_method_without_pairs_has_no_phase_for_them(config, tmp_path):
    steps = RecordingSteps()
    adapter = run_iterations(config(method='ppo', rounds=1), tmp_path / 'run', steps)
    assert [entry[0] for entry in steps.done] == [
        'evaluate',
        'collect',
        'score',
        'train',
        'evaluate',
    ]
    assert adapter == tmp_path / 'run' / 'round_1' / 'ppo'


def test_more_evaluations_are_made_in_every_round_or_at_the_ends(config, tmp_path):
    often = {'tasks': ['libero_object/1'], 'init_states': '40'}
    settings = config(
        evaluations={'often': often, 'rarely': often | {'init_states': '41', 'every_round': False}}
    )
    steps = RecordingSteps()
    run = tmp_path / 'run'
    run_iterations(settings, run, steps)
    assert [entry[1] for entry in steps.done if entry[0] == 'evaluate'] == [
        'base', 'base_often', 'base_rarely', 'round_1', 'round_1_often', 'round_2',
        'round_2_often', 'round_2_rarely',
    ]  # fmt: skip
    assert steps.cells[run / 'round_2' / 'eval_rarely.json'] == [('libero_object/1', 41)]


def test_runs_that_share_a_folder_take_their_first_trials_from_it(config, tmp_path):
    steps = RecordingSteps()
    run_iterations(config(shared=str(tmp_path / 'shared'), seed=3), tmp_path / 'run', steps)
    assert steps.bags == [tmp_path / 'shared' / 'trials_s3', tmp_path / 'run' / 'round_2' / 'bags']


def test_rounds_take_turns_through_the_initial_states(config):
    settings = config(train_init_states='0-4', states_a_round=2)
    assert [settings.states_of_round(k) for k in (1, 2, 3)] == [(0, 1), (2, 3), (0, 4)]
    assert config().states_of_round(2) == (0, 1, 2, 3)
