"""Asking a model for stages: corrections, cache, offline; what fails leaves all as it was."""

import json
import logging

import numpy as np
import pytest
from vlm_server import closed_port, content, recorded, serving

from grape_trainer.scoring.vlm import VlmClient
from grape_trainer.scoring.vlm_cache import AnswerCache, VlmCacheError, question
from grape_trainer.scoring.vlm_config import VlmConfig, VlmError
from grape_trainer.scoring.vlm_prompt import NumberedKeypoint

pytest.importorskip('openai', reason='openai is not installed: run make setup')

KEY = 'sk-test-4f9b1c7e2d'
PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
KEYPOINTS = [NumberedKeypoint(name, (0.5, 0.1, 0.0)) for name in ('soup', 'basket', 'milk')]
SAID = 'put the soup in the basket'


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv('MY_KEY', KEY)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')


def client_of(server, folder, *, offline=False, refresh=False, **settings):
    base_url = server if isinstance(server, str) else server.base_url
    given = {'api_key_env': 'MY_KEY', 'timeout_s': 5.0, 'retries': 0} | settings
    config = VlmConfig(base_url=base_url, **given)
    return VlmClient(
        config, AnswerCache(folder), offline=offline, refresh=refresh, sleep=lambda _: None
    )


def propose(server, folder, check=None, picture=PICTURE, **settings):
    return client_of(server, folder, **settings).propose(SAID, [picture], KEYPOINTS, check)


def test_a_good_reply_is_a_proposal_with_what_it_cost(tmp_path):
    prices = {'input_usd_per_million': 2.5, 'output_usd_per_million': 10.0}
    with serving(recorded('good.json')) as server:
        found = propose(server, tmp_path, **prices)
    assert [stage.name for stage in found.stages.stages] == ['grasp_soup', 'carry', 'place']
    assert found.cost_usd == pytest.approx((1843 * 2.5 + 412 * 10) / 1e6)
    message = server.requests[0]['body']['messages'][1]['content']
    assert SAID in message[0]['text'] and '2: milk' in message[0]['text']
    assert message[1]['image_url']['url'].startswith('data:image/png;base64,')


def test_a_reply_of_the_wrong_form_goes_back_with_what_is_wrong(tmp_path):
    with serving(recorded('wrong_schema.json'), recorded('good.json')) as server:
        found = propose(server, tmp_path)
    assert (len(found.answers), found.cached) == (2, 0)
    system, task, wrong, reason = server.texts(1)
    assert wrong == content('wrong_schema.json')
    assert 'stages.0.grasp: Field required' in reason and 'constraints.0.class' in reason
    assert task == server.texts(0)[1]


def test_a_keypoint_that_does_not_exist_goes_back_too(tmp_path):
    with serving(recorded('unknown_keypoint.json'), recorded('fenced.json')) as server:
        assert propose(server, tmp_path).stages.stages[0].keypoints == (0,)
    assert 'there is no keypoint 17; there are 0 to 2' in server.texts(1)[3]


def test_replies_that_stay_wrong_end_in_an_error_that_shows_the_last_one(tmp_path):
    with serving(recorded('prose_refusal.json')) as server, pytest.raises(VlmError) as caught:
        propose(server, tmp_path, corrections=2)
    assert len(server.requests) == 3
    text = str(caught.value)
    assert 'no proposal that can be used in 3 replies' in text
    assert 'no JSON object' in text and "can't assist" in text
    assert 'Trials stay scorable: with the last cost program that was approved' in text


def test_hostile_code_is_refused_by_the_check_and_never_run(tmp_path, monkeypatch):
    mark = tmp_path / 'mark'
    monkeypatch.setenv('GRAPE_HOSTILE_MARK', str(mark))
    seen = []

    def check(text):
        seen.append(text)
        return 'line 1: import is not allowed' if 'import' in text else None

    with serving(recorded('hostile.json'), recorded('good.json')) as server:
        found = propose(server, tmp_path / 'cache', check)
    assert 'import os' in seen[0] and 'import' not in seen[1]
    assert 'line 1: import is not allowed' in server.texts(1)[3]
    assert found.stages.stages[0].name == 'grasp_soup'
    with serving(recorded('hostile.json')) as server, pytest.raises(VlmError, match='import is'):
        propose(server, tmp_path / 'other', check)
    assert not mark.exists()


@pytest.mark.parametrize('name', ['hostile.json', 'good.json', 'python.json'])
def test_the_checker_of_cost_programs_says_what_may_pass(tmp_path, name):
    from grape_trainer.scoring.cost_sandbox import CostSandbox
    from grape_trainer.scoring.stage_proposing import program_check

    with CostSandbox() as sandbox, serving(recorded(name)) as server:
        if name == 'hostile.json':
            with pytest.raises(VlmError, match='import'):
                propose(server, tmp_path, program_check(sandbox), corrections=0)
        else:
            assert propose(server, tmp_path, program_check(sandbox), corrections=0).stages


def test_a_question_that_was_asked_is_answered_without_network_and_key(tmp_path, monkeypatch):
    with serving(recorded('wrong_schema.json'), recorded('good.json')) as server:
        first = propose(server, tmp_path)
    monkeypatch.delenv('MY_KEY')
    for offline in (False, True):
        again = propose(closed_port(), tmp_path, offline=offline)
        assert again.stages == first.stages and again.cached == 2
    assert again.cost_usd == first.cost_usd


def test_offline_an_unknown_question_is_an_error_that_names_the_cache(tmp_path):
    with serving(recorded('good.json')) as server:
        propose(server, tmp_path)
        other = PICTURE.copy()
        other[0, 0, 0] ^= 1
        for changes in ({'picture': other}, {'model': 'gpt-5'}, {'temperature': 0.7}):
            with pytest.raises(VlmCacheError, match='has no answer.*offline none is asked for'):
                propose(server, tmp_path, offline=True, **changes)
    assert len(server.requests) == 1


def test_refresh_asks_anew_and_replaces_the_answer(tmp_path):
    with serving(recorded('good.json'), recorded('python.json')) as server:
        assert len(propose(server, tmp_path).stages.stages) == 3
        assert len(propose(server, tmp_path, refresh=True).stages.stages) == 2
        assert len(propose(server, tmp_path, offline=True).stages.stages) == 2
    with pytest.raises(VlmError, match='exclude each other'):
        client_of(closed_port(), tmp_path, offline=True, refresh=True)


def test_the_cache_holds_the_question_the_answer_and_what_it_took(tmp_path):
    with serving(recorded('good.json')) as server:
        key = (
            propose(server, tmp_path, input_usd_per_million=1, output_usd_per_million=1)
            .answers[0]
            .key
        )
    kept = json.loads((tmp_path / f'{key}.json').read_text())
    assert kept['reply'] == content('good.json') and kept['model'] == 'gpt-4o-2024-08-06'
    assert SAID in kept['question']['texts'][1][1]
    assert len(kept['question']['images_sha256'][0]) == 64
    assert (kept['prompt_tokens'], kept['reply_tokens']) == (1843, 412)
    assert kept['cost_usd'] == pytest.approx(2255e-6)
    assert kept['asked_at'] <= kept['answered_at']
    assert not list(tmp_path.glob('*.partial'))


def test_the_key_is_in_no_file_no_log_and_no_error(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        with serving(recorded('wrong_schema.json'), recorded('good.json')) as server:
            propose(server, tmp_path / 'good')
        assert server.requests[0]['headers']['authorization'] == f'Bearer {KEY}'
        for name, status in (('error_401.json', 401), ('error_500.json', 500)):
            with (
                serving(recorded(name, status=status)) as server,
                pytest.raises(VlmError) as caught,
            ):
                propose(server, tmp_path / 'bad')
            assert KEY not in str(caught.value) and KEY not in repr(caught.value)
    assert KEY not in caplog.text
    files = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert files and all(KEY.encode() not in path.read_bytes() for path in files)


def test_a_failed_question_leaves_the_cache_as_it_was(tmp_path):
    with serving(recorded('error_500.json', status=500)) as server, pytest.raises(VlmError):
        propose(server, tmp_path)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('damage', 'text'),
    [
        (lambda path: path.write_text(path.read_text()[:-50]), 'JSONDecodeError'),
        (lambda path: path.write_text(path.read_text().replace('soup', 'milk')), 'was changed'),
        (lambda path: path.write_text('{}'), 'KeyError'),
        (lambda path: path.write_text('[]'), 'TypeError'),
        (lambda path: path.write_bytes(b'\xff\xfe'), 'codec'),
        (lambda path: path.write_text(''), 'JSONDecodeError'),
    ],
)
def test_a_damaged_answer_is_an_error_that_names_the_file_and_is_not_asked_again(
    tmp_path, damage, text
):
    with serving(recorded('good.json')) as server:
        key = propose(server, tmp_path).answers[0].key
        path = tmp_path / f'{key}.json'
        damage(path)
        for offline in (False, True):
            with pytest.raises(VlmCacheError) as caught:
                propose(server, tmp_path, offline=offline)
            assert str(path) in str(caught.value) and text in str(caught.value)
            assert 'delete it' in str(caught.value)
    assert len(server.requests) == 1


def test_an_answer_under_another_questions_name_is_not_taken(tmp_path):
    with serving(recorded('good.json')) as server:
        key = propose(server, tmp_path).answers[0].key
    other = question(VlmConfig(model='other'), [('user', 'x')], [PICTURE])
    (tmp_path / f'{key}.json').rename(tmp_path / f'{other.key}.json')
    with pytest.raises(VlmCacheError, match='another question than its name says'):
        AnswerCache(tmp_path).find(other)


def test_the_hash_is_of_model_text_and_pixels():
    config = VlmConfig()
    base = question(config, [('user', 'x')], [PICTURE]).key
    assert question(config, [('user', 'x')], [PICTURE.copy()]).key == base
    assert question(VlmConfig(timeout_s=9, retries=0), [('user', 'x')], [PICTURE]).key == base
    others = {
        question(VlmConfig(model='y'), [('user', 'x')], [PICTURE]).key,
        question(config, [('user', 'y')], [PICTURE]).key,
        question(config, [('system', 'x')], [PICTURE]).key,
        question(config, [('user', 'x')], [PICTURE[::-1]]).key,
        question(config, [('user', 'x')], [PICTURE.reshape(8, 32, 3)]).key,
        question(config, [('user', 'x')], []).key,
    }
    assert len(others) == 6 and base not in others


def test_half_a_surrogate_pair_in_a_reply_becomes_a_question_mark(tmp_path):
    """It could be neither sent back nor written down."""
    reply = recorded('good.json')
    odd = json.loads(reply.body)
    odd['choices'][0]['message']['content'] = content('good.json').replace('lower', '\ud800')
    with serving(type(reply)(json.dumps(odd).encode())) as server:
        first = propose(server, tmp_path)
        assert propose(server, tmp_path, offline=True).stages == first.stages
    assert first.stages.stages[2].description.startswith('? the soup')


def test_without_keypoints_nothing_is_asked(tmp_path):
    with serving(recorded('good.json')) as server, pytest.raises(VlmError, match='no keypoint'):
        client_of(server, tmp_path).propose(SAID, [PICTURE], [])
    assert not server.requests
