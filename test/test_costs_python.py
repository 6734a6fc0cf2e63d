"""Cost programs in Python: hostile ones do nothing, harmless ones mean what Python means."""

import ast
import re
import socket
import time
from pathlib import Path

import harmless_costs
import hostile_costs
import numpy as np
import psutil
import pytest

from grape_trainer.scoring.cost_check import check_text, made_up_trial
from grape_trainer.scoring.cost_form import SIGNAL_INPUTS, StageInputs
from grape_trainer.scoring.cost_functions import BUILTINS, NUMPY, NUMPY_CONSTANTS
from grape_trainer.scoring.cost_program import parse_program
from grape_trainer.scoring.cost_sandbox import CostSandbox, Limits
from grape_trainer.scoring.cost_source import PYTHON, ProgramError, fenced_code

APPENDIX = Path(__file__).parent / 'data' / 'costs' / 'appendix_e2.py.txt'
REFERENCE = Path(__file__).parents[1] / 'docs' / 'reference' / 'cost-programs.md'
STOPPED_WITHIN_S = 2.0


@pytest.fixture(scope='module')
def sandbox():
    with CostSandbox(Limits(deadline_s=1.0)) as sandbox:
        yield sandbox


@pytest.fixture(scope='module')
def canary(tmp_path_factory):
    """A file that must not come into being and a port that nobody may call."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.setblocking(False)
        yield tmp_path_factory.mktemp('canary') / 'canary', server


def random_inputs(seed, states=20, keypoints=6):
    generator = np.random.default_rng(seed)
    time_s = np.arange(states) / 20.0
    return StageInputs(
        end_effector=generator.uniform(-0.5, 0.5, (states, 3)),
        keypoints=generator.uniform(-0.5, 0.5, (states, keypoints, 3)),
        held=generator.random(states) < 0.5,
        collided=generator.random(states) < 0.5,
        time_s=time_s,
        progress=time_s / time_s[-1],
    )


def by_python(text, inputs, python=None):
    """What Python itself gives for a trusted program: name -> (N,)."""
    code = python or fenced_code(text.removeprefix('\ufeff'))[0]
    space = {'np': np}
    exec('from __future__ import annotations\n' + code, space)  # noqa: S102
    steps = np.linalg.norm(np.diff(inputs.end_effector, axis=0), axis=-1)
    length_m = np.concatenate(([0.0], np.cumsum(steps)))
    costs = {}
    for name in [each.name for each in ast.parse(code).body if isinstance(each, ast.FunctionDef)]:
        if name.startswith('stage'):
            function = space[name]
            wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
            costs[name] = np.array(
                [
                    float(function(*(given(inputs, length_m, state)[key] for key in wanted)))
                    for state in range(len(inputs.end_effector))
                ]
            )
    return costs


def given(inputs, length_m, state):
    return {
        'end_effector': inputs.end_effector[state].copy(),
        'keypoints': inputs.keypoints[state].copy(),
        'held': bool(inputs.held[state]),
        'collided': bool(inputs.collided[state]),
        'time_s': inputs.time_s[state],
        'path_length_m': length_m[state],
        'start_end_effector': inputs.end_effector[0].copy(),
        'start_keypoints': inputs.keypoints[0].copy(),
        'progress': inputs.progress[state],
    }


def assert_same_as_python(sandbox, text, inputs):
    program = parse_program(text, sandbox)
    expected = by_python(text, inputs)
    found = sandbox.evaluate(program, {f.stage: inputs for f in program.functions})
    assert list(found) == list(expected)
    for name, costs in expected.items():
        assert np.array_equal(found[name], costs), name


def test_there_are_more_than_200_different_hostile_programs():
    texts = [text for _, text in hostile_costs.PROGRAMS]
    assert len(texts) == len(set(texts)) >= 200
    with_form = [text for text in texts if text.startswith(hostile_costs.HEAD)]
    assert len(with_form) >= 150


@pytest.mark.parametrize(
    'text', [pytest.param(text, id=name) for name, text in hostile_costs.PROGRAMS]
)
def test_a_hostile_program_is_refused_or_stopped_and_does_nothing(sandbox, canary, text):
    file, server = canary
    port = str(server.getsockname()[1])
    sandbox.start()
    began = time.monotonic()
    report = check_text(text.replace('CANARY', str(file)).replace('PORT', port), sandbox)
    assert time.monotonic() - began < STOPPED_WITHIN_S
    assert not report.accepted and report.problems[0].message
    assert not file.exists()
    with pytest.raises(BlockingIOError):
        server.accept()
    if sandbox.pid is not None:
        assert psutil.Process(sandbox.pid).children() == []


@pytest.mark.parametrize('name', harmless_costs.PROGRAMS)
def test_a_harmless_program_is_accepted_and_gives_what_python_gives(sandbox, name):
    text = harmless_costs.PROGRAMS[name]
    report = check_text(text, sandbox)
    assert report.accepted, report.problems
    assert report.notation == PYTHON
    assert_same_as_python(sandbox, text, made_up_trial())
    assert_same_as_python(sandbox, text, random_inputs(seed=3))


def test_the_nine_functions_of_the_appendix_run_unchanged(sandbox):
    text = APPENDIX.read_text()
    report = check_text(text, sandbox)
    assert report.accepted
    assert sorted(each.function.name for each in report.functions) == sorted(
        f'stage{stage}_{kind}_constraint1'
        for stage in (1, 2, 3)
        for kind in ('target', 'collision', 'path')
    )
    for seed in range(5):
        assert_same_as_python(sandbox, text, random_inputs(seed, states=40))


@pytest.mark.parametrize(
    ('expression', 'line', 'hint'),
    [
        ('keypoints.shape[0]', 2, 'len(x)'),
        ('keypoints.mean()', 2, 'np.mean(x)'),
        ('[].append(1)', 2, 'list comprehension'),
        ('1 << 3', 2, 'multiply'),
        ('math.sqrt(2)', 2, "'.sqrt' is not allowed; write np.sqrt(x)"),
        ('keypoints[0] @ undefined', 2, "'undefined' was not given"),
        ('np.linalg.norm(end_effector, axs=0)', 2, 'axis, keepdims, ord'),
    ],
)
def test_a_refusal_says_where_and_what_to_write_instead(sandbox, expression, line, hint):
    report = check_text(hostile_costs.cost(expression), sandbox)
    assert [problem.line for problem in report.problems][:1] == [line]
    assert report.problems[0].column >= 12
    assert any(hint in problem.message for problem in report.problems), report.problems


def test_a_failure_while_running_names_function_state_and_line(sandbox):
    text = hostile_costs.body('x = 1.0 / (5 - int(time_s * 20))').replace(
        'keypoints)', 'keypoints, time_s)'
    )
    with pytest.raises(
        ProgramError, match='line 2, column 9: stage1_target_.* state 5: float division'
    ):
        sandbox.evaluate(parse_program(text, sandbox), {1: random_inputs(seed=1)})


def test_line_numbers_are_those_of_the_file_around_a_fence(sandbox):
    report = check_text('Sure:\n\n```python\n' + hostile_costs.cost('open(1)') + '```\n', sandbox)
    assert report.problems[0].line == 5


def test_a_program_cannot_carry_anything_from_one_state_to_the_next(sandbox):
    text = """
def stage1_target_constraint1(end_effector, keypoints):
    keypoints += 1.0
    end_effector[0] = keypoints[0][0]
    return keypoints[0][0]
"""
    inputs = random_inputs(seed=2)
    program = parse_program(text, sandbox)
    for _ in range(2):
        costs = sandbox.evaluate(program, {1: inputs})['stage1_target_constraint1']
        assert np.array_equal(costs, inputs.keypoints[:, 0, 0] + 1.0)


def test_a_loop_that_is_too_long_is_refused_at_the_same_place_each_time(sandbox):
    text = hostile_costs.body('for i in range(9999):', '    for j in range(9999): x = i')
    first, second = (check_text(text, sandbox).problems for _ in range(2))
    assert first == second and 'more than 20000 operations' in first[0].message


def test_the_hash_is_of_the_text_as_it_was_given(sandbox):
    text = harmless_costs.PROGRAMS['markdown']
    program = parse_program(text, sandbox)
    assert program.text == text and program.python != text
    assert program.sha256 == parse_program(text, sandbox).sha256
    assert program.sha256 != parse_program(text + '\n', sandbox).sha256


def test_the_reference_lists_every_name_that_a_program_may_use(sandbox):
    text = REFERENCE.read_text()
    rows = [line.split('|')[2] for line in text.splitlines() if line.startswith('| `np.` ')]
    # Settings stand in parentheses behind the functions.
    listed = re.findall(r'[a-z_0-9.]+', re.sub(r'\([^)]*\)|`axis`', '', ' '.join(rows)))
    assert set(listed) - {'also', 'np.inf', 'newaxis'} >= {*NUMPY, *NUMPY_CONSTANTS} - {'newaxis'}
    (builtins,) = [line for line in text.splitlines() if line.startswith('| built-ins |')]
    assert set(BUILTINS) <= set(re.findall(r'[a-z]+', builtins))
    assert all(f'`{name}`' in text for name in SIGNAL_INPUTS)
    example = re.search(r'```yaml\n(.*?)```', text, re.DOTALL)[1]
    assert check_text(example, sandbox).accepted
