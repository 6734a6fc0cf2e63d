"""The page that a person approves costs by: every cost explained, and points where things are."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from keypoint_bags import upside_down, write_rgbd
from keypoint_scenes import SIZE, camera
from PIL import Image
from scoring_trials import CARRY, CLOSE, CONTRACT, LIFT, REACH, SUCCESS, make_trial, record
from typer.testing import CliRunner

from grape_bringup.cli import app
from grape_episode.bag import BagError, read_episode
from grape_episode.camera import CameraGeometry
from grape_episode.contract import load_contract
from grape_episode.outcome import Outcome
from grape_episode.rgbd import recorded_camera
from grape_trainer.cost_page import given_text, python_text, write_page
from grape_trainer.cost_page_trials import NO_CAMERA
from grape_trainer.frame_overlay import OBSTACLE, TARGET, NamedPoint, frame_svg, project_points
from grape_trainer.scoring.cost_examples import choose_examples
from grape_trainer.scoring.cost_program import parse_program
from grape_trainer.scoring.cost_review import Trial, review, trial_costs
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.keypoint import SceneSource
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.objective_sections import TermSettings

PROGRAM = """
def stage1_target_constraint1(end_effector, keypoints):
    '''Near the <b>target</b>.'''
    return np.linalg.norm(end_effector - keypoints[0])

LIMIT = 3.0

def stage1_grasp_constraint1(end_effector, keypoints, held):
    return 1.0 if held else 0.0

def stage1_path_constraint1(end_effector, keypoints):
    return LIMIT

def stage3_collision_constraint1(end_effector, keypoints):
    return min(0.0, end_effector[2] - 9.0)
"""
DECLARATIVE = """Here it is:
```yaml
costs:
  - {stage: 1, class: target, kind: distance, to: target, note: near}
  - stage: 3
    class: target
    kind: distance
    of: target
    to: receptacle
```
Done.
"""
# Above the middle of the made-up scene (scoring_trials.py), 80 px of focal length.
ABOVE = CameraGeometry(
    np.array([[80.0, 0, 59.5], [0, 80.0, 59.5], [0, 0, 1.0]]),
    np.array([[1.0, 0, 0, 0.5], [0, -1.0, 0, 0.0], [0, 0, -1.0, 1.5], [0, 0, 0, 1.0]]),
    120,
    120,
)
DROPS = (REACH, CLOSE, LIFT, dataclasses.replace(CARRY, holds=False))


@pytest.fixture(scope='module')
def sandbox():
    with CostSandbox() as found:
        yield found


def filmed(phases, name, outcome, with_camera=True):
    """A trial whose pictures are black with a white square at the target."""
    contract = CONTRACT.with_camera_size(120).to_dict()
    trial = make_trial(phases, episode_id=name, outcome=outcome, contract=contract)
    pixels, _ = ABOVE.project(trial.scene.positions_m[:, 0])
    pictures = np.zeros((trial.info.steps, 120, 120, 3), np.uint8)
    for picture, (u, v) in zip(pictures, np.rint(pixels).astype(int), strict=False):
        picture[max(v - 4, 0) : v + 5, max(u - 4, 0) : u + 5] = 255
    environment = dict(trial.info.environment)
    if with_camera:
        environment['cameras'] = {'agentview': ABOVE.turned(180).to_dict()}
    info = dataclasses.replace(trial.info, environment=environment)
    # Stored as LIBERO's are: turned by 180 degrees.
    return dataclasses.replace(trial, info=info, images={'agentview': pictures[:, ::-1, ::-1]})


@pytest.fixture(scope='module')
def trials(tmp_path_factory, sandbox):
    """Three successes and three failures: with pictures, without geometry, without pictures."""
    folder, objective = tmp_path_factory.mktemp('bags'), load_objective('completion')
    program, found = parse_program(PROGRAM, sandbox), []
    made = [
        filmed(SUCCESS, 'good', Outcome.SUCCESS),
        filmed((REACH, CLOSE), 'blind', Outcome.FAILURE, with_camera=False),
        *(make_trial(SUCCESS, episode_id=f'good-{i}') for i in range(2)),
        *(make_trial(DROPS, episode_id=f'poor-{i}', outcome=Outcome.FAILURE) for i in range(2)),
    ]
    for trial in made:
        episode = read_episode(record(folder, trial), images=False)
        success = trial.info.outcome is Outcome.SUCCESS
        track = SceneSource().track(episode)
        found.append(trial_costs(episode, success, track, objective, program, sandbox))
    return program, found


@pytest.fixture(scope='module')
def page(trials, tmp_path_factory):
    program, found = trials
    path = tmp_path_factory.mktemp('page') / 'costs.py.review.html'
    reviews = review(program, found)
    term = TermSettings(weight=1.0, threshold=0.02, worst=0.3, reduce='last')
    terms = {'stage1_target_constraint1': term}
    left_out = ['odd: no <scene>']
    write_page(path, 'costs.py', program, reviews, found, SceneSource(), 6, left_out, terms)
    return path.read_text()


def test_a_point_is_drawn_where_the_camera_sees_it():
    """150 px * 0.1 m / 0.5 m = 30 px right of and above 59.5; SVG begins half a pixel before."""
    points = [
        NamedPoint('0', 'soup', TARGET, np.array([0.1, 0.1, 0.5])),
        NamedPoint('2', 'behind', OBSTACLE, np.array([0.1, 0.1, 1.5])),
        NamedPoint('3', 'outside', OBSTACLE, np.array([0.5, 0.1, 0.5])),
        NamedPoint('4', '<i>', OBSTACLE, np.array([0.0, 0.0, 0.0]), is_seen=False),
    ]
    marks = project_points(points, camera())
    assert [(mark.point.label, mark.u, mark.v) for mark in marks] == [
        ('4', pytest.approx(59.5), pytest.approx(59.5)),
        ('0', pytest.approx(89.5), pytest.approx(29.5)),
    ]
    svg = frame_svg(np.zeros((SIZE, SIZE, 3), np.uint8), marks, 'a frame')
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" fill="([^"]+)"', svg)
    assert circles == [('60.0', '60.0', 'none'), ('90.0', '30.0', '#ffe119')]
    assert '<i>' not in svg and '0 soup</text>' in svg


def test_the_camera_is_read_from_start_or_from_its_topics(tmp_path):
    """Stored with its rows turned round and turned by 180 degrees: left and right change."""
    contract = load_contract('libero_rgbd').with_camera_size(SIZE)
    pictures = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    bag = write_rgbd(tmp_path, pictures, np.ones((2, SIZE, SIZE), np.float32), contract)
    from_topics = read_episode(bag, images=False)
    told = dataclasses.replace(
        from_topics.info,
        contract=CONTRACT.with_camera_size(SIZE).to_dict(),
        environment={'cameras': {'agentview': upside_down().to_dict()}},
    )
    from_start = dataclasses.replace(from_topics, info=told)
    for episode in (from_topics, from_start):
        pixels, depth_m = recorded_camera(episode).project(np.array([[0.1, 0.1, 0.5]]))
        np.testing.assert_allclose(pixels, [[29.5, 29.5]], atol=1e-9)
        assert depth_m == pytest.approx([0.5])
    plain = dataclasses.replace(told, environment={})
    assert recorded_camera(dataclasses.replace(from_start, info=plain)) is None
    broken = dataclasses.replace(told, environment={'cameras': {'agentview': {'width': 3}}})
    with pytest.raises(BagError, match='intrinsics'):
        recorded_camera(dataclasses.replace(from_start, info=broken))
    other_size = dataclasses.replace(told, contract=CONTRACT.to_dict())
    with pytest.raises(BagError, match='120 x 120 px; expected the contract.s 224 x 224'):
        recorded_camera(dataclasses.replace(from_start, info=other_size))


def test_the_targets_dot_is_on_the_target_in_every_frame(page):
    shown = page[page.index('<code>good</code>') :]
    shown = shown[: shown.index('<h3>')] if '<h3>' in shown else shown
    frames = re.findall(r'<svg class="frame".*?</svg>', shown, re.DOTALL)
    assert len(frames) == 9  # start, middle and end of three stages
    places = set()
    for frame in frames:
        content = base64.b64decode(re.search(r'base64,([^"]+)', frame)[1])
        picture = np.asarray(Image.open(io.BytesIO(content)))
        x, y = (
            float(v) for v in re.search(r'cx="([\d.]+)" cy="([\d.]+)"[^>]*#ffe119', frame).groups()
        )
        assert picture[int(y), int(x)].min() > 200, (x, y)
        places.add((x, y))
    assert len(places) > 3, 'it is carried'


def test_a_frame_says_what_each_cost_of_its_stage_is(page, trials):
    program, found = trials
    costs = found[0].costs['stage1_target_constraint1']
    values = re.findall(r'<caption>start: state 0, 0.00 s</caption>\s*<tr>.*?<td>([^<]*)<', page)
    assert f'{costs[0]:.3f}' in values


def test_what_cannot_be_shown_is_said(page):
    assert NO_CAMERA in page[page.index('<code>blind</code>') :]
    assert 'No frames:' in page[page.index('<code>poor-0</code>') :]
    assert page.count('never reached</span>') == 4  # two stages of one failure, one of two
    assert 'odd: no &lt;scene&gt;' in page


def test_every_cost_has_its_text_its_numbers_and_its_flags_explained(page):
    sections = {
        name: page[page.index(f'<section id="{name}">') :].split('</section>')[0]
        for name in re.findall(r'<section id="(stage\w+)"', page)
    }
    words = {name: re.sub(r'<[^>]+>', '', text) for name, text in sections.items()}
    target = words['stage1_target_constraint1']
    assert 'Near the &lt;b&gt;target&lt;/b&gt;' in target and 'share of stage 1' in target
    assert '0 up to 0.02' in target and '>threshold<' in sections['stage1_target_constraint1']
    assert 'return np.linalg.norm(end_effector - keypoints[0])' in target and 'LIMIT' not in target
    assert 'Failures' not in target and 'so it ranks nothing' not in target
    assert 'so it ranks nothing' in words['stage1_path_constraint1']
    assert 'never above 0' in words['stage3_collision_constraint1']
    inverted = words['stage1_grasp_constraint1']
    assert 'Successes cost more than failures' in inverted


def test_the_page_loads_nothing_and_every_picture_has_a_text(page):
    targets = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert targets and all(target.startswith(('data:', '#')) for target in targets)
    assert '<link' not in page and '@import' not in page and '<script' not in page
    assert all('aria-label="' in tag for tag in re.findall(r'<svg[^>]*>', page))
    assert {f'#{name}' for name in re.findall(r'<section id="([^"]+)"', page)} <= set(targets)
    assert 'xmlns' in page and 'prefers-color-scheme: dark' in page


def test_the_texts_of_one_cost_are_found_in_both_notations(sandbox):
    python = parse_program(PROGRAM, sandbox)
    held = next(f for f in python.functions if f.cost_class == 'grasp')
    assert python_text(python, held) == (
        'def stage1_grasp_constraint1(end_effector, keypoints, held):\n'
        '    return 1.0 if held else 0.0'
    )
    declarative = parse_program(DECLARATIVE, sandbox)
    near, placed = declarative.functions
    assert given_text(declarative, near).startswith('- {stage: 1') and near.line == 4
    assert given_text(declarative, placed) == (
        '- stage: 3\n  class: target\n  kind: distance\n  of: target\n  to: receptacle'
    )
    assert 'np.linalg.norm(keypoints[0] - keypoints[1])' in python_text(declarative, placed)


def test_the_trials_shown_are_the_best_the_typical_and_the_wrongly_ranked(sandbox, tmp_path):
    """One cost; successes end at 0.1, 0.2, 0.9 and failures at 0.3, 0.5, 0.15."""
    program = parse_program(PROGRAM, sandbox)
    program = dataclasses.replace(program, functions=program.functions[:1])
    ends = {'s1': 0.2, 's2': 0.1, 's3': 0.9, 'f1': 0.3, 'f2': 0.5, 'f3': 0.15}
    given = [
        Trial(name, name[0] == 's', {'stage1_target_constraint1': np.array([1.0, end])},
              tmp_path, ())
        for name, end in ends.items()
    ]  # fmt: skip
    chosen = choose_examples(program, given, 10)
    # Wrongly ranked against the other kind: s2 0, s1 1/3, s3 1; f1 1/3, f2 1/3, f3 2/3.
    assert [example.trial.name for example in chosen] == ['s2', 'f2', 'f3', 's3', 's1', 'f1']
    says = 'stage1_target_constraint1 ranks'
    assert chosen[2].why == f'A failure that {says} before 67% of the successes'
    assert chosen[3].why == f'A success that {says} behind 100% of the failures'
    assert [e.trial.name for e in choose_examples(program, given, 2)] == ['s2', 'f2']
    assert choose_examples(program, given, 0) == ()


def test_the_command_writes_the_page_beside_the_program(trials, tmp_path):
    file = tmp_path / 'costs.yaml'
    file.write_text(DECLARATIVE)
    bags = [str(trial.bag) for trial in trials[1][:2]]
    done = CliRunner().invoke(app, ['costs', 'review', str(file), *bags, '--trials', '1'])
    page = (tmp_path / 'costs.yaml.review.html').read_text()
    assert done.exit_code == 1 and 'costs.yaml.review.html' in done.output.replace('\n', '')
    assert '<code>good</code>' in page and '<code>blind</code>' not in page
    assert len(page) < 1e6
