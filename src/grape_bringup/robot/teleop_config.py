"""What the teleop node is told: config/robot/teleop.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from grape_bringup.robot.checked_yaml import StrictModel, load_checked

AXES = ('x', 'y', 'z', 'roll', 'pitch', 'yaw')
KEY_ACTIONS = (*(sign + axis for axis in AXES for sign in '+-'), 'open', 'close', 'engage')


class KeyboardConfig(StrictModel):
    """Keys of a terminal."""

    motion_s: float = Field(0.12, ge=0.03, le=0.3)
    engage_s: float = Field(0.8, ge=0.2, le=2.0)
    keys: dict[str, str]
    services: dict[str, str] = {}  # key -> std_srvs/Trigger

    @field_validator('keys')
    @classmethod
    def _actions_exist(cls, keys: dict[str, str]) -> dict[str, str]:
        wrong = sorted(set(keys.values()) - set(KEY_ACTIONS))
        if wrong:
            raise ValueError(f'{", ".join(wrong)} is none of: {", ".join(KEY_ACTIONS)}')
        return keys


class AxesConfig(StrictModel):
    """A device with six axes and buttons."""

    deadband: float = Field(0.1, ge=0, le=0.9)
    engage: Literal['motion', 'button'] = 'motion'
    engage_button: int = Field(0, ge=0)
    linger_s: float = Field(0.3, ge=0, le=2)
    close_button: int = Field(0, ge=0)
    open_button: int = Field(1, ge=0)


class JoyConfig(StrictModel):
    """A sensor_msgs/Joy topic, such as spacenav's."""

    topic: str = 'spacenav/joy'
    axes: tuple[int, int, int, int, int, int] = (0, 1, 2, 3, 4, 5)
    silent_s: float = Field(0.5, gt=0, le=5)


class TeleopConfig(StrictModel):
    """See config/robot/teleop.yaml for what each key means."""

    device: Literal['keyboard', 'spacemouse', 'joy'] = 'keyboard'
    rate_hz: float = Field(50.0, ge=20, le=100)
    base_frame: str = 'base'
    linear_m_s: float = Field(0.05, gt=0, le=0.25)
    angular_rad_s: float = Field(0.3, gt=0, le=1.0)
    keyboard: KeyboardConfig
    axes: AxesConfig = AxesConfig()
    joy: JoyConfig = JoyConfig()


def load_teleop_config(name_or_path: Path | str) -> TeleopConfig:
    """Read the YAML.

    Raises:
        RobotConfigError: no such file, or a key or value that does not fit.

    """
    return load_checked(name_or_path, TeleopConfig)
