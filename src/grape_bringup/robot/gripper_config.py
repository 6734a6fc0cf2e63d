"""How the gripper is driven: config/robot/gripper_action.yaml and gripper_modbus.yaml.

Opening is 0 closed .. 1 open everywhere else; here, and nowhere else, it becomes a joint's
radians or Robotiq's counts (0 open .. 255 closed), and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from grape_bringup.robot.checked_yaml import StrictModel, load_checked

ACTION_TYPES = {
    'gripper_command': 'GripperCommand',  # Humble: position_controllers
    'parallel_gripper_command': 'ParallelGripperCommand',  # Jazzy and later
}


class _Opening(StrictModel):
    min_change: float = Field(0.01, ge=0, le=0.5)  # of the opening; less is not sent
    stale_s: float = Field(0.5, gt=0)  # without a state of the gripper, it counts as lost


def _scaled(opening: float, closed: float, opened: float) -> float:
    return closed + (opened - closed) * opening


def _fraction(value: float, closed: float, opened: float) -> float:
    return float(min(max((value - closed) / (opened - closed), 0.0), 1.0))


class ActionGripper(_Opening):
    """A gripper behind ros2_control: an action to move it, joint states to see it."""

    kind: Literal['action']
    action: str = '/robotiq_gripper_controller/gripper_cmd'
    # auto: whichever of the two the controller offers, seen in the ROS graph
    action_type: Literal['auto', 'gripper_command', 'parallel_gripper_command'] = 'auto'
    joint_states: str = '/joint_states'
    joint: str = 'robotiq_85_left_knuckle_joint'
    open_position: float = 0.0  # of the joint, rad
    closed_position: float = 0.7929  # of a 2F-85
    max_effort: float | None = Field(None, gt=0)  # N; None: the controller's own
    goal_timeout_s: float = Field(5.0, gt=0)  # a goal that has not ended by then is a fault
    reactivate: str = '/robotiq_activation_controller/reactivate_gripper'  # empty: none

    @model_validator(mode='after')
    def _has_a_range(self) -> ActionGripper:
        if self.open_position == self.closed_position:
            raise ValueError(f'open_position and closed_position are both {self.open_position}')
        return self

    def to_position(self, opening: float) -> float:
        """Return the joint's position, rad, of an opening."""
        return _scaled(opening, self.closed_position, self.open_position)

    def to_opening(self, position: float) -> float:
        """Return the opening of a joint's position."""
        return _fraction(position, self.closed_position, self.open_position)


class ModbusGripper(_Opening):
    """A Robotiq 2F on a serial line (USB to RS-485), or on the port that a UR arm forwards."""

    kind: Literal['modbus']
    connection: Literal['RTU', 'RTU_VIA_TCP'] = 'RTU'
    port: str = '/dev/ttyUSB0'
    baudrate: int = Field(115200, gt=0)
    tcp_host: str = '127.0.0.1'
    tcp_port: int = Field(54321, ge=1, le=65535)
    device_id: int = Field(9, ge=1, le=247)
    open_counts: int = Field(3, ge=0, le=255)  # what gPO says of an open 2F-85
    closed_counts: int = Field(230, ge=0, le=255)  # and of a closed one, nothing between
    speed: int = Field(255, ge=0, le=255)  # 20 .. 150 mm/s
    force: int = Field(100, ge=0, le=255)  # 20 .. 235 N
    poll_hz: float = Field(30.0, gt=0, le=100)  # the bus carries about 60 exchanges a second
    activate_at_start: bool = True  # the fingers travel once; never done again by itself
    reconnect_s: float = Field(0.5, gt=0)  # after a lost line; doubles
    reconnect_max_s: float = Field(5.0, gt=0)

    @model_validator(mode='after')
    def _has_a_range(self) -> ModbusGripper:
        if self.open_counts >= self.closed_counts:
            raise ValueError(
                f'open_counts {self.open_counts} is not below closed_counts {self.closed_counts}'
            )
        return self

    @property
    def where(self) -> str:
        """The line, for people."""
        if self.connection == 'RTU':
            return self.port
        return f'{self.tcp_host}:{self.tcp_port}'

    def to_counts(self, opening: float) -> int:
        """Return Robotiq's position request, 0 .. 255, of an opening."""
        return round(_scaled(opening, self.closed_counts, self.open_counts))

    def to_opening(self, counts: float) -> float:
        """Return the opening of a position in counts."""
        return _fraction(counts, self.closed_counts, self.open_counts)


GripperConfig = Annotated[ActionGripper | ModbusGripper, Field(discriminator='kind')]


def load_gripper_config(kind_or_path: Path | str) -> ActionGripper | ModbusGripper:
    """Read a gripper's YAML: 'action' and 'modbus' are the ones in config/robot/.

    Raises:
        RobotConfigError: no such file, or one that does not fit.

    """
    name = f'gripper_{kind_or_path}' if kind_or_path in ('action', 'modbus') else kind_or_path
    return load_checked(name, GripperConfig)
