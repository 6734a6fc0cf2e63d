"""From a recorded trial to stages in a file and back to a cut, by a model or by a template."""

import base64
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from episode_bags import make_bag
from PIL import Image
from scoring_trials import make_trial, record
from typer.testing import CliRunner
from vlm_server import recorded, serving

from grape_bringup.cli import app
from grape_episode.bag import read_episode
from grape_trainer.scoring.keypoint import KeypointError, SceneSource
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.scorer import score_bags
from grape_trainer.scoring.stage import StageError, segment_plan
from grape_trainer.scoring.stage_plan import plan_for
from grape_trainer.scoring.stage_proposal import ProposalError, read_proposal
from grape_trainer.scoring.stage_proposing import propose_stages
from grape_trainer.scoring.vlm import VlmClient
from grape_trainer.scoring.vlm_cache import AnswerCache
from grape_trainer.scoring.vlm_config import VlmConfig, VlmError

pytest.importorskip('openai', reason='openai is not installed: run make setup')

PICTURE = np.full((16, 16, 3), 128, np.uint8)
SETTINGS = load_objective('open_close')


@pytest.fixture(scope='module')
def recorded_bag(tmp_path_factory):
    return record(tmp_path_factory.mktemp('proposal'), make_trial())


@pytest.fixture
def bag(recorded_bag, tmp_path):
    return shutil.copytree(recorded_bag, tmp_path / 'bag')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ('OPENAI_API_KEY', 'OPENAI_BASE_URL', 'GRAPE_VLM_MODEL'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')


def client(base_url, folder):
    config = VlmConfig(base_url=base_url, timeout_s=5.0, retries=0, corrections=0)
    return VlmClient(config, AnswerCache(folder))


def cut(bag, plan):
    episode = read_episode(bag, images=False)
    track = SceneSource().track(episode)
    return segment_plan(episode, track, plan, SETTINGS.segmentation, SETTINGS.motion)


def spans(bag, plan):
    return [(span.start, span.stop, span.completed) for span in cut(bag, plan).spans]


def test_without_a_model_the_template_is_proposed_in_the_same_form(bag, tmp_path):
    made = propose_stages(bag, tmp_path / 'stages.json')
    assert read_proposal(tmp_path / 'stages.json') == made
    assert (made.origin.kind, made.origin.template, made.program) == ('template', 'pick_place', '')
    names = ('target_1', 'basket_1', 'milk_1')
    assert made.keypoints == names
    info = read_episode(bag, images=False).info
    assert spans(bag, made.plan(names)) == spans(bag, plan_for(info, names))


def test_a_models_stages_cut_the_trial_like_the_template_they_equal(bag, tmp_path):
    with serving(recorded('good.json')) as server:
        made = propose_stages(
            bag, tmp_path / 'stages.json', client(server.base_url, tmp_path), images=[PICTURE]
        )
    assert read_proposal(tmp_path / 'stages.json') == made
    assert (made.origin.kind, made.origin.model) == ('model', 'gpt-4o-2024-08-06')
    assert [stage.keypoints for stage in made.stages] == [
        ('target_1',), ('target_1', 'basket_1'), ('target_1', 'basket_1'),
    ]  # fmt: skip
    assert len(json.loads(made.program)['costs']) == 6
    assert spans(bag, made.plan(made.keypoints)) == [
        (0, 41, True),
        (41, 93, True),
        (93, 130, True),
    ]
    assert (cut(bag, made.plan(made.keypoints)).grasps) == 1


def test_two_stages_of_a_model_are_cut_as_two(bag, tmp_path):
    with serving(recorded('python.json')) as server:
        made = propose_stages(bag, None, client(server.base_url, tmp_path), images=[PICTURE])
    assert spans(bag, made.plan(made.keypoints)) == [(0, 41, True), (41, 130, True)]
    assert made.program.startswith('def stage1_target_constraint1(')


@pytest.mark.parametrize(
    'reply',
    [
        recorded('error_500.json', status=500),
        recorded('prose_refusal.json'),
        recorded('refusal.json'),
        recorded('malformed.txt'),
        recorded('good.json', delay_s=3.0),
    ],
    ids=['500', 'nonsense', 'refusal', 'malformed', 'late'],
)
def test_a_model_that_fails_leaves_the_last_stages_and_the_scores_as_they_were(
    bag, tmp_path, reply
):
    out = tmp_path / 'stages.json'
    propose_stages(bag, out)
    before = out.read_bytes()
    scores = [score_bags([bag], load_objective('completion'), tmp_path / 'a.csv').rows[0]]
    with serving(reply) as server, pytest.raises(VlmError, match='Trials stay scorable'):
        config = VlmConfig(base_url=server.base_url, timeout_s=0.3, retries=0, corrections=0)
        asked = VlmClient(config, AnswerCache(tmp_path / 'cache'))
        propose_stages(bag, out, asked, images=[PICTURE])
    assert out.read_bytes() == before and not list(tmp_path.glob('*.partial'))
    scores += [score_bags([bag], load_objective('completion'), tmp_path / 'b.csv').rows[0]]
    assert scores[0] == scores[1]
    assert read_proposal(out).stages


def test_the_model_sees_the_first_frame_as_the_policy_saw_it(tmp_path):
    bag = make_bag(tmp_path, 'seen')
    with serving(recorded('python.json')) as server:
        made = propose_stages(bag, None, client(server.base_url, tmp_path / 'cache'))
    url = server.requests[0]['body']['messages'][1]['content'][1]['image_url']['url']
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2])))
    assert np.array_equal(np.asarray(picture), read_episode(bag).policy_images()[0])
    assert made.keypoints == ('milk_1', 'basket_1')


def test_stages_of_another_task_name_the_keypoint_that_is_missing(bag, tmp_path):
    made = propose_stages(bag)
    with pytest.raises(StageError, match='names basket_1; the trial has the keypoints: target_1'):
        made.plan(('target_1', 'milk_1'))
    with pytest.raises(KeypointError, match='no scene_state'):
        SceneSource().track(replace(make_trial(), scene=None))


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (lambda c: c.update(version=2), 'version'),
        (lambda c: c.update(extra=1), 'extra'),
        (lambda c: c['stages'].clear(), 'stages'),
        (lambda c: c['stages'][0].update(ends='vanished'), 'stages.0.ends'),
        (lambda c: c['stages'][0].update(keypoints=['cow']), 'names cow; the keypoints are'),
        (lambda c: c['stages'][1].update(number=7), r'are \[1, 7, 3\]'),
        (lambda c: c.pop('origin'), 'origin'),
    ],
)
def test_a_file_that_a_person_spoiled_says_what_to_mend(bag, tmp_path, change, text):
    path = tmp_path / 'stages.json'
    propose_stages(bag, path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ProposalError, match=f'(?s)stages.json.*{text}'):
        read_proposal(path)


def test_a_file_that_is_none_says_so(tmp_path):
    with pytest.raises(ProposalError, match='cannot be read'):
        read_proposal(tmp_path / 'none.json')
    (tmp_path / 'text.json').write_text('hello')
    with pytest.raises(ProposalError, match='is not JSON'):
        read_proposal(tmp_path / 'text.json')


def grape(*arguments):
    """Run the command line in this process; returns what it did and said."""
    done = CliRunner().invoke(app, ['stages', *map(str, arguments)])
    return done, done.output


def test_the_command_line_proposes_and_shows(bag, tmp_path):
    out = tmp_path / 'stages.json'
    done, _ = grape('propose', bag, '--out', out)
    assert done.exit_code == 0 and read_proposal(out).origin.kind == 'template'
    for arguments in ((), ('--proposal', out), ('--template', 'pick_place')):
        assert grape('show', bag, *arguments)[0].exit_code == 0


def test_the_command_line_asks_a_model_only_when_told_to(bag, tmp_path):
    out = tmp_path / 'stages.json'
    with serving(recorded('python.json')) as server:
        done, _ = grape('propose', bag, '--out', out, '--template', 'stack')
        assert done.exit_code == 0 and not server.requests
        with_picture = make_bag(tmp_path, 'seen')
        options = ('--base-url', server.base_url, '--model', 'm', '--cache', tmp_path / 'cache')
        done, _ = grape('propose', with_picture, '--out', out, *options)
        assert done.exit_code == 0, done.exception
    assert len(server.requests) == 1 and read_proposal(out).origin.kind == 'model'
    again = ('propose', with_picture, '--out', out, *options, '--offline')
    assert grape(*again)[0].exit_code == 0
    done, _ = grape('propose', bag, '--out', out, '--template', 'stack', '--vlm')
    assert 'leave it out to ask a model' in str(done.exception)
    done, _ = grape('propose', with_picture, '--out', out, '--vlm')
    assert 'OPENAI_API_KEY' in str(done.exception)
    assert read_proposal(out).origin.kind == 'model'
