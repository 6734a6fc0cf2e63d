"""Who may import whom (DESIGN.md): arrows point downwards only, and core modules know no ROS."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIMULATORS = {'libero', 'robosuite', 'mujoco', 'sapien', 'mani_skill'}
FORBIDDEN = {
    'src/grape_episode': {
        'torch',
        'grape_policy_node',
        'grape_trainer',
        'grape_bringup',
        'sim_bridge',
    }
    | SIMULATORS,
    'src/grape_policy_node': {'grape_trainer', 'grape_bringup', 'sim_bridge'} | SIMULATORS,
    'src/grape_trainer': {'grape_bringup', 'sim_bridge'} | SIMULATORS,
    'sim_bridge': {'grape_policy_node', 'grape_trainer', 'grape_bringup'},
}
# The thin nodes and what they are made of; everything else is core.
MAY_IMPORT_ROS = {
    'src/grape_episode/player_node.py',
    'src/grape_episode/recorder_health.py',
    'src/grape_episode/recorder_node.py',
    'src/grape_episode/recorder_topics.py',
    'src/grape_episode/recording.py',
    'src/grape_episode/ros_diagnostics.py',
    'src/grape_episode/ros_qos.py',
    'src/grape_episode/ros_main.py',
    'src/grape_episode/ros_signals.py',
    'src/grape_episode/ros_timer.py',
    'src/grape_policy_node/acting.py',
    'src/grape_policy_node/messages.py',
    'src/grape_policy_node/policy_node.py',
    'src/grape_trainer/trainer_node.py',
    'sim_bridge/bridge_episode.py',
    'sim_bridge/bridge_node.py',
    'sim_bridge/bridge_topics.py',
    'sim_bridge/ros_messages.py',
}
ROS = {'rclpy', 'grape', 'sensor_msgs', 'std_msgs', 'geometry_msgs'}


def imports(path):
    """The top-level names that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split('.')[0])
    return found


def modules(folder):
    found = sorted((ROOT / folder).rglob('*.py'))
    assert found, f'{folder} holds no module'
    return found


@pytest.mark.parametrize('folder', FORBIDDEN)
def test_no_module_imports_a_package_above_it(folder):
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in modules(folder)
        if (bad := imports(path) & FORBIDDEN[folder])
    }
    assert not wrong


@pytest.mark.parametrize('folder', FORBIDDEN)
def test_core_modules_import_no_ros(folder):
    wrong = {
        name: sorted(bad)
        for path in modules(folder)
        if (name := str(path.relative_to(ROOT))) not in MAY_IMPORT_ROS
        and (bad := imports(path) & ROS)
    }
    assert not wrong
