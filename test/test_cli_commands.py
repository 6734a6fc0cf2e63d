"""The command line without ROS: its forms, its errors, its start-up time."""

import json
import subprocess
import sys
import time

import graph_run
import pytest
from report_runs import write_run

FORMS = (
    'demos', 'train sft', 'train tpo', 'train dpo', 'train kto', 'train ppo',
    'train grpo', 'train tgrpo', 'collect', 'score', 'pair', 'evaluate', 'iterate',
    'report', 'doctor', 'demo', 'bag info', 'bag recover', 'checkpoint info', 'checkpoint verify',
    'stages propose', 'stages show', 'costs check',
)  # fmt: skip


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
    return graph_run.write_policy(tmp_path_factory.mktemp('cli') / 'policy')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run folder with bags, scores and pairs."""
    return write_run(tmp_path_factory.mktemp('cli_run') / 'run')


def fails(text, *arguments):
    """Expect exit code 1 and one readable error with the text in it."""
    done = graph_run.grape(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith('error: ') and 'Traceback' not in done.stderr
    assert text in done.stderr


def test_help_comes_within_a_second_and_names_every_command():
    began = time.process_time(), time.monotonic()
    done = graph_run.grape('--help')
    assert done.returncode == 0
    # Of a machine that others use too: twice the promise.
    assert time.monotonic() - began[1] < 2.0
    for form in FORMS:
        assert form.split()[0] in done.stdout


@pytest.mark.parametrize('form', FORMS)
def test_every_form_that_others_call_has_help(form):
    done = graph_run.grape(*form.split(), '--help')
    assert done.returncode == 0 and 'Usage' in done.stdout


def test_an_unknown_option_is_a_usage_error():
    done = graph_run.grape('pair', '--scores', 'x', '--out', 'y', '--nope')
    assert done.returncode == 2 and '--nope' in done.stderr


def test_a_missing_checkpoint_says_what_was_expected_and_how_to_make_one(tmp_path):
    for command in ('collect', 'evaluate'):
        output = ('--out', tmp_path) if command == 'collect' else ('--json', tmp_path / 'e.json')
        fails(
            'train sft',
            command, '--policy', tmp_path / 'none', '--task', 'libero_object/0',
            '--init-states', '0', *output,
        )  # fmt: skip


@pytest.mark.sim
@pytest.mark.parametrize(
    ('task', 'states', 'text'),
    [
        ('libero_nope/0', '0', 'libero_spatial'),
        ('libero_object/0', '48-50', '0..49'),
        ('libero_object/0', '5-2', 'backwards'),
        ('libero_object/0', 'all', "'0-4,7'"),
    ],
)
def test_a_wrong_task_or_initial_state_lists_what_there_is(policy, tmp_path, task, states, text):
    fails(
        text,
        'collect', '--policy', policy, '--task', task, '--init-states', states,
        '--out', tmp_path,
    )  # fmt: skip


@pytest.mark.sim
def test_evaluation_on_training_states_is_refused(policy, tmp_path):
    """The adapter's folder says what it has learned from."""
    adapter = tmp_path / 'adapter'
    graph_run.write_adapter(policy, adapter)
    (adapter / 'training_states.json').write_text('{"states": [["libero_object/0", 3]]}')
    fails(
        'libero_object/0 state 3',
        'evaluate', '--policy', policy, '--adapter', adapter, '--task', 'libero_object/0',
        '--init-states', '3-5', '--json', tmp_path / 'e.json',
    )  # fmt: skip


def test_an_empty_pair_list_says_what_to_do(policy, tmp_path, run):
    content = json.loads((run / 'round_1' / 'pairs.json').read_text())
    empty = tmp_path / 'pairs.json'
    empty.write_text(json.dumps(content | {'pairs': []}))
    fails(
        'collect more trials',
        'train', 'tpo', '--policy', policy, '--pairs', empty, '--out', tmp_path / 'out',
    )  # fmt: skip


def test_a_table_without_scored_trials_gives_no_pairs_and_says_why(tmp_path, run):
    table = (run / 'round_1' / 'scores.csv').read_text().splitlines()
    (tmp_path / 'scores.csv').write_text(table[0] + '\n')
    fails(
        'No trial has an R_GCPG score',
        'pair', '--scores', tmp_path / 'scores.csv', '--out', tmp_path / 'pairs.json',
    )  # fmt: skip


def test_score_and_pair_work_without_ros(tmp_path, run):
    program = (
        "import sys; sys.modules['rclpy'] = sys.modules['grape'] = None\n"
        'from grape_bringup.cli import main; main()'
    )
    for arguments in (
        ['score', run / 'round_1' / 'bags', '--out', tmp_path / 'scores.csv'],
        ['pair', '--scores', tmp_path / 'scores.csv', '--out', tmp_path / 'pairs.json'],
        ['report', run],
    ):
        done = subprocess.run(
            [sys.executable, '-c', program, *map(str, arguments)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / 'pairs.json').read_text())['pairs']) == 2


def test_a_truncated_bag_is_named_with_the_command_that_recovers_it(tmp_path, run):
    import shutil

    source = sorted((run / 'round_1' / 'bags').iterdir())[0]
    bag = tmp_path / source.name
    shutil.copytree(source, bag)
    file = next(bag.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:-2000])
    fails('grape bag recover', 'bag', 'info', bag)
    done = graph_run.grape('score', bag, '--out', tmp_path / 'scores.csv')
    assert done.returncode == 1 and 'corrupted' in done.stdout
    assert graph_run.grape('bag', 'recover', bag).returncode == 0
    assert graph_run.grape('bag', 'info', bag).returncode == 0


def test_bag_info_tells_what_a_bag_holds(run):
    bag = sorted((run / 'round_1' / 'bags').iterdir())[0]
    done = graph_run.grape('bag', 'info', bag)
    assert done.returncode == 0
    for word in ('libero_object/0', 'success', 'readable', 'keypoints'):
        assert word in done.stdout


def test_an_unknown_key_of_an_experiment_is_an_error_that_lists_the_keys(tmp_path):
    path = tmp_path / 'experiment.yaml'
    path.write_text('policy: x\ntasks: [libero_object/0]\nroundz: 2\n')
    fails('roundz', 'iterate', '--config', path)


def test_an_experiment_that_evaluates_what_it_trains_on_is_refused(tmp_path):
    path = tmp_path / 'experiment.yaml'
    path.write_text(
        'policy: x\ntasks: [libero_object/0]\nout: y\ntrain_init_states: 0-5\n'
        'eval_init_states: 5-9\n'
    )
    fails('state 5', 'iterate', '--config', path)


def test_a_policy_that_is_neither_folder_nor_on_the_hub_says_so(tmp_path):
    fails(
        "'grape-lab/no-such-policy' is no folder here",
        'collect', '--policy', 'grape-lab/no-such-policy', '--task', 'libero_object/0',
        '--init-states', '0', '--out', tmp_path,
    )  # fmt: skip
