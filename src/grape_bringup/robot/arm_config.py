"""What the arm outputs are told: one YAML in config/robot/ for each way to an arm.

Topic names are relative where a namespace may stand before them and absolute where the driver
makes them so. Defaults live here; config/robot/*.yaml states them for the FR3 and says why.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, model_validator

from grape_bringup.robot.checked_yaml import RobotConfigError, StrictModel, check
from grape_bringup.ros_environment import config_file

FILES = {
    'crisp': 'crisp.yaml',
    'fzi': 'fzi.yaml',
    'servo_pose': 'servo.yaml',
    'servo_twist': 'servo.yaml',
    'fci': 'fci.yaml',
}
KINDS = tuple(FILES)
COMMANDS_A_TIMEOUT = 2  # so many must fit, or one late command halts MoveIt Servo

Torques = Annotated[tuple[float, ...], Field(min_length=7, max_length=7)]
Forces = Annotated[tuple[float, ...], Field(min_length=6, max_length=6)]


class _Strict(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Topic(_Strict):
    """A topic and its quality of service."""

    name: str = Field(min_length=1)
    reliability: Literal['reliable', 'best_effort'] = 'reliable'
    depth: int = Field(1, ge=1, le=100)


class CollisionBehavior(_Strict):
    """From where on the robot calls a force a contact (lower) and stops with a reflex (upper).

    The same values while it accelerates and while it does not.
    """

    lower_torques_nm: Torques
    upper_torques_nm: Torques
    lower_forces_n: Forces  # N for x, y, z; Nm for the rotations
    upper_forces_n: Forces

    @model_validator(mode='after')
    def _upper_is_above(self) -> CollisionBehavior:
        for lower, upper in (
            (self.lower_torques_nm, self.upper_torques_nm),
            (self.lower_forces_n, self.upper_forces_n),
        ):
            if any(not 0.0 < low <= high for low, high in zip(lower, upper, strict=True)):
                raise ValueError(f'expected 0 < lower <= upper, found {lower} and {upper}')
        return self


class FrankaRos2(_Strict):
    """franka_ros2's driver: its state, and the way back after a reflex."""

    robot_state: Topic = Topic(name='/franka_robot_state_broadcaster/robot_state')
    # The state comes at 1 kHz and decoding it in Python costs half a core: this often is enough.
    decode_rate_hz: float = Field(100.0, ge=10.0, le=1000.0)
    error_recovery: str = '/action_server/error_recovery'
    set_collision_behavior: str = '/service_server/set_full_collision_behavior'
    controller_manager: str = '/controller_manager'
    hardware_plugin: str = 'franka_hardware/FrankaHardwareInterface'
    # Active after a recovery, in this order; a reflex deactivates all of them.
    controllers: tuple[str, ...] = Field(
        ('joint_state_broadcaster', 'franka_robot_state_broadcaster'), min_length=1
    )
    motion_controller: str = Field(min_length=1)  # what the targets go to
    step_timeout_s: float = Field(5.0, gt=0.0, le=60.0)
    collision_behavior: CollisionBehavior | None = None  # None: as the robot has it


class _OverTopics(_Strict):
    """What the outputs over ROS topics have in common."""

    base_frame: str = Field(min_length=1)  # of targets and of the measured pose
    pose: Topic  # where the measured pose of the controlled frame comes from
    state_timeout_s: float = Field(0.2, ge=0.02, le=5.0)
    franka_ros2: FrankaRos2 | None = None  # None: an arm of which only the pose is known


class PoseTopicConfig(_OverTopics):
    """A controller that follows a PoseStamped: crisp_controllers and FZI's."""

    kind: Literal['crisp', 'fzi']
    target: Topic


class ServoConfig(_OverTopics):
    """MoveIt Servo."""

    kind: Literal['servo_pose', 'servo_twist']
    node: str = Field('/servo_node', min_length=1)
    pose_target: Topic = Topic(name='/servo_node/pose_target_cmds', depth=10)
    twist: Topic = Topic(name='/servo_node/delta_twist_cmds', depth=10)
    interface: Literal['auto', 'command_type', 'start_servo'] = 'auto'
    service_timeout_s: float = Field(5.0, gt=0.0, le=60.0)
    incoming_command_timeout_s: float = Field(0.1, ge=0.02, le=2.0)  # as Servo's own parameter
    command_in_type: Literal['unitless', 'speed_units'] = 'unitless'  # as Servo's own parameter
    scale_linear_m_s: float = Field(0.4, gt=0.0, le=3.0)
    scale_rotational_rad_s: float = Field(0.8, gt=0.0, le=3.0)
    position_gain_per_s: float = Field(2.0, ge=0.0, le=20.0)
    max_linear_m_s: float = Field(0.3, gt=0.0, le=1.7)
    max_angular_rad_s: float = Field(0.8, gt=0.0, le=2.5)

    @property
    def has_command_types(self) -> bool:
        """Whether Servo is Jazzy's or newer; Humble's is started instead, and knows only twists.

        With 'auto' the sourced ROS_DISTRO decides.
        """
        if self.interface == 'auto':
            return os.environ.get('ROS_DISTRO') != 'humble'
        return self.interface == 'command_type'

    @model_validator(mode='after')
    def _poses_need_command_types(self) -> ServoConfig:
        if self.kind == 'servo_pose' and not self.has_command_types:
            raise ValueError(
                "MoveIt Servo of ROS 2 Humble takes no poses; use arm 'servo_twist' there"
            )
        return self

    @property
    def least_rate_hz(self) -> float:
        """The slowest stream of commands that Servo does not halt in between."""
        return COMMANDS_A_TIMEOUT / self.incoming_command_timeout_s


class FciConfig(_Strict):
    """The Franka Control Interface itself, by franka-rs: no ROS driver beside it.

    The budget is of the target's path between two commands, so it has to be above the guard's
    limits; its upper ends are the FR3's own limits.
    """

    kind: Literal['fci'] = 'fci'
    host: str = Field('172.16.0.2', min_length=1)
    realtime: Literal['enforce', 'ignore'] = 'enforce'
    backend: Literal['impedance', 'robot'] = 'impedance'
    max_velocity_m_s: float = Field(0.6, gt=0.0, le=3.0)
    max_acceleration_m_s2: float = Field(3.0, gt=0.0, le=9.0)
    max_jerk_m_s3: float = Field(60.0, gt=0.0, le=4500.0)
    max_angular_velocity_rad_s: float = Field(1.2, gt=0.0, le=2.5)
    max_angular_acceleration_rad_s2: float = Field(6.0, gt=0.0, le=17.0)
    max_angular_jerk_rad_s3: float = Field(120.0, gt=0.0, le=8500.0)
    # Of the measured pose, from where the control began; further away the motion ends.
    max_deviation_m: float = Field(0.8, gt=0.0, le=2.0)
    max_angular_deviation_rad: float = Field(2.5, gt=0.0, le=3.14)
    stiffness_n_m: float = Field(750.0, gt=0.0, le=3000.0)  # backend impedance only
    leash_m: float = Field(0.025, gt=0.0, le=0.2)
    leash_rad: float = Field(0.15, gt=0.0, le=1.0)
    limit_rate: bool = True
    collision_behavior: CollisionBehavior
    state_timeout_s: float = Field(0.2, ge=0.02, le=5.0)
    reconnect_s: float = Field(1.0, ge=0.1, le=60.0)


ArmConfig = PoseTopicConfig | ServoConfig | FciConfig
_CLASSES = {
    'crisp': PoseTopicConfig,
    'fzi': PoseTopicConfig,
    'servo_pose': ServoConfig,
    'servo_twist': ServoConfig,
    'fci': FciConfig,
}


def load_arm_config(kind: str, path: str | Path = '', **changes: object) -> ArmConfig:
    """Load the configuration of one way to an arm.

    Args:
        kind: one of KINDS.
        path: a YAML; empty: config/robot's own.
        changes: replace top-level entries of the YAML.

    Raises:
        RobotConfigError: unknown kind or key, or a value out of its range.
        FileNotFoundError: no such file.

    """
    if kind not in FILES:
        raise RobotConfigError(f"arm '{kind}' is not one of: {', '.join(KINDS)}")
    path = Path(path) if path else config_file(f'robot/{FILES[kind]}')
    entries = yaml.safe_load(path.read_text())
    if isinstance(entries, dict):
        entries = {**entries, 'kind': kind, **changes}
    return check(entries, _CLASSES[kind], str(path))


def check_command_rate(config: ArmConfig, rate_hz: float) -> None:
    """Check that an output is fed often enough.

    Raises:
        RobotConfigError: MoveIt Servo would halt between two commands.

    """
    if isinstance(config, ServoConfig) and rate_hz < config.least_rate_hz:
        raise RobotConfigError(
            f'targets come at {rate_hz:g} Hz, but MoveIt Servo halts '
            f'{config.incoming_command_timeout_s:g} s after a command: at least '
            f'{config.least_rate_hz:g} Hz are needed. Raise the rate, or incoming_command_timeout '
            'in Servo and incoming_command_timeout_s here.'
        )
