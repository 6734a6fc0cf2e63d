"""`grape costs check`: accepted or refused, why, and the exit code."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_costs import body, cost

DATA = Path(__file__).parent / 'data' / 'costs'


def check(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'grape_bringup.cli', 'costs', 'check', *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize('name', ['appendix_e2.py.txt', 'appendix_e2.yaml'])
def test_the_appendix_is_accepted_with_exit_code_0(name):
    done = check(DATA / name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'{DATA / name}: accepted (')
    assert done.stdout.count('): accepted, cost ') == 9


def test_a_python_file_is_never_imported(tmp_path):
    """Not even as a side effect: the file's ending is what an import would look for."""
    file, canary = tmp_path / 'costs.py', tmp_path / 'canary'
    file.write_text(f'open({str(canary)!r}, "w")\n' + cost('1.0'))
    done = check(file)
    assert done.returncode == 1 and 'refused' in done.stdout and 'line 1, column 1' in done.stdout
    assert not canary.exists() and os.listdir(tmp_path) == ['costs.py']
    shutil.copy(DATA / 'appendix_e2.py.txt', file)
    assert check(file).returncode == 0
    assert os.listdir(tmp_path) == ['costs.py']


ENDLESS = body('for i in range(9999):', '    for j in range(9999): x = i * j')
# Each within its operations at each state, but there are many.
MANY = ''.join(
    body('x = 0.0', 'for i in range(3000): x += 1.0').replace('1(', f'{n}(', 1)
    for n in range(1, 61)
)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [(ENDLESS, 'more than 20000 operations at one state'), (MANY, 'it did not end within 0.6 s')],
)
def test_the_whole_command_stops_an_endless_program_within_two_seconds(tmp_path, text, reason):
    file = tmp_path / 'endless.py'
    file.write_text(text)
    began = time.monotonic()
    done = check(file)
    # Of a machine that others use too: twice the promise.
    assert time.monotonic() - began < 4.0
    assert done.returncode == 1 and reason in done.stdout


def test_json_has_every_function_and_every_problem_with_its_place(tmp_path):
    file = tmp_path / 'answer.md'
    harmless = cost('end_effector[2]').replace('target', 'path')
    file.write_text(f'Sure:\n```python\n{harmless}{cost("open(1)")}```\n')
    done = check(file, '--json')
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report['accepted'] is False
    assert report['notation'] == 'python' and len(report['sha256']) == 64
    first, second = report['functions']
    assert (first['name'], first['stage'], first['cost_class']) == (
        'stage1_path_constraint1', 1, 'path',
    )  # fmt: skip
    assert first['accepted'] and not second['accepted'] and second['line'] == 5
    (problem,) = report['problems']
    assert (problem['line'], problem['column'], problem['function']) == (6, 12, second['name'])
    assert report['sandbox'].keys() == {'unprivileged', 'empty_root', 'seccomp'}


def test_json_of_an_accepted_program_says_what_it_cost_on_the_trial(tmp_path):
    file = tmp_path / 'costs.json'
    file.write_text('[{"stage": 2, "class": "grasp", "kind": "gripper", "state": "held"}]')
    done = check(file, '--json')
    (function,) = json.loads(done.stdout)['functions']
    assert done.returncode == 0
    assert (function['lowest'], function['highest']) == (0.0, 1.0)


@pytest.mark.parametrize(
    ('make', 'text'),
    [
        (lambda path: None, 'cannot be read: No such file'),
        (lambda path: path.mkdir(), 'not a regular file'),
        (os.mkfifo, 'not a regular file'),
        (lambda path: path.symlink_to('/dev/zero'), 'not a regular file'),
        (lambda path: path.write_bytes(b'x' * 100_000), 'more than 32768 bytes'),
        (lambda path: path.write_bytes(b'# \xff\xfe'), 'is not UTF-8'),
    ],
)
def test_a_file_that_is_no_text_is_an_error_that_says_so(tmp_path, make, text):
    make(tmp_path / 'costs.py')
    done = check(tmp_path / 'costs.py')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'refused' in done.stdout and text in done.stdout


def test_markup_in_a_program_is_shown_as_it_is(tmp_path):
    file = tmp_path / '[red]costs.py'
    file.write_text(cost('x[bold]'))
    assert f'{file}: refused' in check(file).stdout
