"""One question over real HTTP: whatever the server does ends in an answer or a clear error."""

import logging
import time
from pathlib import Path

import pytest
from vlm_server import Reply, closed_port, recorded, serving

from grape_trainer.scoring.vlm_config import VlmConfig, VlmError, load_vlm_config
from grape_trainer.scoring.vlm_exchange import Exchange, retry_after_s

pytest.importorskip('openai', reason='openai is not installed: run make setup')

CONFIGURATIONS = Path(__file__).parents[1] / 'config' / 'vlm'
KEY = 'sk-test-4f9b1c7e2d'
QUESTION = [{'role': 'user', 'content': 'which stages?'}]


@pytest.fixture(autouse=True)
def without_environment(monkeypatch):
    for name in (
        'OPENAI_API_KEY',
        'OPENAI_BASE_URL',
        'GRAPE_VLM_MODEL',
        'HTTP_PROXY',
        'http_proxy',
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('MY_KEY', KEY)


def ask(server, waits=None, **settings):
    """Ask once; pauses go into `waits` instead of being made."""
    given = {'api_key_env': 'MY_KEY', 'timeout_s': 5.0, 'retries': 0} | settings
    base_url = server if isinstance(server, str) else server.base_url
    waits = [] if waits is None else waits
    return Exchange(VlmConfig(base_url=base_url, **given), waits.append).ask(QUESTION)


def refused(server, *texts, **settings):
    """Ask and expect an error with these texts and without the key; returns it."""
    with pytest.raises(VlmError) as caught:
        ask(server, **settings)
    for text in texts:
        assert text in str(caught.value)
    assert KEY not in str(caught.value) and KEY[:12] not in str(caught.value)
    return str(caught.value)


def test_a_good_reply_is_an_answer_with_its_tokens():
    with serving(recorded('good.json')) as server:
        answer = ask(server, temperature=0.5, max_tokens=77)
    assert answer.text.startswith('{') and '"grasp_soup"' in answer.text
    assert (answer.model, answer.finish_reason) == ('gpt-4o-2024-08-06', 'stop')
    assert (answer.prompt_tokens, answer.reply_tokens) == (1843, 412)
    request = server.requests[0]
    assert request['path'] == '/v1/chat/completions'
    assert request['headers']['authorization'] == f'Bearer {KEY}'
    body = request['body']
    assert (body['model'], body['temperature'], body['max_tokens']) == ('gpt-4o', 0.5, 77)
    assert body['response_format'] == {'type': 'json_object'}
    assert not body.get('stream')


def test_settings_that_a_server_does_not_know_can_be_left_out():
    with serving(recorded('no_usage.json')) as server:
        answer = ask(
            server, temperature=None, response_format='text',
            token_limit_name='max_completion_tokens', model='local-vlm',
        )  # fmt: skip
    assert set(server.requests[0]['body']) == {'messages', 'model', 'max_completion_tokens'}
    assert (answer.prompt_tokens, answer.reply_tokens) == (None, None)


def test_a_local_server_without_a_named_key_gets_none(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with serving(recorded('good.json')) as server:
        ask(server, api_key_env=None)
    assert KEY not in str(server.requests[0]['headers'])


def test_429_waits_as_long_as_the_server_says_and_asks_again():
    busy = recorded('error_429.json', status=429, headers={'Retry-After': '7'})
    with serving(busy, recorded('good.json')) as server:
        waits = []
        assert ask(server, waits, retries=3).text
    assert waits == [7.0] and len(server.requests) == 2


def test_429_that_asks_for_more_than_the_cap_is_given_up_at_once():
    busy = recorded('error_429.json', status=429, headers={'Retry-After': '3600'})
    with serving(busy) as server:
        refused(server, 'wait 3600 s', 'retry_after_cap_s (60 s)', 'Rate limit', retries=3)
    assert len(server.requests) == 1


def test_429_without_credit_is_not_asked_again():
    with serving(recorded('error_quota.json', status=429)) as server:
        refused(server, 'no credit left', 'Top it up', retries=3)
    assert len(server.requests) == 1


def test_500s_are_asked_again_with_growing_pauses_and_then_given_up():
    with serving(recorded('error_500.json', status=500)) as server:
        waits = []
        with pytest.raises(VlmError, match='was asked 4 times: HTTP 500: .*server had an error'):
            ask(server, waits, retries=3, backoff_s=0.5)
    assert waits == [0.5, 1.0, 2.0] and len(server.requests) == 4


def test_a_500_that_passes_is_forgotten():
    with serving(recorded('error_500.json', status=503), recorded('good.json')) as server:
        assert ask(server, retries=1).text


def test_a_server_that_does_not_answer_is_an_error_after_the_time_limit():
    with serving(recorded('good.json', delay_s=5.0)) as server:
        began = time.monotonic()
        refused(server, 'asked 1 time: no whole answer within 0.3 s (timeout_s)', timeout_s=0.3)
        assert time.monotonic() - began < 3.0


def test_a_server_that_sends_a_byte_now_and_then_is_an_error_after_the_time_limit():
    """The client's own limit is between two packets: this server would be waited for 1 min."""
    with serving(recorded('good.json', drip_s=0.05)) as server:
        began = time.monotonic()
        refused(server, 'no whole answer within 0.5 s', timeout_s=0.5)
        assert time.monotonic() - began < 3.0


def test_a_server_that_is_not_there_is_an_error_that_asks_whether_it_runs():
    address = closed_port()
    refused(address, 'the connection failed', 'refused', 'Is the server running', address)


def test_a_name_that_is_not_known_is_an_error():
    refused('http://nowhere.invalid/v1', 'the connection failed', 'is base_url right')


@pytest.mark.parametrize(
    ('reply', 'texts'),
    [
        (recorded('malformed.txt'), ['the answer is not JSON (JSONDecodeError)', 'chatcmpl-9x1']),
        (Reply(b'[' * 100_000), ['the answer is not JSON', 'Look at the server']),
        (Reply(b'\xff\xfe{}'), ['the answer is not JSON']),
        (recorded('good.json', promised=10_000), ['the connection failed']),
        (recorded('good.json', content_type='text/plain'), ["'text/plain' instead of JSON"]),
        (recorded('good.json', content_type=''), ['no content type', 'instead of JSON']),
        (
            recorded('page.html', content_type='text/html'),
            ["'text/html' instead of JSON", '404 Not Found', 'mostly ends in /v1'],
        ),
        (recorded('page.html', content_type='text/html', status=404), ['HTTP 404', '/v1']),
        (
            recorded('stream.txt', content_type='text/event-stream; charset=utf-8'),
            ['stream of events', 'Switch streaming off'],
        ),
        (recorded('error_in_200.json'), ['reports', 'upstream provider is overloaded']),
        (recorded('error_404.json', status=404), ['HTTP 404', 'does not exist', 'and model']),
        (recorded('error_400.json', status=400), ['max_completion_tokens', 'token_limit_name']),
        (recorded('refusal.json'), ['the model refuses', "can't help", 'another model']),
        (recorded('content_filter.json'), ['the model refuses', 'content filter']),
        (recorded('cut_off.json'), ['cut off after 4096 tokens', 'Raise max_tokens']),
        (recorded('empty.json'), ['answers nothing', 'Ask again']),
        (Reply(b'{"choices": []}'), ['no chat completion', 'base_url']),
        (Reply(b'{"choices": [{"message": "hello"}]}'), ['no chat completion']),
        (Reply(b'["a", "list"]'), ['no chat completion']),
        (Reply(b'null'), ['no chat completion']),
        (Reply(b'', status=204, content_type=''), ['instead of JSON']),
        (
            Reply(b'', status=307, headers={'Location': 'http://127.0.0.1:1/v1'}),
            ['HTTP 307', 'not followed'],
        ),
        (Reply(b'', status=418), ['HTTP 418']),
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_that_is_none_says_what_it_is_and_what_to_do(reply, texts):
    with serving(reply) as server:
        refused(server, *texts)


@pytest.mark.parametrize('status', [200, 500])
def test_an_endless_answer_ends_at_the_largest_size(status):
    with serving(Reply(b'x' * 4096, status=status, endless=True)) as server:
        refused(server, 'at most 50000 bytes (max_reply_bytes)', max_reply_bytes=50_000)


def test_a_compressed_answer_that_was_not_asked_for_is_refused():
    """A megabyte of it can unfold to a gigabyte."""
    squeezed = Reply(b'\x1f\x8b' + b'\0' * 100, headers={'Content-Encoding': 'gzip'})
    with serving(squeezed) as server:
        refused(server, 'compressed')
    assert server.requests[0]['headers']['accept-encoding'] == 'identity'


def test_content_in_parts_is_joined():
    parts = (
        b'{"choices": [{"message": {"content": [{"type": "text", "text": "{}"}, {"text": "!"}]}}]}'
    )
    with serving(Reply(parts)) as server:
        assert ask(server).text == '{}!'


def test_a_refused_key_is_named_by_its_variable_and_never_shown(caplog):
    """OpenAI repeats the key in its answer."""
    with caplog.at_level(logging.DEBUG), serving(recorded('error_401.json', status=401)) as server:
        refused(server, 'refuses the key (HTTP 401)', 'environment variable MY_KEY')
    assert KEY not in caplog.text


def test_a_server_that_repeats_the_key_does_not_get_it_into_errors_logs_or_answers(caplog):
    echo = Reply(b'x' * 290 + KEY.encode() * 3, status=500)
    with caplog.at_level(logging.DEBUG), serving(echo) as server:
        refused(server, 'HTTP 500', retries=1)
    body = (b'{"model": "%s", "choices": [{"message": {"content": "key %s"}}]}'
            % (KEY.encode(), KEY.encode()))  # fmt: skip
    with caplog.at_level(logging.DEBUG), serving(Reply(body)) as server:
        answer = ask(server)
    assert (answer.text, answer.model) == ('key [key]', '[key]')
    assert KEY not in caplog.text


def test_a_missing_key_names_the_variable_and_what_else_there_is():
    with pytest.raises(VlmError, match='OPENAI_API_KEY .* is not set.*built-in templates'):
        Exchange(VlmConfig()).ask(QUESTION)
    with pytest.raises(VlmError, match='OTHER_KEY'):
        VlmConfig(base_url='http://127.0.0.1:1/v1', api_key_env='OTHER_KEY').api_key()


def test_retry_after_is_seconds_or_a_date():
    assert retry_after_s({'retry-after': '1.5'}) == 1.5
    date = {'retry-after': 'Wed, 21 Oct 2026 07:28:10 GMT'}
    assert retry_after_s(date, lambda: 1792567680.0) == 10.0
    assert retry_after_s(date, lambda: 2e9) == 0.0
    for text in ('', 'soon', 'nan', '99999999999999999999 GMT'):
        assert retry_after_s({'retry-after': text}) is None


def test_configuration_comes_from_options_over_the_file_over_the_environment(
    tmp_path, monkeypatch
):
    monkeypatch.setenv('OPENAI_BASE_URL', 'http://env:1/v1')
    monkeypatch.setenv('GRAPE_VLM_MODEL', 'env-model')
    assert load_vlm_config().base_url == 'http://env:1/v1'
    path = tmp_path / 'vlm.yaml'
    path.write_text('model: file-model\ninput_usd_per_million: 2.5\noutput_usd_per_million: 10\n')
    config = load_vlm_config(path, base_url='http://given:1/v1', model=None)
    assert (config.model, config.base_url) == ('file-model', 'http://given:1/v1')
    assert config.cost_usd(1_000_000, 100_000) == pytest.approx(3.5)
    assert config.cost_usd(None, 5) is None and VlmConfig().cost_usd(1, 1) is None


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('api_key: sk-secret-1', "holds 'api_key'. Take the key out"),
        ('modle: x', 'modle: Extra inputs are not permitted'),
        ('timeout_s: 0', 'timeout_s'),
        ('base_url: https://user:sk-secret-1@host/v1', 'holds a user, password or query'),
        ('base_url: host/v1', 'expected http(s)://host'),
        ('- a', 'holds list; expected a mapping'),
        ('key: sk-secret-1\na: [', 'line 2 is not YAML'),
    ],
)
def test_a_wrong_configuration_is_an_error_that_never_shows_a_secret(tmp_path, text, expected):
    path = tmp_path / 'vlm.yaml'
    path.write_text(text)
    with pytest.raises(VlmError) as caught:
        load_vlm_config(path)
    assert expected in str(caught.value) and 'vlm.yaml' in str(caught.value)
    assert 'sk-secret-1' not in str(caught.value)


@pytest.mark.parametrize('path', sorted(CONFIGURATIONS.glob('*.yaml')), ids=lambda p: p.stem)
def test_the_shipped_configurations_can_be_read(path):
    assert load_vlm_config(path).cost_usd(1000, 1000) is not None
