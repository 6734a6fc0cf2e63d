"""A cost program, or proposed stages, in the place of built-in costs: numbers worked out by hand.

The made-up success of scoring_trials costs 0.1 in its place stage under `completion`, and 0 in the
others.
"""

import hashlib
import inspect
import json
import math

import pytest
import yaml
from scoring_trials import REACH, make_trial, record
from typer.testing import CliRunner

from grape_bringup.cli import app
from grape_episode.bag import find_bags
from grape_episode.outcome import Outcome
from grape_trainer.scoring import cost_sandbox
from grape_trainer.scoring.cost_approval import ApprovalError, approve
from grape_trainer.scoring.cost_builtin import BUILTIN, NEED_CONTACTS
from grape_trainer.scoring.cost_file import load_costs
from grape_trainer.scoring.cost_sandbox import CostSandbox, SandboxError
from grape_trainer.scoring.objective import ObjectiveError, load_objective, load_scored_objective
from grape_trainer.scoring.reward import score_trial
from grape_trainer.scoring.score_setup import prepare
from grape_trainer.scoring.score_table import read_scores, write_scores
from grape_trainer.scoring.scorer import score_bags

CONSTANT = 'def stage1_target_constraint1(end_effector, keypoints):\n    return 0.16\n'
FRAGILE = """
def stage1_path_constraint1(end_effector, keypoints):
    return 1.0 / (keypoints[1][0] - 0.9)
"""


def written(folder, text=CONSTANT, name='costs.py'):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def unapproved(costs, name='', **more):
    return load_scored_objective(name, costs, allow_unapproved=True, **more)


def costs_of(objective, trial):
    with CostSandbox() as sandbox:
        score = score_trial(trial, prepare(objective), sandbox)
    assert score.log_r_ext == pytest.approx(-sum(stage.cost for stage in score.stages))
    return [stage.cost for stage in score.stages]


@pytest.fixture
def bags(tmp_path):
    folder = tmp_path / 'bags'
    folder.mkdir()
    poor = make_trial((REACH,), outcome=Outcome.FAILURE, episode_id='poor')
    return [record(folder, make_trial(episode_id='good')), record(folder, poor)]


def test_a_programs_functions_replace_the_templates_of_their_stage(tmp_path):
    objective = unapproved(written(tmp_path))
    # Class target: threshold 0.02, worst 0.30; 0.16 is half way. The others are completion's.
    assert costs_of(objective, make_trial()) == pytest.approx([0.5, 0.0, 0.1])


def test_a_stage_that_was_never_reached_costs_the_weights_of_its_functions(tmp_path):
    text = CONSTANT.replace('stage1', 'stage2') + CONSTANT.replace('stage1_target', 'stage2_grasp')
    found = costs_of(unapproved(written(tmp_path, text)), make_trial((REACH,)))
    assert found == pytest.approx([0.5, 1.0 + 0.5, 1.25])  # completion: not held; target and grasp


def test_own_settings_come_before_those_of_the_class_in_the_stage_and_of_the_class(tmp_path):
    text = ''.join(CONSTANT.replace('constraint1', f'constraint{k}') for k in (1, 2))
    text += CONSTANT.replace('stage1', 'stage2')
    written(tmp_path, text)
    settings = {'weight': 2.0, 'threshold': 0.0, 'worst': 0.64, 'reduce': 'max'}  # 0.5
    own = settings | {'worst': 0.32}  # 1.0
    content = load_objective('generated').model_dump(mode='json')
    content['program'] |= {
        'costs': 'costs.py',  # beside the objective
        'allow_unapproved': True,
        'overrides': {1: {'target': settings, 'stage1_target_constraint2': own}},
    }
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(content))
    found = costs_of(load_objective(tmp_path / 'mine.yaml'), make_trial())
    assert found == pytest.approx([0.5 + 1.0, 0.5, 0.1])
    content['program']['overrides'] = {2: {'stage1_target_constraint1': own}}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(content))
    with pytest.raises(ObjectiveError, match='overrides of stage 2 name'):
        load_objective(tmp_path / 'mine.yaml')


def test_all_functions_of_an_episode_are_one_request_to_one_sandbox(tmp_path):
    text = ''.join(CONSTANT.replace('stage1', f'stage{stage}') for stage in (1, 2, 3))
    setup = prepare(unapproved(written(tmp_path, text)))
    with CostSandbox(cost_sandbox.Limits(requests=3)) as sandbox:
        for _ in range(3):
            score_trial(make_trial(), setup, sandbox)
        assert sandbox.starts == 1
        score_trial(make_trial(), setup, sandbox)
        assert sandbox.starts == 2, 'three requests were three episodes'


def test_a_function_that_fails_on_one_episode_makes_that_one_unscorable(bags, tmp_path):
    odd = make_trial(episode_id='odd')
    odd.scene.positions_m[:, 1, 0] = 0.9
    bags.append(record(tmp_path, odd))
    report = score_bags(bags, unapproved(written(tmp_path, FRAGILE)), tmp_path / 'scores.csv')
    assert [row.status for row in report.rows] == ['scored', 'scored', 'unscorable']
    assert 'stage1_path_constraint1' in report.rows[2].detail and report.exit_code == 1


def test_a_sandbox_that_does_not_work_marks_no_trial(bags, tmp_path, monkeypatch):
    setup, out = prepare(unapproved(written(tmp_path))), tmp_path / 'scores.csv'
    score_bags(bags[:1], setup, out)
    with monkeypatch.context() as broken:
        broken.setattr(cost_sandbox, '_START', 'raise SystemExit(3)')
        with pytest.raises(SandboxError, match='did not start'):
            score_bags(bags, setup, out)
    assert [row.status for row in read_scores(out)] == ['scored']
    report = score_bags(bags, setup, out)
    assert (report.resumed, [row.status for row in report.rows]) == (1, ['scored', 'scored'])


def test_the_text_of_the_costs_is_found_from_the_table(bags, tmp_path):
    for name, objective in (
        ('built-in.csv', load_objective('completion')),
        ('program.csv', unapproved(written(tmp_path))),
    ):
        row = score_bags(bags, objective, tmp_path / name).rows[0]
        text = (tmp_path / 'costs' / f'{row.cost_sha256}.txt').read_bytes()
        assert hashlib.sha256(text).hexdigest() == row.cost_sha256
    assert CONSTANT.encode() in text and b"'worst': 0.3" in text
    assert b'def stage2_grasp_constraint1' in text, 'of a stage that keeps the built-in costs'
    assert b'def stage1_grasp_constraint1' not in text


def test_several_processes_write_the_same_table(tmp_path):
    (tmp_path / 'bags').mkdir()
    for k in range(16):
        record(tmp_path / 'bags', make_trial((REACH,), episode_id=f'trial-{k:02}'))
    setup = prepare(unapproved(written(tmp_path)))
    for jobs in (1, 2):
        score_bags(find_bags(tmp_path / 'bags'), setup, tmp_path / f'{jobs}.csv', jobs=jobs)
    assert (tmp_path / '1.csv').read_bytes() == (tmp_path / '2.csv').read_bytes()
    assert read_scores(tmp_path / '1.csv')[0].approval == 'unapproved'


def test_only_an_approved_text_is_scored_and_it_outlives_its_file(bags, tmp_path):
    file, out = written(tmp_path), tmp_path / 'scores.csv'
    with pytest.raises(ApprovalError, match='was not approved') as refused:
        score_bags(bags, load_scored_objective('', file), out)
    assert not out.exists() and '--approved-sha' not in str(refused.value)
    program = prepare(unapproved(file)).generated.program
    approve(file, program, (), 2)
    first = score_bags(bags, load_scored_objective('', file), out)
    assert {row.approval for row in first.rows} == {'approved'}
    for text in (CONSTANT.replace('0.16', '0.2'), 'import os', None):
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        with pytest.raises(ApprovalError, match=f'--approved-sha {program.sha256[:12]}'):
            score_bags(bags, load_scored_objective('', file), out)
        kept = load_scored_objective('', file, approved_sha=program.sha256[:12])
        assert score_bags(bags, kept, out).resumed == 2, 'the same costs: nothing to do again'
    with pytest.raises(ApprovalError, match='0 approved texts begin'):
        prepare(load_scored_objective('', file, approved_sha='ffff'))


PROPOSAL = {
    'version': 1,
    'task': 'libero_object/0',
    'instruction': 'pick up the target and place it in the basket',
    'keypoints': ['target_1', 'basket_1', 'milk_1'],
    'stages': [
        {
            'number': number,
            'name': name,
            'description': name,
            'keypoints': ['target_1', 'basket_1'][:number],
            'grasp': number == 1,
            'release': number == 2,
            'ends': ends,
            'constraints': [
                {
                    'stage': number,
                    'class': 'target',
                    'notation': 'declarative',
                    'text': json.dumps({'kind': 'distance', 'of': 'target', 'to': to}),
                }
            ],
        }
        for number, name, ends, to in (
            (1, 'take', 'grasped', 'target'),
            (2, 'bring', 'placed', 'receptacle'),
        )
    ],
    'origin': {'kind': 'model', 'model': 'tiny'},
}


def test_proposed_stages_and_their_costs_are_reviewed_and_scored(bags, tmp_path):
    file, out = written(tmp_path, json.dumps(PROPOSAL), 'stages.json'), tmp_path / 'scores.csv'
    arguments = ['score', *map(str, bags), '--stages', str(file), '--out', str(out)]
    with pytest.raises(ApprovalError, match='was not approved'):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    review = ['costs', 'review', str(file), *map(str, bags), '--objective', 'generated']
    told = CliRunner().invoke(app, [*review, '--trials', '0', '--approve'], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    good, poor = read_scores(out)
    # The target ends 0.04 m above the basket's keypoint: (0.04 - 0.02) / (0.30 - 0.02).
    assert good.stage_costs == pytest.approx({'take': 0.0, 'bring': 0.02 / 0.28})
    assert poor.stage_costs == pytest.approx({'take': 0.0, 'bring': 1.0})
    assert good.r_ext == pytest.approx(math.exp(-0.02 / 0.28))
    assert (good.approval, good.keypoints, good.objective) == (
        'approved',
        'privileged',
        'generated',
    )
    other = json.loads(json.dumps(PROPOSAL))
    other['stages'][1]['ends'] = 'arrived'
    file.write_text(json.dumps(other))
    with pytest.raises(ApprovalError, match='--approved-sha'):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_an_approval_of_costs_is_for_the_stages_that_they_were_reviewed_with(bags, tmp_path):
    costs, stages = written(tmp_path), written(tmp_path, json.dumps(PROPOSAL), 'stages.json')
    with CostSandbox() as sandbox:
        file = load_costs(costs, sandbox, stages)
    approve(costs, file.program, (), 2, stages_sha256=file.stages_sha256)
    setup = prepare(load_scored_objective('', costs, stages))
    assert (setup.approval, setup.stage_names) == ('approved', ('take', 'bring'))
    rows = score_bags(bags, setup, tmp_path / 'scores.csv').rows
    assert rows[0].stage_costs == pytest.approx({'take': 0.5, 'bring': 0.0})  # none of its own
    with pytest.raises(ApprovalError, match='was not approved'):
        prepare(load_scored_objective('', costs))


def test_what_does_not_fit_together_is_said_before_anything_is_scored(tmp_path):
    with pytest.raises(ObjectiveError, match='names none'):
        prepare(load_objective('generated'))
    with pytest.raises(ObjectiveError, match='no section .program.'):
        load_scored_objective('completion', written(tmp_path))
    file = written(tmp_path, CONSTANT.replace('stage1', 'stage4'))
    with pytest.raises(
        ObjectiveError, match='there is no stage 4; the stages are: 1 grasp, 2 tra'
    ):
        prepare(unapproved(file))
    proposal = json.loads(json.dumps(PROPOSAL))
    for stage in proposal['stages']:
        stage['constraints'] = []
    stages = written(tmp_path, json.dumps(proposal), 'stages.json')
    with pytest.raises(ApprovalError, match='stages without costs'):
        prepare(load_scored_objective('', None, stages, allow_unapproved=True))


def test_constraints_that_look_at_contacts_are_known():
    looking = {
        name for name, function in BUILTIN.items() if 'collided' in inspect.getsource(function)
    }
    assert looking == NEED_CONTACTS


def test_a_table_of_before_approvals_can_be_read(bags, tmp_path):
    out = tmp_path / 'scores.csv'
    rows = score_bags(bags, load_objective('completion'), out).rows
    lines = [line.split(',') for line in out.read_text().splitlines()]
    gone = [lines[0].index(name) for name in ('left_out', 'keypoints', 'approval')]
    older = [','.join(c for at, c in enumerate(cells) if at not in gone) for cells in lines]
    out.write_text('\n'.join(older) + '\n')
    assert [row.r_ext for row in read_scores(out)] == [row.r_ext for row in rows]
    write_scores(out, read_scores(out), ('grasp', 'transport', 'place'))
    assert 'approval' in out.read_text()
