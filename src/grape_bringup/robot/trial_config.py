"""What the trial node is told: config/robot/trial.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from grape_bringup.robot.checked_yaml import RobotConfigError, StrictModel, load_checked
from grape_episode.contract import Contract

DEFAULT_MAX_STEPS = 300


class CameraTopics(StrictModel):
    """A camera's own topics, as its driver names them."""

    image: str
    depth: str = ''
    camera_info: str = ''
    camera_pose: str = ''  # geometry_msgs/TransformStamped, base <- optical frame

    def by_role(self) -> dict[str, str]:
        """Return role -> topic, of those that there are."""
        return {role: topic for role, topic in self.model_dump().items() if topic}


class Fingers(StrictModel):
    """Joints that stand for the gripper in the joint states, for policies that read them."""

    names: tuple[str, ...] = ('left_finger_joint', 'right_finger_joint')
    open_m: float = Field(0.0425, gt=0)  # each finger of an open Robotiq 2F-85


class TaskEntry(StrictModel):
    """A task that trials are made of."""

    instruction: str = Field(min_length=1)
    max_steps: int = Field(DEFAULT_MAX_STEPS, gt=0)
    init_states: int = Field(1, gt=0)  # how many starts a person can restore
    environment: dict[str, Any] = {}  # goes into START as it is: roles, goal (stages.md)


class NextTrial(StrictModel):
    """What `trial/next` asks for, without an action client."""

    task: str = ''  # empty: the first one of `tasks`
    controller: Literal['policy', 'teleop'] = 'policy'
    temperature: float = Field(1.0, ge=0)  # 0: greedy
    trials_each: int = Field(5, gt=0)  # of an initial state, before the next one's turn


class TrialConfig(StrictModel):
    """See config/robot/trial.yaml for what each key means."""

    cameras: dict[str, CameraTopics]
    joint_states: str = 'joint_states'
    ee_pose: str = 'ee_pose'
    gripper_opening: str = 'gripper_opening'  # empty: none
    fingers: Fingers | None = None  # None: the joint states have them already
    participants: tuple[str, ...] = ('policy', 'recorder')
    needs_guard: bool = True
    needs_calibration: bool = True
    max_image_age_s: float = Field(0.3, gt=0, le=5)
    max_state_age_s: float = Field(0.2, gt=0, le=5)
    max_guard_age_s: float = Field(1.0, gt=0, le=10)
    max_start_distance_m: float = Field(0.03, ge=0)  # 0: told, not demanded
    max_start_rotation_rad: float = Field(0.2, ge=0)
    reset_timeout_s: float = Field(1800.0, gt=0)
    ready_timeout_s: float = Field(30.0, gt=0)
    step_timeout_s: float = Field(2.0, gt=0)
    recorded_timeout_s: float = Field(30.0, gt=0)
    ghost_rate_hz: float = Field(5.0, gt=0, le=30)
    labeller: str = ''
    tasks: dict[str, TaskEntry] = {}
    next: NextTrial = NextTrial()

    @model_validator(mode='after')
    def _next_is_a_task(self) -> TrialConfig:
        if self.next.task and self.next.task not in self.tasks:
            raise ValueError(
                f"next.task '{self.next.task}' is not one of: {', '.join(self.tasks) or 'none'}"
            )
        return self

    def next_task(self) -> str:
        """Return the task that `trial/next` asks for.

        Raises:
            RobotConfigError: there are no tasks.

        """
        if not self.tasks:
            raise RobotConfigError('the trial configuration has no tasks; add one under `tasks`')
        return self.next.task or next(iter(self.tasks))


def load_trial_config(name_or_path: Path | str, contract: Contract) -> TrialConfig:
    """Read the YAML and check that it serves a contract.

    Raises:
        RobotConfigError: no such file, a key or value that does not fit, a camera of the contract
            without a driver's topic, or a source that is a topic of the contract itself.

    """
    config = load_checked(name_or_path, TrialConfig)
    source = f"'{name_or_path}' for contract '{contract.name}'"
    if set(config.cameras) != set(contract.cameras):
        raise RobotConfigError(
            f'{source}: cameras are {", ".join(sorted(config.cameras)) or "none"}; expected '
            f'{", ".join(sorted(contract.cameras))}'
        )
    for name, camera in contract.cameras.items():
        found = config.cameras[name]
        lacks = [r for r in ('depth', 'camera_info', 'camera_pose') if not getattr(found, r)]
        if camera.depth is not None and lacks:
            raise RobotConfigError(
                f"{source}: camera '{name}' has depth in the contract; name its driver's topics "
                f'too: {", ".join(lacks)}'
            )
    sources = [config.joint_states, config.ee_pose]
    sources += [topic for each in config.cameras.values() for topic in each.by_role().values()]
    written = written_topics(contract)
    for topic in sources:
        if topic.strip('/') in written:
            raise RobotConfigError(
                f"{source}: '{topic}' is read and written; two nodes would publish on it. Give "
                "the contract's topics names of their own, such as observation/..."
            )
    return config


def written_topics(contract: Contract) -> set[str]:
    """Return the contract's topics that the trial node publishes observations on."""
    roles = ('image', 'depth', 'camera_info', 'camera_pose', 'joint_state', 'ee_pose')
    return {topic.name.strip('/') for topic in contract.topics if topic.role in roles}
