"""A real `grape serve` on a real socket: what it answers equals a policy in this process."""

import threading
import time

import msgpack
import numpy as np
import pytest
from policy_tiny import DRAWER, MILK, picture
from remote_peers import (
    LEARNED,
    TOKEN,
    ForeignServer,
    OpenpiClient,
    local_backend,
    openpi_pack,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from grape_policy_node.backend import Seen, Start
from grape_policy_node.remote.client import RemoteBackend
from grape_policy_node.remote.connection import (
    PolicyServerError,
    RefusedError,
    UnreachableError,
    open_connection,
)
from grape_policy_node.remote.options import RemoteOptions

STEPS = 5
OBJECTS = msgpack.packb({b'__ndarray__': True, b'data': b'', b'dtype': '|O', b'shape': [0]})


def always():
    return True


@pytest.fixture
def remote(policy_server):
    """Make clients that are closed afterwards."""
    made = []

    def make(**options):
        made.append(RemoteBackend(policy_server.options(**options)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture(scope='module')
def local(policy_server):
    return local_backend(policy_server.folder)


def play(backend, temperature, seed, instruction=MILK, steps=STEPS, first=0):
    """Act on a few pictures."""
    player = backend.begin(Start('e', instruction, temperature, seed), always)
    return [player.act(Seen(i, picture(first + i)), always) for i in range(steps)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.log_probs, other.log_probs)
        np.testing.assert_array_equal(one.action, other.action)
        assert one.adapter_id == other.adapter_id and one.log_probs.dtype == np.float32


@pytest.mark.parametrize('temperature', [1.0, 0.0, 0.3])
def test_a_remote_policy_equals_a_local_one_bit_for_bit(remote, local, temperature):
    """Tokens, log-probabilities and actions, seed by seed."""
    backend = remote()
    for seed in (7, 2**64 - 1):
        assert_same(play(backend, temperature, seed), play(local, temperature, seed))


def test_it_describes_itself_as_a_local_policy_does(remote, local):
    told, expected = remote().describe(), local.describe()
    assert told.pop('remote_url').startswith('ws://127.0.0.1:')
    assert told == expected | {'policy': 'policy'} and told['has_log_probs'] is True


def test_a_question_that_is_asked_twice_has_one_answer(remote):
    """Why a connection may break at any moment: the generator's state is in the question."""
    backend = remote()
    player = backend.begin(Start('e', MILK, 1.0, 3), always)
    player.act(Seen(0, picture(0)), always)
    state = player.rng_state
    first = player.act(Seen(1, picture(1)), always)
    player.rng_state = state
    assert_same([player.act(Seen(1, picture(1)), always)], [first])


def test_clients_that_wait_together_go_as_one_batch_and_change_nothing(policy_server, local):
    """Each gets its own tokens; at the same time, in fewer passes than questions."""
    expected = {n: play(local, 1.0, n, (MILK, DRAWER)[n % 2], first=n) for n in range(6)}
    batches, found, barrier = [], {}, threading.Barrier(len(expected))

    def client(number):
        connection = open_connection(policy_server.url, TOKEN, 10.0)
        state = None
        found[number] = []
        barrier.wait()
        for step in range(STEPS):
            question = {
                'grape': 'infer',
                'observation/image': picture(number + step),
                'prompt': (MILK, DRAWER)[number % 2],
                'temperature': 1.0,
                'seed': number,
                'rng_state': state,
            }
            answer = connection.request(question, time.monotonic() + 30)
            state = answer['rng_state']
            found[number].append(answer)
            batches.append(answer['server_timing']['batch'])
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert max(batches) > 1
    for number, decisions in expected.items():
        for answer, decision in zip(found[number], decisions, strict=True):
            np.testing.assert_array_equal(answer['token_ids'], decision.token_ids)
            np.testing.assert_allclose(answer['log_probs'], decision.log_probs, 0, 1e-5)


def test_an_adapter_is_one_clients_own(remote, policy_server):
    """Loaded by one, not acting for the other; an empty path is the base."""
    one, other = remote(), remote()
    assert one.load_adapter(str(policy_server.adapter)) == policy_server.adapter_id
    expected = play(local_backend(policy_server.folder, policy_server.adapter), 1.0, 7)
    base = play(other, 1.0, 7)
    assert_same(play(one, 1.0, 7), expected)
    assert {d.adapter_id for d in base} == {'base'} and other.adapter_id == 'base'
    assert not np.array_equal(base[0].log_probs, expected[0].log_probs)
    with pytest.raises(PolicyServerError, match='adapter_config.json'):
        one.load_adapter('/nowhere')
    assert one.adapter_id == policy_server.adapter_id
    assert one.load_adapter('') == 'base'
    assert_same(play(one, 1.0, 7), base)


def test_the_servers_error_is_raised_with_its_text_and_the_next_question_is_answered(remote):
    backend = remote()
    with pytest.raises(PolicyServerError, match='expected the instruction'):
        backend.begin(Start('e', ' ', 0.0, 0), always)
    player = backend.begin(Start('e', MILK, 0.0, 0), always)
    with pytest.raises(PolicyServerError, match=r'float32 .*expected uint8 \(H, W, 3\)'):
        player.act(Seen(0, picture(0).astype(np.float32)), always)
    player.rng_state = b'nonsense'
    player.start = Start('e', MILK, 1.0, 0)
    with pytest.raises(PolicyServerError, match='rng_state'):
        player.act(Seen(0, picture(0)), always)
    player.rng_state = None
    assert len(player.act(Seen(0, picture(0)), always).token_ids) == 7


@pytest.mark.parametrize(
    ('data', 'word'),
    [
        (b'\xc1nonsense', 'msgpack'),
        (OBJECTS, 'dtype'),
        (openpi_pack([1]), 'list'),
        ('text', 'binary'),
        (openpi_pack({'grape': 'reboot'}), 'infer, prepare, load_adapter'),
        (openpi_pack({'prompt': MILK, 'picture': picture(0)}), 'observation/image'),
        (openpi_pack({'image': picture(0)[..., :2], 'prompt': MILK}), 'uint8'),
        (openpi_pack({'image': np.zeros((5000, 2, 3), np.uint8), 'prompt': MILK}), '4096'),
        (openpi_pack({'image': picture(0)}), 'prompt'),
        (openpi_pack({'image': picture(0), 'prompt': MILK, 'temperature': -1.0}), 'temperature'),
        (openpi_pack({'grape': 'load_adapter', 'path': 5}), 'path'),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_the_connection_stands(policy_server, data, word):
    client = OpenpiClient(policy_server.url)
    answer = client.exchange(data)
    assert isinstance(answer, str) and word in answer
    assert client.infer({'image': picture(0), 'prompt': MILK})['actions'].shape == (1, 7)
    client.close()


def test_a_message_that_is_too_large_ends_the_connection_and_our_client_does_not_send_it(
    policy_server, remote
):
    client = OpenpiClient(policy_server.url)
    with pytest.raises(ConnectionClosed) as caught:
        client.exchange(openpi_pack({'image': picture(0, 700), 'prompt': MILK}))
    assert caught.value.rcvd.code == 1009
    player = remote().begin(Start('e', MILK, 0.0, 0), always)
    with pytest.raises(PolicyServerError, match='--max-message-mb'):
        player.act(Seen(0, picture(0, 700)), always)
    assert policy_server.health() == (200, 'ok\n')


@pytest.mark.parametrize('token', ['', 'another-token-0123456789'])
def test_without_the_token_nobody_comes_in(policy_server, token):
    with pytest.raises(RefusedError, match='token'):
        open_connection(policy_server.url, token, 10.0)
    with pytest.raises(InvalidStatus, match='401'):
        OpenpiClient(policy_server.url, token)
    assert policy_server.health() == (200, 'ok\n')  # which says nothing but that it is there


def test_a_page_in_a_browser_is_refused_even_with_the_token(policy_server):
    headers = {'Authorization': f'Bearer {TOKEN}', 'Origin': 'http://evil.example'}
    with pytest.raises(InvalidStatus, match='403'):
        connect(policy_server.url, additional_headers=headers).__enter__()


def test_the_token_is_in_no_log_and_on_no_command_line(policy_server):
    assert TOKEN not in policy_server.output()
    with open(f'/proc/{policy_server.process.pid}/cmdline') as arguments:
        assert TOKEN not in arguments.read()


def test_an_openpi_client_is_answered_with_the_greedy_action(policy_server, local):
    """Its observation may hold more than we look at; its metadata more than it knows."""
    client = OpenpiClient(policy_server.url)
    assert client.metadata['protocol'] == 'grape' and client.metadata['has_log_probs'] is True
    for step, decision in enumerate(play(local, 0.0, 0, steps=3)):
        observation = {
            'observation/image': picture(step),
            'observation/wrist_image': picture(9),
            'observation/state': np.zeros(8),
            'prompt': MILK,
        }
        answer = client.infer(observation)
        np.testing.assert_array_equal(answer['actions'], decision.action[None])
        assert answer['server_timing']['infer_ms'] > 0.0
    client.close()


def test_nobody_there_another_server_and_a_wrong_key_are_named(policy_server):
    with pytest.raises(UnreachableError, match='nothing listens .*grape serve'):
        RemoteBackend(RemoteOptions('ws://127.0.0.1:9', timeout_s=2.0))
    with pytest.raises(RefusedError, match="'libero_test', not by unnorm_key 'bridge_orig'"):
        RemoteBackend(policy_server.options(), unnorm_key='bridge_orig')
    with pytest.raises(RefusedError, match='adapter_config.json'):
        RemoteBackend(policy_server.options(), adapter='/nowhere')


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'policy': {'policy_sha256': 'b', 'dtype': 'float32'}}, 'policy_sha256 was a, is b'),
        ({'adapter_id': 'sft-1'}, 'base before, sft-1 now'),
        ({'version': 2}, 'does not speak'),
    ],
)
def test_another_policy_that_answers_after_a_reconnection_is_an_error(changes, word):
    """A continued episode would be of two policies, and its log-probabilities of neither."""
    greeting = {
        'protocol': 'grape', 'version': 1, 'unnorm_key': 'k', 'adapter_id': 'base',
        'policy': {'policy_sha256': 'a', 'dtype': 'float32'},
    }  # fmt: skip
    server = ForeignServer(np.zeros((1, 7)), greeting)
    backend = RemoteBackend(RemoteOptions(server.url, timeout_s=5.0))
    backend.begin(Start('e1', MILK, 0.0, 0), always)
    server.close()
    server = ForeignServer(np.zeros((1, 7)), greeting | changes, server.port)
    with pytest.raises(RefusedError, match=word):
        backend.begin(Start('e2', MILK, 0.0, 0), always)
    assert not backend.health().is_well
    backend.close()
    server.close()


def test_collect_and_evaluate_know_what_a_server_says_of_itself(policy_server, tmp_path):
    from grape_bringup.remote_policy import RemotePolicyError, ask_server
    from grape_bringup.rollouts import check_policy, learned_from, played_by

    settings = [f'token_file={policy_server.token_file}']
    found = ask_server(policy_server.url, settings)
    folder = played_by('libero', 'fast', policy_server.folder)
    served = played_by('libero', 'fast', found)
    assert {**folder, **served} == served and served['backend'] == 'remote'
    assert learned_from(found, None) == {tuple(cell) for cell in LEARNED}
    assert found.name == 'policy' and found.silent_about == ()
    assert found.contract_in(tmp_path) == 'libero'
    adapted = ask_server(policy_server.url, settings, policy_server.adapter)
    assert adapted.played_by()['adapter_id'] == policy_server.adapter_id
    assert adapted.silent_about == ('adapter',)
    with pytest.raises(RemotePolicyError, match="server's machine"):
        ask_server(policy_server.url, settings, tmp_path.relative_to('/'))
    with pytest.raises(ValueError, match='needs the weights themselves'):
        check_policy(tmp_path.joinpath('ws://127.0.0.1:1').relative_to(tmp_path))


def test_a_port_that_is_taken_is_named_before_a_policy_is_loaded(policy_server):
    from grape_policy_node.remote.server import ServeError, ServerConfig, bind

    with pytest.raises(ServeError, match='choose another --port'):
        bind(ServerConfig(port=policy_server.port))
