"""The ROS 2 package: one version, every interface generated, launch files that fit the nodes."""

import ast
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / 'CMakeLists.txt').read_text()
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))


def test_package_xml_and_pyproject_agree():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert package.get('format') == '3'
    assert package.findtext('name') == 'grape'
    assert package.findtext('version') == project['version']
    assert package.findtext('export/build_type') == 'ament_cmake'


def test_every_interface_is_generated():
    files = [p for folder in ('msg', 'srv', 'action') for p in (ROOT / folder).iterdir()]
    assert files
    for path in files:
        assert path.relative_to(ROOT).as_posix() in CMAKE


def test_every_ros_package_that_is_imported_is_a_dependency():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    declared = {e.text for tag in ('depend', 'exec_depend') for e in package.iter(tag)}
    known = {
        'rclpy', 'sensor_msgs', 'std_msgs', 'geometry_msgs', 'std_srvs', 'diagnostic_msgs',
        'builtin_interfaces', 'lifecycle_msgs', 'launch', 'launch_ros',
    }  # fmt: skip
    used = set()
    for folder in ('src', 'sim_bridge', 'launch'):
        for path in (ROOT / folder).rglob('*.py'):
            found = re.findall(r'^\s*(?:from|import) (\w+)', path.read_text(), re.MULTILINE)
            used |= set(found) & known
    assert used <= declared


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda p: p.name)
def test_launch_files_start_executables_that_are_installed_with_parameters_they_have(path):
    text = path.read_text()
    ast.parse(text)
    executables = set(re.findall(r"'(\w+_node)'", text))
    assert executables
    for executable in executables:
        assert f'grape_executable({executable} ' in CMAKE


def test_configurations_are_valid_yaml():
    for path in (ROOT / 'config').rglob('*.yaml'):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
