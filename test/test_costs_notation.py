"""The declarative notation: each kind's numbers, its equality with its Python text, its errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_costs_python import random_inputs

from grape_trainer.scoring.cost_check import check_text
from grape_trainer.scoring.cost_program import load_program, parse_program
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.cost_source import ProgramError

DATA = Path(__file__).parent / 'data' / 'costs'


def norm(vectors):
    return np.sqrt((vectors**2).sum(axis=-1))


def straight(s, goal):
    return np.maximum(norm(s.ee[0] - goal[0]), 0.05)


class States:
    """The inputs by short names, and what is derived from them, vectorised over the states."""

    def __init__(self, inputs):
        self.ee, self.kp = inputs.end_effector, np.moveaxis(inputs.keypoints, 1, 0)
        self.held, self.collided = inputs.held, inputs.collided
        self.time_s, self.progress = inputs.time_s, inputs.progress
        steps = norm(np.diff(self.ee, axis=0))
        self.length_m = np.concatenate(([0.0], np.cumsum(steps)))


def clearance(s, points, clearance_m):
    return sum(np.maximum(clearance_m - norm(s.ee - point), 0.0) for point in points)


def cosine(way, axis):
    return way @ np.array(axis) / (norm(way) * norm(np.array(axis)))


# kind and its fields -> what it means, written a second time and over all states at once
KINDS = [
    ({'kind': 'distance', 'to': 'target'}, lambda s: norm(s.ee - s.kp[0])),
    (
        {'kind': 'distance', 'of': 'keypoint 2', 'to': 'receptacle', 'axes': 'xy'},
        lambda s: norm((s.kp[2] - s.kp[1])[:, :2]),
    ),
    (
        {'kind': 'distance', 'of': 'target', 'to': 'keypoint_3', 'axes': 'xz', 'threshold_m': 0.1},
        lambda s: norm((s.kp[0] - s.kp[3])[:, [0, 2]]) - 0.1,
    ),
    (
        {'kind': 'distance', 'to': {'point': 'receptacle', 'offset_m': [0, 0, 0.1]}, 'axes': 'z'},
        lambda s: np.abs(s.ee - s.kp[1] - [0, 0, 0.1])[:, 2],
    ),
    (
        {'kind': 'distance', 'to': {'mean': ['target', 'receptacle', 'keypoint 4']}},
        lambda s: norm(s.ee - (s.kp[0] + s.kp[1] + s.kp[4]) / 3),
    ),
    (
        {'kind': 'distance', 'of': 'start of target', 'to': {'at_m': [0.1, -0.2, 0.3]}},
        lambda s: norm(s.kp[0][0] - np.array([0.1, -0.2, 0.3])) * np.ones(len(s.ee)),
    ),
    ({'kind': 'steps', 'to': 'target'}, lambda s: np.floor(norm(s.ee - s.kp[0]) / 0.01)),
    (
        {'kind': 'above', 'to': 'target', 'margin_m': 0.05},
        lambda s: np.maximum(s.kp[0][:, 2] + 0.05 - s.ee[:, 2], 0),
    ),
    (
        {'kind': 'above', 'of': 'target', 'to': 'receptacle', 'axis': 'x', 'measure': 'flag'},
        lambda s: 1.0 * (s.kp[0][:, 0] <= s.kp[1][:, 0]),
    ),
    (
        {'kind': 'below', 'to': 'target', 'margin_m': -0.02},
        lambda s: np.maximum(s.ee[:, 2] - s.kp[0][:, 2] - 0.02, 0),
    ),
    (
        {'kind': 'below', 'to': 'receptacle', 'axis': 'y', 'measure': 'flag'},
        lambda s: 1.0 * (s.ee[:, 1] >= s.kp[1][:, 1]),
    ),
    ({'kind': 'clearance'}, lambda s: clearance(s, s.kp[2:], 0.1)),
    (
        {'kind': 'clearance', 'obstacles': [2, 4], 'clearance_m': 0.6},
        lambda s: clearance(s, s.kp[[2, 4]], 0.6),
    ),
    (
        {'kind': 'clearance', 'clearance_m': 0.5, 'with_held_target': True},
        lambda s: sum(
            np.maximum(
                0.5
                - np.where(
                    s.held, np.minimum(norm(s.ee - o), norm(s.kp[0] - o)), norm(s.ee - o)
                ),
                0,
            )
            for o in s.kp[2:]
        ),
    ),
    (
        {'kind': 'detour', 'to': 'target', 'allowed': 0.2},
        lambda s: (s.length_m + norm(s.ee - s.kp[0])) / straight(s, s.kp[0]) - 1.2,
    ),
    (
        {'kind': 'delay', 'to': 'receptacle', 'speed_mps': 0.3},
        lambda s: (s.time_s * 0.3 + norm(s.ee - s.kp[1])) / straight(s, s.kp[1]) - 1.0,
    ),
    ({'kind': 'path_length', 'limit_m': 1.5}, lambda s: np.maximum(s.length_m - 1.5, 0)),
    ({'kind': 'duration', 'limit_s': 0.5}, lambda s: np.maximum(s.time_s - 0.5, 0)),
    ({'kind': 'gripper', 'state': 'held'}, lambda s: 1.0 - s.held),
    ({'kind': 'gripper', 'state': 'released'}, lambda s: 1.0 * s.held),
    ({'kind': 'contact'}, lambda s: 1.0 * s.collided),
    (
        {'kind': 'alignment', 'from': 'target', 'to': 'end_effector', 'axis': '-z'},
        lambda s: 1.0 - cosine(s.ee - s.kp[0], [0.0, 0.0, -1.0]),
    ),
    (
        {'kind': 'alignment', 'from': 'target', 'to': 'receptacle', 'axis': [1, 2, 0],
         'either_way': True, 'tolerance': 0.1},
        lambda s: 1.0 - np.abs(cosine(s.kp[1] - s.kp[0], [1.0, 2.0, 0.0])) - 0.1,
    ),
    (
        {'kind': 'angle', 'from': 'target', 'to': 'keypoint 2', 'axis': 'y', 'limit_rad': 0.5},
        lambda s: np.maximum(np.arccos(cosine(s.kp[2] - s.kp[0], [0.0, 1.0, 0.0])) - 0.5, 0),
    ),
    (
        {'kind': 'inside_box', 'of': 'target', 'around': 'receptacle',
         'half_size_m': [0.1, 0.2, 0.3]},
        lambda s: np.maximum(np.abs(s.kp[0] - s.kp[1]) - [0.1, 0.2, 0.3], 0).sum(axis=1),
    ),
    (
        {'kind': 'displacement', 'of': 'receptacle', 'axes': 'xy', 'limit_m': 0.02},
        lambda s: np.maximum(norm((s.kp[1] - s.kp[1][0])[:, :2]) - 0.02, 0),
    ),
    (
        {'kind': 'lift', 'height_m': 0.1},
        lambda s: np.maximum(0.1 - (s.kp[0][:, 2] - s.kp[0][0, 2]), 0),
    ),
    ({'kind': 'progress'}, lambda s: 1.0 - s.progress),
]  # fmt: skip
NAMES = [f'{index}-{fields["kind"]}' for index, (fields, _) in enumerate(KINDS)]


@pytest.fixture(scope='module')
def sandbox():
    with CostSandbox() as sandbox:
        yield sandbox


def document(*costs, **rest):
    return yaml.safe_dump({'costs': [{'stage': 1, 'class': 'target'} | c for c in costs]} | rest)


@pytest.mark.parametrize(('fields', 'meaning'), KINDS, ids=NAMES)
def test_a_kind_gives_its_numbers_and_those_of_its_python_text(sandbox, fields, meaning):
    program = parse_program(document(fields), sandbox)
    python = parse_program(program.python, sandbox)
    assert program.notation == 'declarative' and python.notation == 'python'
    for seed in range(3):
        inputs = random_inputs(seed)
        (costs,) = sandbox.evaluate(program, {1: inputs}).values()
        assert np.allclose(costs, meaning(States(inputs)), rtol=1e-12, atol=1e-12)
        assert np.array_equal(costs, *sandbox.evaluate(python, {1: inputs}).values())


def test_the_appendix_has_the_same_nine_numbers_in_both_notations(sandbox):
    python = load_program(DATA / 'appendix_e2.py.txt', sandbox)
    declarative = load_program(DATA / 'appendix_e2.yaml', sandbox)
    inputs = random_inputs(seed=5, states=100)
    stages = dict.fromkeys((1, 2, 3), inputs)
    expected, found = (sandbox.evaluate(each, stages) for each in (python, declarative))
    assert len(expected) == 9 and expected.keys() == found.keys()
    for name in expected:
        assert np.array_equal(expected[name], found[name]), name


def test_json_a_bare_list_and_a_fence_are_the_same_program(sandbox):
    costs = [{'stage': 1, 'class': 'path', 'kind': 'steps', 'to': 'target'}]
    forms = (
        yaml.safe_dump({'costs': costs}),
        json.dumps({'costs': costs}, indent='\t'),
        json.dumps(costs),
        f'The costs:\n```json\n{json.dumps(costs)}\n```\n',
        f'```yaml\n{yaml.safe_dump(costs)}```',
    )
    assert len({parse_program(text, sandbox).python for text in forms}) == 1


def test_constraints_are_numbered_in_the_order_of_the_text(sandbox):
    held = {'kind': 'gripper', 'state': 'held', 'class': 'grasp'}
    program = parse_program(
        document(held, {'kind': 'contact'}, held, {**held, 'stage': 2}), sandbox
    )
    assert [function.name for function in program.functions] == [
        'stage1_grasp_constraint1',
        'stage1_target_constraint1',
        'stage1_grasp_constraint2',
        'stage2_grasp_constraint1',
    ]


@pytest.mark.parametrize(
    'note',
    ["'''\nimport os\n'''", '"""', "'\n    return open('x')\n#", '\\', "\\'; import os", 'é→'],
)
def test_a_note_cannot_become_code(sandbox, note):
    program = parse_program(document({'kind': 'contact', 'note': note}), sandbox)
    (function,) = program.functions
    assert function.explanation == ' '.join(note.split()).strip()
    (costs,) = sandbox.evaluate(program, {1: random_inputs(seed=1)}).values()
    assert set(costs) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'too': 'target'}, "line 1, column .*'too' is unknown here; there are stage, class"),
        ({'kind': 'nearness'}, "'distance', 'steps', 'above'"),
        ({'to': 'bowl'}, "'bowl' is not a point; expected 'end_effector', 'target'"),
        ({'threshold_m': -0.1}, 'threshold_m: .*greater than or equal to 0'),
        ({'class': 'reward'}, "class: .*'target', 'path', 'collision' or 'grasp'"),
        ({'axes': 'zyx'}, "axes: .*'xyz'"),
        ({'to': {'mean': ['target', 'bowl']}}, "'bowl' is not a point"),
        ({'to': {'point': 'target', 'offset_m': [0, 0]}}, r'\[x, y, z\]'),
    ],
)
def test_what_is_wrong_in_a_document_is_named_with_its_line(sandbox, change, text):
    fields = {'stage': 1, 'class': 'target', 'kind': 'distance', 'to': 'target'} | change
    with pytest.raises(ProgramError, match=text):
        parse_program(json.dumps({'costs': [fields]}), sandbox)


def test_a_missing_key_and_a_second_name_are_named(sandbox):
    report = check_text('costs:\n  - {stage: 1, class: target, kind: distance}\n', sandbox)
    assert str(report.problems[0]) == 'line 2, column 5: to: Field required'
    twice = document({'kind': 'contact', 'number': 2}, {'kind': 'contact'}, {'kind': 'contact'})
    with pytest.raises(ProgramError, match='stage1_target_constraint2 is there twice'):
        parse_program(twice, sandbox)
    with pytest.raises(ProgramError, match='stage 1 of 0|num_stages'):
        parse_program(document({'kind': 'contact'}, num_stages=0), sandbox)
    with pytest.raises(ProgramError, match='stage 3 of 2 stages'):
        parse_program(document({'kind': 'contact', 'stage': 3}, num_stages=2), sandbox)
