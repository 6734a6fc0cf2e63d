"""The order of Algorithm 1's phases and where a run goes on; the phases are recorded."""

import json

import pytest
import yaml

from grape_trainer.iteration import IterateConfig, IterationError, run_iterations

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

    def _note(self, *entry):
        self.done.append(entry)
        if self._break_at == entry[:2]:
            raise KeyboardInterrupt

    def evaluate(self, folder, out_json, adapter):
        self._note('evaluate', out_json.parent.name, adapter and adapter.parent.name)

    def collect(self, folder, adapter, round_number):
        self._note('collect', folder.parent.name, adapter and adapter.parent.name)

    def score(self, bags, out_csv):
        self._note('score', out_csv.parent.name)

    def pair(self, scores, out_json):
        self._note('pair', out_json.parent.name)

    def train(self, pairs, out, adapter):
        self._note('train', out.parent.name, adapter and adapter.parent.name)


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
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(config, changes, text):
    with pytest.raises(ValueError, match=text):
        config(**changes)
