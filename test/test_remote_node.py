"""The policy node with a policy elsewhere: no torch, lost connections, servers of others."""

import json
import math
import threading

import numpy as np
import pytest
from policy_graph import SIZE, Graph, wait_until
from policy_tiny import MILK, picture
from remote_peers import ForeignServer, local_backend

from grape_policy_node.backend import Seen, Start

CHUNK = np.linspace(-0.9, 0.9, 35).reshape(5, 7)
HEAVY = ('torch', 'transformers', 'peft', 'tokenizers', 'safetensors', 'libero')


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture
def graph(ros):
    graphs = []

    def make(**parameters):
        graphs.append(Graph(ros, parameters))
        return graphs[-1]

    yield make
    for item in graphs:
        item.close()


@pytest.fixture
def watch(ros):
    """The values of /diagnostics that a graph's node publishes, the newest."""
    from diagnostic_msgs.msg import DiagnosticArray

    def make(g):
        heard = []
        g.bridge.create_subscription(DiagnosticArray, '/diagnostics', heard.append, 10)

        def newest():
            if not heard:
                return {}
            status = heard[-1].status[0]
            values = {pair.key: pair.value for pair in status.values}
            return values | {'level': status.level, 'message': status.message}

        return newest

    return make


def expected_steps(server, contract, adapters):
    """What the same policy does in this process: picture n with the n-th adapter folder."""
    backend = local_backend(server.folder)
    player = backend.begin(Start('e', MILK, 1.0, 11), lambda: True)
    for number, adapter in enumerate(adapters):
        backend.load_adapter(str(adapter))
        image = contract.apply_image(contract.policy_camera, picture(number, SIZE))
        yield player.act(Seen(number, image), lambda: True)


def assert_equal(steps, decisions):
    for step, decision in zip(steps, decisions, strict=True):
        assert step.adapter_id == decision.adapter_id
        assert list(step.action_token_ids) == decision.token_ids.tolist()
        np.testing.assert_array_equal(np.float32(step.token_log_probs), decision.log_probs)


def test_a_server_killed_mid_episode_is_waited_for_and_the_episode_goes_on_as_if_nothing_was(
    ros, ros_process, policy_server, watch, tmp_path
):
    """In a Python that has no torch; bit for bit what a local policy does at temperature 1."""
    for name in HEAVY:
        (tmp_path / f'{name}.py').write_text(f'raise ImportError("{name} was imported")\n')
    parameters = {'backend': 'remote', 'autostart': True, **policy_server.options().parameters()}
    policy_server.wait_healthy()
    node = ros_process(
        'grape_policy_node.policy_node', parameters, environment={'PYTHONPATH': str(tmp_path)}
    )
    node.wait_for('policy_node is active', 60)
    g = Graph(ros, None).connected()
    newest = watch(g)
    try:
        ready = g.start('e1', seed=11, temperature=1.0)
        assert ready.kind == ready.READY and json.loads(ready.config_json)['has_log_probs']
        g.act(0, 0)
        loaded = g.load_adapter(policy_server.adapter)
        assert loaded.success and loaded.adapter_id == policy_server.adapter_id
        g.act(1, 1)
        policy_server.kill()
        g.image(2, 2)
        wait_until(lambda: newest().get('connected') == 'False')
        assert newest()['level'] == b'\x01' and 'nothing listens' in newest()['message']
        assert len(g.steps) == 2 and g.answers('e1')[-1].kind == ready.READY
        refused = g.load_adapter('')
        assert not refused.success and 'away' in refused.message
        policy_server.start()
        wait_until(lambda: len(g.steps) == 3, 60)  # the same picture, with the adapter
        assert g.load_adapter('').adapter_id == 'base'
        g.act(3, 3)
        adapters = ('', policy_server.adapter, policy_server.adapter, '')
        assert_equal(g.steps, expected_steps(policy_server, g.contract, adapters))
        assert all(s.verdict != s.VERDICT_HELD for s in g.steps)
        assert [s.step for s in g.steps] == [0, 1, 2, 3]
        wait_until(lambda: newest().get('connected') == 'True')
        assert newest()['reconnects'] == '1' and newest()['message'] == 'ok'
        assert node.stop() == 0
    finally:
        g.close()


def test_in_real_time_the_arm_is_held_until_the_server_is_back(graph):
    server = ForeignServer(CHUNK)
    g = graph(
        backend='remote', remote_url=server.url, remote_protocol='openpi', remote_replan_steps=1,
        max_image_age_s=2.0,
    ).bring_up()  # fmt: skip
    g.start('e1')
    first = g.act(0, 0)
    assert first.verdict != first.VERDICT_HELD
    server.close()
    held = [g.act(n, n) for n in (1, 2)][1]
    assert held.verdict == held.VERDICT_HELD and 'no connection' in held.verdict_reason
    assert held.delta_translation.x == held.delta_rotation.z == 0.0
    assert held.gripper_opening == first.gripper_opening
    assert len(held.action_token_ids) == len(held.token_log_probs) == 0
    assert held.latency_ms < 500.0
    server = ForeignServer(CHUNK, port=server.port)
    wait_until(lambda: g.act(3, 3).verdict != held.VERDICT_HELD)
    assert [s.step for s in g.steps] == list(range(len(g.steps)))
    server.close()


def test_a_stop_ends_the_wait_for_a_server_that_does_not_come_back(graph):
    server = ForeignServer(CHUNK)
    g = graph(backend='remote', remote_url=server.url, remote_protocol='openpi')
    g.bring_up().start('e1')
    for step in range(5):
        g.act(step, step)
    server.close()
    g.image(5, 5)
    g.send(g._event_type.STOP, 'e1')
    server = ForeignServer(CHUNK, port=server.port)
    assert g.start('e2').kind == g._event_type.READY
    assert g.act(0, 0).episode_id == 'e2' and [s.episode_id for s in g.steps].count('e1') == 5
    server.close()


def test_closing_the_node_does_not_wait_for_a_server_that_is_away(graph):
    server = ForeignServer(CHUNK)
    g = graph(backend='remote', remote_url=server.url, remote_protocol='openpi').bring_up()
    g.start('e1')
    server.close()
    g.image(0, 0)
    closed = threading.Event()
    threading.Thread(target=lambda: (g.node.trigger_deactivate(), closed.set())).start()
    assert closed.wait(5.0)
    ended = wait_until(lambda: [e for e in g.answers('e1') if e.kind == e.ERROR])
    assert 'deactivated' in ended[0].detail


def test_a_foreign_servers_chunks_are_played_and_leave_no_tokens(graph):
    server = ForeignServer(CHUNK)
    g = graph(
        backend='remote', remote_url=server.url, remote_protocol='openpi', remote_replan_steps=3,
        remote_image_key='observation/exterior_image_1_left', remote_gripper='libero',
    ).bring_up()  # fmt: skip
    ready = g.start('e1', temperature=1.0)
    told = json.loads(ready.config_json)
    assert told['has_log_probs'] is False and told['policy'] == server.url
    steps = [g.act(n, n) for n in range(4)]
    assert len(server.seen) == 2 and set(server.seen[0]) == {
        'observation/exterior_image_1_left', 'prompt',
    }  # fmt: skip
    for number, image in enumerate((0, 3)):
        expected = g.contract.apply_image(g.contract.policy_camera, picture(image, SIZE))
        seen = server.seen[number]
        np.testing.assert_array_equal(seen['observation/exterior_image_1_left'], expected)
        assert seen['prompt'] == MILK
    scale = g.contract.action.translation_scale_m
    for step, row in zip(steps, CHUNK[[0, 1, 2, 0]], strict=True):
        assert step.delta_translation.x == pytest.approx(row[0] * scale)
        assert step.gripper_opening == pytest.approx((1 - row[6]) / 2)
        assert len(step.action_token_ids) == len(step.token_log_probs) == 0
        assert math.isnan(step.temperature) and step.adapter_id == ''
    refused = g.load_adapter('/some/adapter')
    assert not refused.success and 'knows no adapters' in refused.message
    server.close()


def test_a_foreign_policy_that_asks_for_the_robots_state_gets_the_one_of_its_picture(graph):
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import JointState

    server = ForeignServer(CHUNK)
    g = graph(
        backend='remote', remote_url=server.url, remote_protocol='openpi', remote_replan_steps=1,
        remote_state_key='observation/state',
    ).bring_up()  # fmt: skip
    poses = g.bridge.create_publisher(PoseStamped, 'ee_pose', 10)
    joints = g.bridge.create_publisher(JointState, 'joint_states', 10)
    wait_until(lambda: poses.get_subscription_count() and joints.get_subscription_count())
    g.start('e1')
    for step in range(2):
        pose, joint = PoseStamped(), JointState(name=['j', 'finger_1', 'finger_2'])
        pose.pose.position.x, pose.pose.orientation.w = 0.5 + step, 1.0
        joint.position = [1.0, 0.04, -0.04]
        pose.header.stamp.nanosec = joint.header.stamp.nanosec = step * 50_000_000
        poses.publish(pose)
        joints.publish(joint)
        g.act(step, step)
    for step, seen in enumerate(server.seen):
        expected = [0.5 + step, 0, 0, 0, 0, 0, 0.04, -0.04]
        np.testing.assert_allclose(seen['observation/state'], expected)
    g.image(7, 7)  # without a state
    ended = wait_until(lambda: [e for e in g.answers('e1') if e.kind == e.ERROR])
    assert 'remote_state_key' in ended[0].detail and len(g.steps) == 2
    server.close()


@pytest.mark.parametrize(
    ('parameters', 'word'),
    [
        ({'remote_url': ''}, "'remote_url' is empty"),
        ({'remote_url': 'ws://127.0.0.1:9'}, 'nothing listens at ws://127.0.0.1:9'),
        ({'policy': '/some/folder'}, 'the policy is on the server'),
        ({'dump_tensors': '/tmp'}, 'leave it empty'),
        ({'remote_token_file': '/nowhere'}, 'token file'),
        ({'backend': 'cloud'}, 'local, remote'),
    ],
)
def test_a_wrong_setup_fails_to_configure_and_says_why(graph, parameters, word):
    from types import SimpleNamespace

    from rclpy.lifecycle import TransitionCallbackReturn

    g = graph(**{'backend': 'remote', 'remote_url': 'ws://127.0.0.1:9'} | parameters)
    said = []
    g.node.get_logger = lambda: SimpleNamespace(error=said.append)
    assert g.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert word in said[0]


def test_another_protocol_than_the_servers_is_named(graph):
    from types import SimpleNamespace

    server = ForeignServer(CHUNK)
    g = graph(backend='remote', remote_url=server.url)
    said = []
    g.node.get_logger = lambda: SimpleNamespace(error=said.append)
    g.node.trigger_configure()
    assert 'remote_protocol' in said[0] and 'openpi' in said[0]
    server.close()
