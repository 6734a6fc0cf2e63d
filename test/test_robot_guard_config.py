"""The guard's configuration: units and ranges are checked, and the reference names them all."""

import re
from pathlib import Path

import pytest
import yaml

from grape_bringup.robot.checked_yaml import RobotConfigError
from grape_bringup.robot.guard_config import GuardConfig, load_guard_config

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / 'docs/reference/guard.md').read_text()


def test_the_shipped_file_states_every_value_and_is_the_default():
    shipped = yaml.safe_load((ROOT / 'config/robot/guard.yaml').read_text())
    assert set(shipped) == set(GuardConfig.model_fields)
    assert load_guard_config() == GuardConfig()


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'max_speed': 1.0}, 'max_speed: Extra inputs are not permitted'),
        ({'max_speed_m_s': 0.0}, 'max_speed_m_s: Input should be greater than or equal to 0.01'),
        ({'max_speed_m_s': float('nan')}, 'max_speed_m_s'),
        ({'max_jerk_m_s3': 'fast'}, 'max_jerk_m_s3: Input should be a valid number'),
        ({'workspace_min_m': [0.0, 0.0]}, 'workspace_min_m'),
        ({'workspace_min_m': [0.9, -0.4, 0.0]}, 'the lower corner first'),
        ({'fault_after_periods': 1.0}, 'hold before giving up'),
        ({'camera_fault_s': 0.1}, 'hold before giving up'),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_is_expected(tmp_path, values, words):
    path = tmp_path / 'guard.yaml'
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RobotConfigError, match=re.escape(words)):
        load_guard_config(path)


@pytest.mark.parametrize('name', GuardConfig.model_fields)
def test_every_parameter_has_its_unit_and_stands_in_the_reference(name):
    entry = GuardConfig.model_fields[name]
    assert entry.description
    assert f'| `{name}` |' in REFERENCE


def test_every_rule_stands_in_the_reference():
    """A reason that an operator reads at the robot must be found in the documentation."""
    code = ''.join(p.read_text() for p in (ROOT / 'src/grape_bringup/robot').glob('guard*.py'))
    rules = set(re.findall(r"Finding\(\s*'(\w+)'", code))
    assert len(rules) > 20
    assert [rule for rule in sorted(rules) if f'`{rule}`' not in REFERENCE] == []
