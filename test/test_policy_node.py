"""The policy node in a real ROS graph: the handshake, the lifecycle, hot swaps and errors."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from policy_graph import SIZE, Graph, wait_until
from policy_tiny import MILK, picture, tiny_checkpoint

from grape_policy_node.engine import Engine, Observation
from grape_policy_node.openvla.checkpoint import save_checkpoint


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A base policy and an adapter that changes what it does."""
    root = tmp_path_factory.mktemp('policy')
    base = save_checkpoint(tiny_checkpoint(), root / 'base')
    engine = Engine.load(base)
    engine.adapters.new('other', seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in engine.adapters.parameters('other'):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapter_id = engine.adapters.save('other', root / 'other')
    return SimpleNamespace(base=base, adapter=root / 'other', adapter_id=adapter_id)


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture
def graph(ros, folders):
    graphs = []

    def make(**parameters):
        graphs.append(Graph(ros, {'policy': str(folders.base), **parameters}))
        return graphs[-1]

    yield make
    for item in graphs:
        item.close()


def test_start_is_answered_with_ready_and_the_policys_configuration(graph, folders):
    g = graph(adapter=str(folders.adapter)).bring_up()
    ready = g.start('e1', seed=3)
    assert ready.kind == ready.READY and ready.source == 'policy'
    assert ready.adapter_id == folders.adapter_id
    config = json.loads(ready.config_json)
    assert config['unnorm_key'] == 'libero_test' and len(config['policy_sha256']) == 64
    assert config['adapter_id'] == folders.adapter_id and config['contract'] == 'libero'


def test_a_step_is_what_the_engine_says_of_the_transformed_image(graph, folders):
    """The same pixels, prompt, tokens and units as offline: the contract's transform, once."""
    g = graph().bring_up()
    g.start('e1')
    step = g.act(seed=5, step=2)
    engine = Engine.load(folders.base)
    seen = g.contract.apply_image(g.contract.policy_camera, picture(5, SIZE))
    expected = engine.predict([Observation(seen, MILK)])[0]
    assert list(step.action_token_ids) == expected.token_ids.tolist()
    np.testing.assert_allclose(step.token_log_probs, expected.log_probs, atol=1e-4)
    scale = g.contract.action.translation_scale_m
    assert step.delta_translation.x == pytest.approx(expected.action[0] * scale)
    assert step.gripper_opening == pytest.approx(np.clip(expected.action[6], 0, 1), abs=1e-6)
    assert step.header.stamp.nanosec == 100_000_000 and step.episode_id == 'e1'
    assert step.step == 0 and step.source == 'policy' and step.adapter_id == 'base'
    assert step.latency_ms > 0.0


def test_the_same_seed_plays_the_same_episode_and_another_one_another(graph):
    g = graph().bring_up()

    def play(name, seed):
        g.start(name, seed=seed, temperature=1.0)
        tokens = [list(g.act(image, image).action_token_ids) for image in range(4)]
        g.send(g._event_type.STOP, name)
        return tokens

    first, again, other = play('a', 7), play('b', 7), play('c', 8)
    assert first == again and first != other
    assert [s.step for s in g.steps] == [0, 1, 2, 3] * 3


def test_no_command_leaves_an_inactive_node_and_start_is_answered_with_error(graph):
    g = graph().bring_up(active=False)
    answer = g.start('e1')
    assert answer.kind == answer.ERROR and 'inactive' in answer.detail
    g.image(0, 0)
    time.sleep(0.3)
    assert g.steps == []


def test_deactivation_ends_the_running_episode_and_silences_the_node(graph):
    g = graph().bring_up()
    g.start('e1')
    g.act(0, 0)
    g.node.trigger_deactivate()
    ended = wait_until(lambda: [e for e in g.answers('e1') if e.kind == e.ERROR])
    assert 'deactivated' in ended[0].detail
    g.image(1, 1)
    time.sleep(0.3)
    assert len(g.steps) == 1
    g.node.trigger_activate()
    assert g.start('e2').kind == g._event_type.READY
    assert g.act(2, 0).episode_id == 'e2'


def test_there_is_no_command_before_start_after_stop_or_in_an_experts_episode(graph):
    g = graph().bring_up()
    g.image(0, 0)
    g.start('e1')
    g.act(0, 0)
    g.send(g._event_type.STOP, 'e1')
    g.send(g._event_type.START, 'e2', controller='expert', instruction=MILK)
    time.sleep(0.3)
    g.image(1, 0)
    time.sleep(0.3)
    assert len(g.steps) == 1 and g.answers('e2') == []


def test_an_adapter_is_switched_within_a_running_episode(graph, folders):
    g = graph().bring_up()
    g.start('e1')
    before = g.act(0, 0)
    loaded = g.load_adapter(folders.adapter)
    assert loaded.success and loaded.adapter_id == folders.adapter_id
    during = g.act(0, 1)
    assert g.load_adapter('').adapter_id == 'base'
    after = g.act(0, 2)
    assert [s.adapter_id for s in g.steps] == ['base', folders.adapter_id, 'base']
    assert list(before.token_log_probs) == list(after.token_log_probs)
    assert not np.allclose(before.token_log_probs, during.token_log_probs)


def test_a_wrong_adapter_is_refused_and_the_old_one_goes_on(graph, tmp_path):
    g = graph().bring_up()
    answer = g.load_adapter(tmp_path)
    assert not answer.success and 'adapter_config.json' in answer.message
    assert answer.adapter_id == 'base' and g.start('e1').kind == g._event_type.READY


@pytest.mark.parametrize(
    ('wrong', 'word'), [({'encoding': 'bgr8'}, "contract says 'rgb8'"), ({'size': 100}, '100')]
)
def test_a_wrong_image_ends_the_episode_and_not_the_node(graph, wrong, word):
    g = graph().bring_up()
    g.start('e1')
    g.image(0, 0, **wrong)
    ended = wait_until(lambda: [e for e in g.answers('e1') if e.kind == e.ERROR])
    assert word in ended[0].detail and g.steps == []
    assert g.start('e2').kind == g._event_type.READY
    assert g.act(0, 0).episode_id == 'e2'


def test_without_an_instruction_in_start_the_latched_one_counts(graph):
    g = graph().bring_up()
    assert g.start('e1', instruction='').kind == g._event_type.ERROR
    g.say(MILK)
    time.sleep(0.3)
    assert g.start('e2', instruction='').kind == g._event_type.READY


def test_a_stale_image_is_answered_with_the_hold_action(graph):
    g = graph(max_image_age_s=1e-6).bring_up()
    g.start('e1')
    step = g.act(0, 0)
    assert step.verdict == step.VERDICT_HELD and 'old' in step.verdict_reason
    assert step.delta_translation.x == step.delta_rotation.z == 0.0
    assert step.gripper_opening == 1.0 and len(step.action_token_ids) == 7


def test_dumped_tensors_are_what_the_model_saw(graph, folders, tmp_path):
    g = graph(dump_tensors=str(tmp_path)).bring_up()
    g.start('e1')
    for step in range(2):
        g.act(step, step)
    files = sorted((tmp_path / 'e1').glob('*.npy'))
    assert [file.name for file in files] == ['000000.npy', '000001.npy']
    seen = g.contract.apply_image(g.contract.policy_camera, picture(1, SIZE))
    expected = Engine.load(folders.base).processor.pixel_values([seen])[0].numpy()
    np.testing.assert_array_equal(np.load(files[1]), expected)


def test_diagnostics_count_steps_and_tell_latencies(graph):
    from diagnostic_msgs.msg import DiagnosticArray

    g = graph().bring_up()
    received = []
    g.bridge.create_subscription(DiagnosticArray, '/diagnostics', received.append, 10)
    g.start('e1')
    for step in range(3):
        g.act(step, step)

    def counted():
        for array in received:
            values = {pair.key: pair.value for pair in array.status[0].values}
            if values['steps'] == '3':
                return values
        return None

    values = wait_until(counted)
    assert 0.0 < float(values['latency_p50_ms']) <= float(values['latency_p99_ms'])
    assert values['adapter_id'] == 'base' and values['errors'] == '0'


@pytest.mark.parametrize(
    ('parameters', 'word'),
    [({'policy': ''}, 'parameter'), ({'policy': '/nowhere'}, 'does not exist'),
     ({'unnorm_key': 'bridge_orig'}, 'libero_test')],
)  # fmt: skip
def test_a_wrong_setup_fails_to_configure_and_says_why(graph, parameters, word):
    from rclpy.lifecycle import TransitionCallbackReturn

    g = graph(**parameters)
    said = []
    g.node.get_logger = lambda: SimpleNamespace(error=said.append)
    assert g.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert word in said[0]


def test_autostart_without_checkpoint_ends_with_the_reason(ros_process):
    process = ros_process(
        'grape_policy_node.policy_node', {'policy': '/nowhere', 'autostart': True}
    )
    assert process.popen.wait(60) == 1
    assert '/nowhere/config.json does not exist' in process.output()


def test_a_started_node_is_active_and_ends_on_interrupt(ros_process, folders):
    process = ros_process(
        'grape_policy_node.policy_node', {'policy': folders.base, 'autostart': True}
    )
    process.wait_for('policy_node is active', 60)
    assert process.stop() == 0
