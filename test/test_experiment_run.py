"""`grape experiment run` through real nodes: what runs share is played once and kept."""

import csv

import graph_run
import pytest
import yaml

from grape_bringup.manifest import read_manifest

pytestmark = pytest.mark.sim


@pytest.mark.timeout(600)
def test_two_methods_learn_from_the_same_first_trials_and_are_in_one_table(ros_env, tmp_path):
    policy = graph_run.write_policy(tmp_path / 'policy')
    out = tmp_path / 'out'
    file = tmp_path / 'experiment.yaml'
    common = {
        'policy': str(policy),
        'contract': str(graph_run.write_contract(tmp_path / 'small.yaml')),
        'tasks': [graph_run.TASK],
        'train_init_states': '0',
        'eval_init_states': '40',
        'trials': 2,
        'max_steps': 10,
        'rendering': 'fast',
    }
    runs = {'tpo': {'title': 'TPO'}, 'dpo': {'method': 'dpo', 'title': 'DPO'}}
    content = {'name': 'small', 'out': str(out), 'seeds': [5], 'common': common, 'runs': runs}
    file.write_text(yaml.safe_dump(content))

    done = graph_run.grape('experiment', 'run', file, '--jobs', 2, timeout_s=500)
    logs = ''.join(path.read_text() for path in out.rglob('run.log'))
    assert done.returncode == 0, done.stdout + done.stderr + logs

    assert len(read_manifest(out / 'shared' / 'trials_s5')) == 2
    assert not list(out.glob('*/seed_5/round_1/bags'))
    with (out / 'results.csv').open() as stream:
        rows = {(row['run'], row['round']): row for row in csv.DictReader(stream)}
    assert set(rows) == {('base', '0'), ('tpo', '1'), ('dpo', '1')}
    assert {row['n'] for row in rows.values()} == {'1'}
    assert rows['tpo', '1']['env_steps'] == rows['dpo', '1']['env_steps'] == '20'
    assert '| DPO | 1 |' in (out / 'table.md').read_text()

    again = graph_run.grape('experiment', 'run', file)
    assert again.returncode == 0 and '0 of 2 runs are to be done' in again.stdout
