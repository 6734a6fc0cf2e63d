"""robot.launch.py: what each choice starts, and the panels that a person looks at."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from test_launch_files import resolve  # noqa: F401 - a fixture

from grape_bringup.robot.guard_config import GuardConfig
from grape_bringup.robot.stack_watch import StackConfig
from grape_episode.contract import load_contract

ROOT = Path(__file__).parents[1]
WRAPPER = 'realsense2_camera'
ALWAYS = {'recorder_node', 'guard_node', 'policy_node', 'trial_node', 'manager_node'}
LAYOUT = ROOT / 'config' / 'robot' / 'foxglove_layout.json'
# Published and served beside the contract's topics (guard, trial and camera nodes).
BESIDE = {'/diagnostics', 'trial/ghost'}
SERVICES = {
    'guard/arm', 'guard/stop', 'guard/reset', 'guard/recover', 'guard/pause',
    'trial/ready', 'trial/success', 'trial/failure', 'trial/discard', 'trial/pause',
    'trial/resume', 'trial/abort', 'trial/next',
}  # fmt: skip


def executables(nodes):
    return {node['exec'] for node in nodes.values() if node.get('pkg') == 'grape'}


def declared():
    """Return executable -> the parameters that it declares."""
    pytest.importorskip('rclpy')
    from grape_bringup.robot.guard_node import NodeConfig
    from grape_bringup.robot.page_node import PageNodeConfig
    from grape_bringup.robot.trial_node import TrialNodeConfig
    from grape_episode.recorder_config import RecorderConfig
    from grape_policy_node.node_config import PolicyNodeConfig
    from grape_trainer.trainer_node import TrainerConfig

    def names(config):
        return {field.name for field in fields(config)}

    return {
        'camera_node': {'config'},
        'guard_node': names(NodeConfig) | set(GuardConfig.model_fields),
        'manager_node': names(StackConfig),
        'page_node': names(PageNodeConfig),
        'policy_node': names(PolicyNodeConfig) | {'autostart'},
        'recorder_node': names(RecorderConfig),
        'teleop_node': {'config', 'device'},
        'trainer_node': names(TrainerConfig),
        'trial_node': names(TrialNodeConfig),
    }


def test_robot_starts_its_nodes_with_parameters_that_they_declare(ros_env, resolve):  # noqa: F811
    nodes, said = resolve('robot.launch.py', policy='/p', teleop='spacemouse', train='true')
    assert nodes, said
    assert executables(nodes) == ALWAYS | {
        'camera_node',
        'teleop_node',
        'page_node',
        'trainer_node',
    }
    for name, known in declared().items():
        assert set(nodes[f'/{name}'].get('params', {})) <= known, name
    assert nodes['/policy_node']['params'].get('autostart', False) is False


@pytest.mark.parametrize(
    ('cameras', 'started', 'config'),
    [(WRAPPER, {'/camera/front', '/camera/wrist', '/camera_node'}, 'camera_realsense2'),
     ('direct', {'/camera_node'}, 'camera'), ('none', set(), None)],
)  # fmt: skip
def test_choice_of_cameras_decides_who_gives_pictures_and_who_is_waited_for(
    resolve, cameras, started, config  # noqa: F811
):  # fmt: skip
    nodes, said = resolve('robot.launch.py', policy='/p', cameras=cameras)
    assert nodes, said
    assert {name for name in nodes if 'camera' in name} == started
    if config:
        assert nodes['/camera_node']['params']['config'] == config
    parameters = nodes['/manager_node']['params']
    values = {n: tuple(v) for n, v in parameters.items()}
    stack = StackConfig(**values)
    assert {name.strip('/') for name in stack.nodes[: len(started)]} == {
        name.strip('/') for name in started
    }
    assert stack.nodes[-4:] == ('recorder_node', 'guard_node', 'policy_node', 'trial_node')


@pytest.mark.parametrize('arm', ['crisp', 'servo_twist', 'servo_pose', 'fzi', 'fci', 'fake'])
def test_every_arm_and_gripper_reaches_the_guard(resolve, arm):  # noqa: F811
    nodes, said = resolve('robot.launch.py', policy='/p', arm=arm, gripper='modbus')
    assert nodes, said
    found = nodes['/guard_node']['params']
    assert (found['arm'], found['gripper'], found['dry_run']) == (arm, 'modbus', False)


def test_unknown_arm_is_refused_with_the_choices(resolve):  # noqa: F811
    nodes, said = resolve('robot.launch.py', policy='/p', arm='ur5')
    assert nodes is None and "'ur5'" in said and 'servo_twist' in said


def test_namespace_moves_every_node_of_ours(resolve):  # noqa: F811
    nodes, said = resolve('robot.launch.py', policy='/p', cameras='direct', namespace='left')
    assert nodes, said
    assert all(name.startswith('/left/') for name in nodes)


def test_dry_run_and_folders_reach_their_nodes_unchanged(resolve):  # noqa: F811
    nodes, said = resolve(
        'robot.launch.py', policy='/p', dry_run='true', output_dir='2025', page='false'
    )
    assert nodes, said
    assert nodes['/guard_node']['params']['dry_run'] is True
    assert nodes['/recorder_node']['params']['output_dir'] == '2025'
    assert nodes['/trial_node']['params']['bags'] == '2025'
    assert '/page_node' not in nodes


def panels():
    return json.loads(LAYOUT.read_text())['configById']


def placed(tree):
    """Return the panels of a layout tree."""
    if isinstance(tree, str):
        return {tree}
    return placed(tree['first']) | placed(tree['second'])


def test_every_panel_of_the_layout_is_placed_and_configured():
    data = json.loads(LAYOUT.read_text())
    assert placed(data['layout']) == set(data['configById'])


def test_every_topic_of_the_layout_is_published_by_the_stack():
    contract = load_contract('franka_openvla')
    known = {f'/{topic.name}' for topic in contract.topics}
    known |= {name if name.startswith('/') else f'/{name}' for name in BESIDE}
    asked = set()
    for name, panel in panels().items():
        if name.startswith('Image!'):
            asked.add(panel['imageMode']['imageTopic'])
        elif name.startswith('Plot!'):
            asked |= {path['value'].partition('.')[0] for path in panel['paths']}
        elif name.startswith('RawMessages!'):
            asked.add(panel['topicPath'].partition('.')[0])
        elif name.startswith('DiagnosticSummary!'):
            asked.add(panel['topicToRender'])
    assert asked and asked <= known, asked - known


def test_every_button_of_the_layout_calls_a_service_of_guard_or_trial_node():
    calls = {p['serviceName'] for name, p in panels().items() if name.startswith('CallService!')}
    assert calls <= {f'/{service}' for service in SERVICES}
    assert {'/guard/stop', '/guard/arm', '/trial/success', '/trial/failure'} <= calls
    for name, panel in panels().items():
        if name.startswith('CallService!'):
            json.loads(panel['requestPayload'])
