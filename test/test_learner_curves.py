"""Curves: TensorBoard always, Weights & Biases where a project is named and it is installed."""

import sys
from types import ModuleType

import pytest

from grape_trainer.curves import Curves
from grape_trainer.run_folder import RunFolder
from grape_trainer.training_config import ConfigError, LearnerConfig

IDENTITY = {'data': 'abc', 'config.lr': 1e-3}


class RecordedRun:
    """A wandb run that keeps what it was given; `module` stands in for the package."""

    def __init__(self):
        self.settings, self.logged, self.finished = [], [], 0
        self.module = ModuleType('wandb')
        self.module.__spec__ = object()
        self.module.init = self.init

    def init(self, **settings):
        self.settings.append(settings)
        return self

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    recorded = RecordedRun()
    monkeypatch.setitem(sys.modules, 'wandb', recorded.module)
    return recorded


def test_project_gets_the_metrics_of_every_step(tmp_path, wandb):
    curves = Curves(tmp_path, 0, 'grape', IDENTITY)
    curves.add(1, {'loss': 0.5})
    curves.add(2, {'loss': 0.25})
    curves.close()
    assert wandb.logged == [(1, {'loss': 0.5}), (2, {'loss': 0.25})] and wandb.finished == 1
    assert wandb.settings[0]['project'] == 'grape' and wandb.settings[0]['config'] == IDENTITY
    assert list((tmp_path / 'tensorboard').iterdir())


def test_resumed_run_goes_on_with_its_curve_and_another_run_does_not(tmp_path, wandb):
    for identity in (IDENTITY, IDENTITY, {**IDENTITY, 'data': 'other'}):
        Curves(tmp_path, 0, 'grape', identity).close()
    first, again, other = (settings['id'] for settings in wandb.settings)
    assert first == again != other


def test_missing_package_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ConfigError, match='pip install wandb'):
        RunFolder(tmp_path / 'run', 'tpo', LearnerConfig(wandb='grape'), {})
    assert not (tmp_path / 'run').exists()


def test_where_curves_are_drawn_does_not_make_another_run(tmp_path, wandb):
    folders = [RunFolder(tmp_path, 'tpo', LearnerConfig(wandb=p), {}) for p in ('', 'grape')]
    assert folders[0].identity == folders[1].identity
