"""Bytes, tokens and options of the remote policy: what is taken and what is refused, and why."""

import msgpack
import numpy as np
import pytest
from remote_peers import openpi_pack, openpi_unpack

from grape_policy_node.observed_state import StateError, StateTrack, axis_angle
from grape_policy_node.remote import bearer, protocol, wire
from grape_policy_node.remote.openpi import gripper_opening
from grape_policy_node.remote.options import OptionsError, RemoteOptions, is_url

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.array(3.5),
    np.zeros((0, 7), np.int64),
    np.array([True, False]),
    np.arange(3, dtype='>i4'),
    np.arange(12, dtype=np.float16)[::2],
]


@pytest.mark.parametrize('array', ARRAYS, ids=lambda a: f'{a.dtype}{a.shape}')
def test_arrays_come_back_as_they_were(array):
    back = wire.unpack(wire.pack({'a': array, 'n': {'x': [array]}}))
    for found in (back['a'], back['n']['x'][0]):
        assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder('<')
        np.testing.assert_array_equal(found, array)


def test_our_bytes_are_openpis_and_openpis_are_ours():
    message = {
        'observation/image': ARRAYS[0],
        'observation/state': np.linspace(0, 1, 8),
        'prompt': 'pick up the milk',
        'n': np.float32(1.25),
        'i': np.int64(7),
        'raw': b'\x00\x01',
        'none': None,
    }
    assert wire.pack(message) == openpi_pack(message)
    ours, theirs = wire.unpack(openpi_pack(message)), openpi_unpack(wire.pack(message))
    for found in (ours, theirs):
        np.testing.assert_array_equal(found['observation/image'], ARRAYS[0])
        assert found['n'] == np.float32(1.25) and found['n'].dtype == np.float32
        assert found['raw'] == b'\x00\x01' and found['prompt'] == 'pick up the milk'


@pytest.mark.parametrize(
    'value',
    [np.array([object()]), np.array([1j]), np.zeros(2, 'i4,f4'), np.array(['a']), object()],
)
def test_what_is_no_number_is_not_sent(value):
    with pytest.raises(wire.WireError):
        wire.pack({'a': value})


def array_map(**changes):
    content = {'__ndarray__': True, 'data': bytes(8), 'dtype': '<f4', 'shape': [2]} | changes
    return msgpack.packb({'a': {k.encode(): v for k, v in content.items() if v is not ...}})


@pytest.mark.parametrize(
    ('data', 'word'),
    [
        (array_map(dtype='|O'), 'dtype'),
        (array_map(dtype='O'), 'dtype'),
        (array_map(dtype='i4,O'), 'dtype'),
        (array_map(dtype=['<f4']), 'dtype'),
        (array_map(dtype=...), 'dtype'),
        (array_map(shape=[3]), '8 bytes'),
        (array_map(shape=[2**40, 2**40]), '8 bytes'),
        (array_map(shape=[-2]), 'shape'),
        (array_map(shape=[2.0]), 'shape'),
        (array_map(shape=[1] * 9), 'shape'),
        (array_map(shape='2'), 'shape'),
        (array_map(data='12345678'), 'data'),
        (msgpack.packb({b'__npgeneric__': True, b'data': 'x', b'dtype': '<f4'}), 'scalar'),
        (msgpack.packb({b'__npgeneric__': True, b'data': 300, b'dtype': '|u1'}), 'readable'),
        (msgpack.packb({'a': msgpack.ExtType(5, b'x')}), 'extension'),
        (msgpack.packb([1, 2]), 'list'),
        (msgpack.packb({'a': 1}) + b'\x00', 'readable'),
        (openpi_pack({'a': ARRAYS[0]})[:-3], 'readable'),
        (b'', 'readable'),
        (b'\xdf\xff\xff\xff\xff', 'readable'),
        (b'\x91' * 5000 + b'\x00', 'readable'),
        (b'\x81\x80\x01', 'readable'),
    ],
)
def test_hostile_bytes_are_an_error_with_a_reason(data, word):
    with pytest.raises(wire.WireError, match=word):
        wire.unpack(data)


def test_a_message_above_the_limit_is_not_even_looked_at():
    with pytest.raises(wire.WireError, match='at most 100'):
        wire.unpack(wire.pack({'a': bytes(200)}), limit=100)


def test_a_token_is_read_from_a_file_before_the_environment(tmp_path, monkeypatch):
    assert bearer.read_token() == ''
    monkeypatch.setenv(bearer.VARIABLE, 'from-the-environment')
    assert bearer.read_token() == 'from-the-environment'
    file = tmp_path / 'token'
    file.write_text('from-the-file-0123456789\n')
    assert bearer.read_token(file) == 'from-the-file-0123456789'


@pytest.mark.parametrize('text', ['short', 'two words that are long enough', ''])
def test_a_bad_token_is_refused_without_being_shown(tmp_path, text):
    file = tmp_path / 'token'
    file.write_text(text)
    with pytest.raises(bearer.TokenError) as caught:
        bearer.read_token(file)
    assert 'expected one line' in str(caught.value) and (not text or text not in str(caught.value))
    with pytest.raises(bearer.TokenError, match='secrets.token_urlsafe'):
        bearer.read_token(tmp_path / 'none')


def test_only_the_whole_token_under_a_known_scheme_opens():
    token = 'a-token-of-a-test-0123456789'
    assert bearer.is_shown(f'Bearer {token}', token) and bearer.is_shown(f'Api-Key {token}', token)
    for wrong in (None, '', token, f'Basic {token}', f'Bearer {token[:-1]}', f'Bearer {token}x'):
        assert not bearer.is_shown(wrong, token)


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'url': ''}, 'remote_url'),
        ({'url': 'http://a:1'}, 'ws://HOST:PORT'),
        ({'url': 'ws://a:99999'}, 'ws://HOST:PORT'),
        ({'url': 'ws://me:secret@a:1'}, 'remote_token_file'),
        ({'protocol': 'grpc'}, 'grape, openpi'),
        ({'gripper': 'robotiq'}, 'libero'),
        ({'timeout_s': 0.0}, 'seconds above 0'),
        ({'replan_steps': 0}, '1 or more'),
        ({'state_key': 'prompt'}, 'must differ'),
    ],
)
def test_wrong_options_say_what_was_expected(changes, word):
    with pytest.raises(OptionsError, match=word):
        RemoteOptions(**{'url': 'ws://127.0.0.1:8000'} | changes).check()


def test_options_are_parameters_and_settings_of_the_command_line():
    options = RemoteOptions('ws://a:1').with_settings(['protocol=openpi', 'replan_steps=3'])
    assert (options.protocol, options.replan_steps) == ('openpi', 3)
    assert RemoteOptions.from_parameters(options.parameters()) == options
    for wrong in ('replan_steps=many', 'colour=red', 'protocol', 'url=ws://b:1'):
        with pytest.raises(OptionsError, match='expected'):
            options.with_settings([wrong])
    assert is_url('wss://h:1') and is_url('ws:/h:1') and not is_url('models/grape_tiny')


def test_a_server_that_others_can_reach_needs_a_token():
    pytest.importorskip('torch')
    from grape_policy_node.remote.server import ServeError, ServerConfig

    for host in ('0.0.0.0', '192.168.1.5', 'robot.lab', '::'):
        with pytest.raises(ServeError, match='--token-file'):
            ServerConfig(host=host)
        assert ServerConfig(host=host, token='x' * 16).host == host
    for host in ('127.0.0.1', '::1', 'localhost'):
        ServerConfig(host=host)
    assert 'xxxx' not in repr(ServerConfig(token='x' * 16))


def test_grippers_become_openings():
    values = np.array([-1.0, 0.0, 1.0, 1.2])
    np.testing.assert_allclose(gripper_opening(values, 'libero'), [1.0, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(gripper_opening(values, 'widowx'), [0.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(gripper_opening(values, 'opening'), values)


@pytest.mark.parametrize(
    ('answer', 'word'),
    [
        ({}, 'no array'),
        ({'actions': np.zeros((5, 8))}, r'\(5, 8\)'),
        ({'actions': np.zeros(7)}, r'\(7,\)'),
        ({'actions': np.zeros((0, 7))}, r'\(0, 7\)'),
    ],
)
def test_an_answer_that_is_no_chunk_is_an_error(answer, word):
    with pytest.raises(protocol.ReplyError, match=word):
        protocol.read_chunk(answer)


def test_the_state_is_that_of_the_pictures_stamp():
    track = StateTrack()
    for stamp in (0, 50, 100):
        track.put_pose(stamp, [stamp, 1, 2], [0, 0, np.sin(0.25), np.cos(0.25)])
        track.put_joints(stamp, ['j1', 'finger_1', 'finger_2'], [9, stamp, -stamp])
    np.testing.assert_allclose(track.at(50), [50, 1, 2, 0, 0, 0.5, 50, -50])
    np.testing.assert_allclose(track.at(70)[0], 50)
    assert track.at(120, wait_s=0.0)[0] == 100  # nothing newer came: the newest there is
    with pytest.raises(StateError, match='ee_pose and joint_state'):
        track.at(10**9, wait_s=0.0)
    with pytest.raises(StateError, match='finger'):
        track.put_joints(0, ['j1'], [1.0])
    track.forget()
    with pytest.raises(StateError, match='ee_pose and joint_state'):
        track.at(0, wait_s=0.0)
    np.testing.assert_allclose(axis_angle([0, 0, 0, 1]), np.zeros(3))
