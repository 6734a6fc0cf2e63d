"""`make demo FAST=1` end to end: CI's test of the whole house."""

import json
import re
from pathlib import Path

import graph_run
import numpy as np
import pytest
import yaml

from grape_trainer.evaluation import parse_init_states, wilson_interval
from grape_trainer.run_folder import read_metrics
from grape_trainer.scoring.preference import read_pairs
from grape_trainer.scoring.score_table import read_scores

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / 'config' / 'experiment' / 'demo_fast.yaml').read_text())

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The run folder of one fast demo."""
    if not (ROOT / CONFIG['policy'] / 'config.json').is_file():
        pytest.skip(f'{CONFIG["policy"]} is not in this tree')
    out = tmp_path_factory.mktemp('demo') / 'run'
    done = graph_run.grape('demo', '--fast', '--out', out, timeout_s=880, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'report: {out / "report.html"}' in done.stdout
    return out


def cells(name):
    return len(CONFIG['tasks']) * len(parse_init_states(str(CONFIG[name])))


def test_every_trial_is_recorded_scored_and_counted_once(run):
    rows = read_scores(run / 'round_1' / 'scores.csv')
    assert len(rows) == cells('train_init_states') * CONFIG['trials']
    assert {row.adapter_id for row in rows} == {'base'}
    assert all(row.bag.is_dir() for row in rows)
    assert len({(row.task, row.init_state, row.seed) for row in rows}) == len(rows)


def test_the_pairs_prefer_the_better_trial_and_the_policy_was_trained_on_them(run):
    pairs = read_pairs(run / 'round_1' / 'pairs.json').pairs
    assert pairs and all(pair.margin > 0 for pair in pairs)
    first = read_metrics(run / 'round_1' / 'tpo')[0]
    assert first['rewards/margins'] == pytest.approx(0.0, abs=1e-3)  # it starts as its reference
    assert np.isfinite(first['loss'])


@pytest.mark.parametrize('folder', ['base', 'round_1'])
def test_success_has_its_n_and_interval_and_the_report_shows_them(run, folder):
    found = json.loads((run / folder / 'eval.json').read_text())
    assert found['n'] + found['errors'] == cells('eval_init_states') and found['errors'] == 0
    low, high = wilson_interval(found['successes'], found['n'])
    assert found['success'] == pytest.approx(found['successes'] / found['n'])
    assert (found['wilson_low'], found['wilson_high']) == (low, high)
    states = {(e['task'], e['init_state']) for e in found['episodes']}
    trained = {(r.task, r.init_state) for r in read_scores(run / 'round_1' / 'scores.csv')}
    assert not states & trained
    page = re.sub(r'\s+', ' ', (run / 'report.html').read_text())
    assert f'{100 * found["success"]:.0f}' in page and str(found['n']) in page
