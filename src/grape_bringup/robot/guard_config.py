"""The guard's limits and deadlines: each value with its unit and its range.

config/robot/guard.yaml holds the values that are in use; an unknown key, a wrong type or a value
out of range is an error. A parameter of the node that has the name of a value overrides the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator

from grape_bringup.robot.checked_yaml import StrictModel, check, load_checked

Corner = tuple[float, float, float]


class GuardConfig(StrictModel):
    """What may be asked of the arm, and how long anything may be silent.

    Speeds, accelerations and jerks are bounds of a norm: each axis gets 1/sqrt(3) of them. 0
    switches a rule off where its description says so. Periods are the contract's control steps.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    rate_hz: float = Field(100.0, ge=20, le=500, description='Hz, targets sent to the arm')

    max_speed_m_s: float = Field(0.5, ge=0.01, le=3.0, description='m/s, of the target')
    max_acceleration_m_s2: float = Field(2.0, ge=0.05, le=9.0, description='m/s2')
    max_jerk_m_s3: float = Field(20.0, ge=0.5, le=4500.0, description='m/s3')
    max_turn_rad_s: float = Field(1.0, ge=0.01, le=2.5, description='rad/s, of the target')
    max_turn_rad_s2: float = Field(4.0, ge=0.05, le=17.0, description='rad/s2')
    max_turn_rad_s3: float = Field(40.0, ge=0.5, le=8500.0, description='rad/s3')

    max_step_m: float = Field(
        0.0, ge=0, le=0.5, description="m, norm of one step's translation; 0: the contract's bound"
    )
    max_step_rad: float = Field(
        0.0, ge=0, le=1.5, description="rad, norm of one step's rotation; 0: the contract's bound"
    )
    workspace_min_m: Corner = Field((0.25, -0.45, 0.02), description='m, base frame')
    workspace_max_m: Corner = Field((0.75, 0.45, 0.70), description='m, base frame')
    workspace_slack_m: float = Field(
        0.02, ge=0, le=0.1, description='m, how far outside the arm may be when it is armed'
    )
    cone_rad: float = Field(
        0.0, ge=0, le=math.pi, description="rad, tilt of the tool's z axis from the start; 0: any"
    )
    max_lead_m: float = Field(
        0.10, ge=0.005, le=0.5, description='m, goal ahead of the measured position'
    )
    max_lead_rad: float = Field(
        0.6, ge=0.02, le=1.5, description='rad, goal ahead of the measured rotation'
    )
    max_tracking_m: float = Field(
        0.20, ge=0, le=1.0, description='m, measured from sent position, then FAULT; 0: any'
    )
    max_travel_m: float = Field(
        10.0, ge=0, le=1000, description='m, commanded in one episode, then FAULT; 0: any'
    )

    hold_after_periods: float = Field(
        3.0, ge=1, le=100, description='periods without a step of the policy, then hold'
    )
    fault_after_periods: float = Field(
        50.0, ge=1, le=10000, description='periods without a step of the policy, then FAULT'
    )
    max_step_age_s: float = Field(
        1.0, ge=0, le=60, description="s, of a step's observation; 0: stamps are not compared"
    )
    max_step_ahead_s: float = Field(0.1, ge=0, le=60, description='s, stamp in the future')
    require_episode: bool = Field(True, description='follow steps from START to STOP only')

    camera_hold_s: float = Field(
        0.5, ge=0, le=60, description='s, age of the newest picture, then hold; 0: any'
    )
    camera_fault_s: float = Field(3.0, ge=0, le=600, description='s, then FAULT; 0: never')
    frozen_frames: int = Field(
        15, ge=0, le=10000, description='equal pictures in a row, then hold; 0: any'
    )

    teleop_timeout_s: float = Field(
        0.25, ge=0.02, le=5, description='s, silence while engaged, then hold'
    )
    teleop_speed_m_s: float = Field(0.25, ge=0.01, le=1.0, description='m/s, of a person')
    teleop_turn_rad_s: float = Field(0.8, ge=0.01, le=2.5, description='rad/s, of a person')
    deadman_timeout_s: float = Field(
        0.0, ge=0, le=5, description='s, silence of `deadman`, then hold; 0: no such switch'
    )

    max_state_age_s: float = Field(
        0.3, ge=0.02, le=10, description="s, of the arm's state, then FAULT"
    )
    gripper_change: float = Field(
        0.1, ge=0, le=1, description='of the opening, 0 to 1; less is not sent'
    )
    gripper_settle_s: float = Field(
        0.0, ge=0, le=5, description='s, how long a change must last before it is sent'
    )
    gripper_interval_s: float = Field(
        0.3, ge=0, le=10, description='s, between two commands to the gripper'
    )

    @model_validator(mode='after')
    def _is_consistent(self) -> GuardConfig:
        for axis, low, high in zip('xyz', self.workspace_min_m, self.workspace_max_m, strict=True):
            if not low < high:
                raise ValueError(
                    f'workspace_min_m is {low} m and workspace_max_m {high} m along {axis}; '
                    'expected the lower corner first'
                )
        if self.fault_after_periods < self.hold_after_periods:
            raise ValueError(
                f'fault_after_periods {self.fault_after_periods} is below hold_after_periods '
                f'{self.hold_after_periods}; expected to hold before giving up'
            )
        if 0 < self.camera_fault_s < self.camera_hold_s:
            raise ValueError(
                f'camera_fault_s {self.camera_fault_s} is below camera_hold_s '
                f'{self.camera_hold_s}; expected to hold before giving up'
            )
        return self

    def changed(self, values: Mapping[str, object]) -> GuardConfig:
        """Return it with some values replaced.

        Raises:
            RobotConfigError: an unknown name, or a value that does not fit.

        """
        return check({**self.model_dump(), **values}, GuardConfig, 'parameters of guard_node')


def load_guard_config(name_or_path: Path | str = 'guard') -> GuardConfig:
    """Read a YAML; 'guard' is config/robot/guard.yaml.

    Raises:
        RobotConfigError: no such file, or one that does not fit.

    """
    return load_checked(name_or_path, GuardConfig)
