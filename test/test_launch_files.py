"""The launch files resolve to nodes that exist, with parameters that those nodes declare.

ROS 2's own `launch` is on no package registry, so play-launch, a reimplementation that pip can
install, reads the files (`make test` installs it into build/tools). It is built for Python 3.10
and for composition_interfaces: where a 3.10 library is missing the tests are skipped and say so;
of composition_interfaces, which only composable nodes use, it gets an empty stand-in.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHECKER = ROOT / 'build' / 'tools' / 'play_launch'
TIMEOUT_S = 60
STAND_INS = {
    'rosidl_generator_c': (
        'int composition_interfaces__srv__{}__init(void *message) {{ return 0; }}',
        ('ListNodes_Request', 'ListNodes_Response', 'LoadNode_Response', 'UnloadNode_Response'),
    ),
    'rosidl_typesupport_c': (
        'void *rosidl_typesupport_c__get_service_type_support_handle__'
        'composition_interfaces__srv__{}(void) {{ return 0; }}',
        ('ListNodes', 'LoadNode', 'UnloadNode'),
    ),
}


def python310_libraries():
    """Folders where a pyenv keeps libpython3.10; the system's own is found without."""
    root = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    return [str(path.parent) for path in root.glob('versions/3.10.*/lib/libpython3.10.so.1.0')]


def make_prefix(prefix):
    """Make an install prefix with the share and the programs that a launch file asks for."""
    index = prefix / 'share/ament_index/resource_index/packages'
    index.mkdir(parents=True)
    for folder in ('launch', 'config'):
        shutil.copytree(ROOT / folder, prefix / 'share/grape' / folder)
    own = re.findall(r'grape_executable\((\w+) ', (ROOT / 'CMakeLists.txt').read_text())
    for package, names in {'grape': own, 'realsense2_camera': ['realsense2_camera_node']}.items():
        (index / package).touch()
        programs = prefix / 'lib' / package
        programs.mkdir(parents=True)
        for name in names:
            (programs / name).write_text('#!/bin/sh\n')
            (programs / name).chmod(0o755)


def make_stand_ins(folder):
    """Libraries with the symbols that play-launch wants when it is loaded."""
    folder.mkdir()
    for name, (function, symbols) in STAND_INS.items():
        library = f'{folder}/libcomposition_interfaces__{name}.so'
        source = '\n'.join(map(function.format, symbols))
        command = ['gcc', '-shared', '-fPIC', '-xc', '-', '-o', library]
        subprocess.run(command, input=source, text=True, check=True)


@pytest.fixture(scope='module')
def resolve(tmp_path_factory):
    """A function of (file, **arguments): the nodes it starts by name, and what it said."""
    if not CHECKER.is_dir():
        pytest.skip('play-launch is not installed in build/tools: make test does it')
    if shutil.which('gcc') is None:
        pytest.skip('gcc is not installed: apt-get install -y gcc')
    work = tmp_path_factory.mktemp('launch')
    make_prefix(work / 'prefix')
    make_stand_ins(work / 'lib')
    libraries = [str(work / 'lib'), str(CHECKER / 'lib'), *python310_libraries()]
    packages = next(p for p in sys.path if p.endswith('site-packages'))
    environment = {
        **os.environ,
        'AMENT_PREFIX_PATH': f'{work / "prefix"}:{CHECKER}:{sys.prefix}',
        'LD_LIBRARY_PATH': ':'.join([*libraries, os.environ.get('LD_LIBRARY_PATH', '')]),
        'PYTHONPATH': packages,
        'PATH': f'{sys.prefix}/bin:{os.environ["PATH"]}',
    }

    def run(*arguments):
        return subprocess.run(
            [CHECKER / 'bin/play_launch', *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    probe = run('--version')
    if probe.returncode:
        pytest.skip(f'play-launch does not load here: {probe.stderr.strip()[-300:]}')

    def resolve(file, **arguments):
        model = work / 'system_model.yaml'
        model.unlink(missing_ok=True)
        done = run('dump', 'launch', 'grape', file, *(f'{n}:={v}' for n, v in arguments.items()))
        said = done.stdout + done.stderr
        if done.returncode:
            return None, said
        return yaml.safe_load(model.read_text())['structure']['nodes'], said

    return resolve


def declared_parameters():
    """The parameters each executable declares, from the dataclass that it declares them by."""
    pytest.importorskip('rclpy')
    pytest.importorskip('torch')
    from grape_bringup.iteration_node import IterationNodeConfig
    from grape_episode.player_node import PlayerConfig
    from grape_episode.recorder_node import RecorderConfig
    from grape_policy_node.policy_node import PolicyNodeConfig
    from grape_trainer.trainer_node import TrainerConfig
    from sim_bridge.bridge_node import BridgeConfig

    configs = {
        'bridge_node': BridgeConfig,
        'iteration_node': IterationNodeConfig,
        'player_node': PlayerConfig,
        'policy_node': PolicyNodeConfig,
        'recorder_node': RecorderConfig,
        'trainer_node': TrainerConfig,
    }
    return {name: {field.name for field in fields(config)} for name, config in configs.items()}


CONFIGS = ('bridge_node', 'policy_node', 'recorder_node', 'trainer_node')
STARTED = {
    'sim.launch.py': ({'policy': '/p'}, {'bridge_node', 'recorder_node', 'policy_node'}),
    'train.launch.py': ({'policy': '/p'}, {*CONFIGS, 'iteration_node'}),
    'replay.launch.py': ({'bag': '/b'}, {'recorder_node', 'trainer_node', 'player_node'}),
}


@pytest.mark.parametrize('file', STARTED)
def test_a_launch_file_starts_its_nodes_with_parameters_that_they_declare(ros_env, resolve, file):
    arguments, expected = STARTED[file]
    nodes, said = resolve(file, **arguments)
    assert nodes, said
    own = {node['exec']: node for node in nodes.values() if node.get('pkg') == 'grape'}
    assert set(own) == expected
    declared = declared_parameters()
    for name, node in own.items():
        assert set(node['params']) <= declared[name] | {'autostart'}, name


def test_an_argument_reaches_the_node_unchanged(resolve):
    nodes, said = resolve('sim.launch.py', policy='/models/7b', output_dir='20251121')
    assert nodes, said
    assert nodes['/policy_node']['params']['policy'] == '/models/7b'
    assert nodes['/recorder_node']['params']['output_dir'] == '20251121'


@pytest.mark.parametrize('file', ['sim.launch.py', 'train.launch.py'])
def test_a_namespace_moves_every_node(resolve, file):
    nodes, said = resolve(file, policy='/p', namespace='left')
    assert nodes, said
    assert all(name.startswith('/left/') for name in nodes)


@pytest.mark.parametrize('file', STARTED)
def test_a_missing_argument_is_refused_by_name(resolve, file):
    (required,) = STARTED[file][0]
    nodes, said = resolve(file)
    assert nodes is None
    assert f"'{required}'" in said


def test_training_without_rounds_leaves_them_to_a_person(resolve):
    nodes, said = resolve('train.launch.py', policy='/p', drive='false')
    assert nodes, said
    assert 'iteration_node' not in {node['exec'] for node in nodes.values()}


def test_replay_plays_the_bag_that_was_named(resolve):
    nodes, said = resolve('replay.launch.py', bag='/bags/one', rate='2.0')
    assert nodes, said
    assert nodes['/player_node']['params'] == {'bag': '/bags/one', 'rate': 2.0}
