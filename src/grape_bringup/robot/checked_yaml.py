"""One YAML file of the robot's configuration as a checked model; errors say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from grape_bringup.ros_environment import config_file

Model = TypeVar('Model')


class RobotConfigError(ValueError):
    """A configuration that cannot be used; the text says what to do."""


class StrictModel(BaseModel):
    """A configuration: values do not change, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra='forbid')


def load_checked(name_or_path: Path | str, kind: type[Model] | object) -> Model:
    """Read a YAML file, or the one of a name in config/robot/.

    Args:
        name_or_path: such as 'gripper_modbus', or a path that ends in .yaml.
        kind: a pydantic model, or a union of them.

    Raises:
        RobotConfigError: no such file, no YAML, a key or value that does not fit.

    """
    path = Path(name_or_path).expanduser()
    if path.suffix not in ('.yaml', '.yml'):
        try:
            path = config_file(f'robot/{name_or_path}.yaml')
        except FileNotFoundError as error:
            raise RobotConfigError(
                f"there is no robot configuration '{name_or_path}': {error}"
            ) from error
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RobotConfigError(f"'{path}' cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RobotConfigError(f"'{path}' is not valid YAML: {error}") from error
    return check(data, kind, str(path))


def check(data: object, kind: type[Model] | object, source: str) -> Model:
    """Check plain data.

    Raises:
        RobotConfigError: names each key that is unknown, missing or out of range.

    """
    if not isinstance(data, dict):
        raise RobotConfigError(f"'{source}' holds {type(data).__name__}; expected a mapping")
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        problems = '; '.join(
            f'{".".join(map(str, item["loc"])) or "file"}: {item["msg"]}'
            for item in error.errors()
        )
        raise RobotConfigError(f"'{source}': {problems}") from error
