"""What a model replies is checked before anything is made of it, and stays text."""

import json

import numpy as np
import pytest
from vlm_server import content

from grape_trainer.scoring.cost_kinds import KINDS
from grape_trainer.scoring.stage_events import EVENTS
from grape_trainer.scoring.vlm_prompt import (
    EXAMPLE,
    NumberedKeypoint,
    messages,
    png_url,
    system_prompt,
    task_prompt,
)
from grape_trainer.scoring.vlm_reply import ReplyError, parse_reply


@pytest.fixture
def picture():
    return np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def changed(change, name='good.json'):
    reply = json.loads(content(name))
    change(reply['stages'])
    return json.dumps(reply)


def test_a_good_reply_is_stages_with_their_events_and_one_program():
    found = parse_reply(content('good.json'), 3)
    assert [stage.name for stage in found.stages] == ['grasp_soup', 'carry', 'place']
    assert [stage.event for stage in found.stages] == ['grasped', 'arrived', 'placed']
    program = json.loads(found.program_text)
    assert len(program['costs']) == 6
    assert program['costs'][1] == {
        'stage': 1, 'class': 'collision', 'kind': 'clearance', 'clearance_m': 0.1,
    }  # fmt: skip


def test_prose_and_fences_around_the_json_are_overlooked():
    plain = parse_reply(content('good.json'), 3)
    assert parse_reply(content('fenced.json'), 3) == plain
    assert parse_reply(f'Sure! {content("good.json")} Anything else?', 3) == plain


def test_python_costs_stay_text():
    found = parse_reply(content('python.json'), 2)
    assert found.stages[0].constraints[0].text.startswith('def stage1_target_constraint1(')
    assert found.program_text.count('def stage') == 2


def test_hostile_code_is_text_that_is_not_run(tmp_path, monkeypatch):
    """The code stands in a reply of the right form: to refuse it is the checker's part."""
    mark = tmp_path / 'mark'
    monkeypatch.setenv('GRAPE_HOSTILE_MARK', str(mark))
    found = parse_reply(content('hostile.json'), 2)
    assert 'import os' in found.program_text
    assert not mark.exists()


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (lambda s: s[0].pop('grasp'), 'stages.0.grasp: Field required'),
        (lambda s: s[0].update(colour='red'), 'stages.0.colour: Extra inputs'),
        (lambda s: s[0].update(grasp='yes'), 'stages.0.grasp: Input should be a valid boolean'),
        (lambda s: s.pop(0), 'the numbers of the stages are [2, 3]; expected 1'),
        (lambda s: s[1].update(name='place'), 'the names of the stages repeat'),
        (lambda s: s[1].update(name='carry it'), 'stages.1.name'),
        (lambda s: s[0].update(keypoints=[]), 'stages.0.keypoints'),
        (lambda s: s[0].update(keypoints=[0.5]), 'stages.0.keypoints.0'),
        (lambda s: s[0].update(keypoints=[7]), 'there is no keypoint 7; there are 0 to 2'),
        (lambda s: s[0].update(keypoints=[-1]), 'there is no keypoint -1'),
        (lambda s: s[0].update(release=True), 'grasps and releases; split it'),
        (lambda s: s[0].update(ends='moved'), "it ends 'moved'; expected 'grasped'"),
        (lambda s: s[0].update(ends='exploded'), 'stages.0.ends'),
        (lambda s: s[1].update(ends='arrived', keypoints=[0]), 'needs two keypoints'),
        (lambda s: s[0].update(constraints=[]), 'stages.0.constraints'),
        (lambda s: s[0]['constraints'][0].update(stage=2), 'of stage 2 stands in stage 1'),
        (lambda s: s[0]['constraints'][0].update({'class': 'speed'}), 'constraints.0.class'),
        (lambda s: s[0]['constraints'][0].update(notation='c++'), 'constraints.0.notation'),
        (lambda s: s[0]['constraints'][0].update(notation='python'), 'defines no function stage1'),
        (lambda s: s[0]['constraints'][0].update(text={}), "no JSON object with a 'kind'"),
        (lambda s: s[0]['constraints'][0].update(text='[' * 3000), 'is no JSON object'),
        (lambda s: s[0]['constraints'][0].update(text='x' * 5000), 'at most 4000'),
        (
            lambda s: s[0]['constraints'][0].update(text={'kind': 'contact', 'stage': 2}),
            'has another stage than the constraint',
        ),
        (
            lambda s: s[0]['constraints'][0].update(
                notation='python', text='def stage1_target_constraint1(a, b): return 0'
            ),
            'two notations are mixed',
        ),
        (lambda s: s.clear(), 'stages: '),
        (lambda s: s.extend([s[0]] * 20), 'at most 12'),
    ],
)
def test_what_is_wrong_with_a_reply_is_said_with_its_place(change, text):
    with pytest.raises(ReplyError) as caught:
        parse_reply(changed(change), 3)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    'reply', ['', 'I am sorry.', '[1, 2]', '{"stages": [', '"text"', '{' * 50_000, '```json\n```']
)
def test_a_reply_without_an_object_says_what_was_expected(reply):
    with pytest.raises(ReplyError, match='no JSON object in your reply; expected one object'):
        parse_reply(reply, 3)


def test_many_problems_are_said_in_part_and_counted():
    def spoil(stages):
        for stage in stages:
            stage.clear()

    with pytest.raises(ReplyError, match='and 10 more'):
        parse_reply(changed(spoil), 3)


def test_the_example_of_the_prompt_is_a_reply_that_is_accepted():
    assert len(parse_reply(EXAMPLE, 4).stages) == 2


def test_the_prompt_names_every_event_and_every_kind_of_cost():
    prompt = system_prompt()
    assert prompt.index('declarative') < prompt.index('Python')
    for event in EVENTS:
        assert f'- {event}: ' in prompt
    for model in KINDS:
        assert f'{model.__doc__.split(chr(10))[0]}' in prompt


def test_keypoints_are_told_by_number_name_and_position():
    text = task_prompt(
        'lift it', [NumberedKeypoint('cup', (0.1, -0.25, 1)), NumberedKeypoint('', (0, 0, 0))], 2
    )
    assert 'Instruction: lift it' in text and 'Pictures: 2' in text
    assert '0: cup, (0.100, -0.250, 1.000)' in text
    assert '1: not known' in text


def test_pictures_go_with_the_first_words_of_the_user(picture):
    found = messages(
        [('system', 's'), ('user', 'u'), ('assistant', 'a'), ('user', 'v')], [picture]
    )
    assert [type(message['content']) for message in found] == [str, list, str, str]
    assert found[1]['content'][1]['image_url']['url'].startswith('data:image/png;base64,iVBOR')


def test_something_else_than_a_picture_is_an_error(picture):
    with pytest.raises(ValueError, match='float64 .8, 8, 3.; expected uint8'):
        png_url(picture.astype(float))
