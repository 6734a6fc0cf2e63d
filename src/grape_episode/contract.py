"""The contract: the one place that says what a setup's topics, images and actions are.

Recorder, policy node, bridge and trainer read the same YAML (config/contract/), so that the
tensor the policy saw live equals the one that the trainer rebuilds from the bag.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from grape_episode.centre_crop import centre_crop

ROLES = (
    'image',
    'depth',
    'camera_info',
    'camera_pose',
    'joint_state',
    'ee_pose',
    'instruction',
    'policy_step',
    'executed_step',  # what the guard let through, where there is one
    'episode_event',
    'scene_state',
    'raw',  # recorded as it comes, and read by nobody here
)

ONCE_A_STEP = ('image', 'depth', 'policy_step', 'executed_step')  # no state after the last

BESIDE_POLICY = 'contract.yaml'
DEFAULT = 'libero'


class ContractError(ValueError):
    """A contract that cannot be used, or data that breaks it; the text says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')


class TopicSpec(_Strict):
    """One recorded topic and its quality of service."""

    name: str
    type: str
    role: Literal[ROLES]
    per_step: bool = True
    reliability: Literal['reliable', 'best_effort'] = 'reliable'
    durability: Literal['volatile', 'transient_local'] = 'volatile'
    depth: int = Field(50, ge=1)


class ImageTransform(_Strict):
    """From the camera's picture to what the policy sees: rotation, then crop, then centre crop.

    `crop` is (top, left, height, width) as fractions of the rotated picture, in whole pixels.
    `centre_crop_area` is OpenVLA's: the centre of that area, resized back (see centre_crop.py).
    """

    rotate_deg: Literal[0, 180] = 0
    crop: tuple[float, float, float, float] | None = None
    centre_crop_area: float | None = Field(None, gt=0, le=1)

    @model_validator(mode='after')
    def _crop_is_inside(self) -> ImageTransform:
        if self.crop is not None:
            top, left, height, width = self.crop
            inside = top >= 0 and left >= 0 and top + height <= 1 and left + width <= 1
            if not (inside and height > 0 and width > 0):
                raise ValueError(f'crop {self.crop} leaves the picture; expected fractions of it')
        return self

    @model_serializer(mode='wrap')
    def _without_unused(self, handler: Callable[[ImageTransform], dict]) -> dict:
        """Leave the newer key out where it is not used: contracts keep their hash."""
        data = handler(self)
        if data['centre_crop_area'] is None:
            del data['centre_crop_area']
        return data


class DepthSpec(_Strict):
    """A camera's depth, pixel for pixel with its picture, and what lifts it (see rgbd.py).

    `camera_info` (sensor_msgs/CameraInfo) and `camera_pose` (geometry_msgs/TransformStamped, from
    the optical frame to `base_frame`) are topics; the camera stands still during an episode.
    """

    topic: str
    encoding: Literal['32FC1', '16UC1'] = '32FC1'  # m, mm (REP 118)
    camera_info: str
    camera_pose: str


class CameraSpec(_Strict):
    """A camera's topic, its raw format and its transform; depth where it has it."""

    topic: str
    encoding: Literal['rgb8'] = 'rgb8'
    height: int = Field(ge=14)
    width: int = Field(ge=14)
    transform: ImageTransform = ImageTransform()
    depth: DepthSpec | None = None

    @model_serializer(mode='wrap')
    def _without_unused(self, handler: Callable[[CameraSpec], dict]) -> dict:
        """Leave depth out where there is none: contracts keep their hash."""
        data = handler(self)
        if data['depth'] is None:
            del data['depth']
        return data


class ActionSpec(_Strict):
    """What one policy unit is, and the bounds of one control step."""

    frame: str
    translation_scale_m: float = Field(gt=0)
    rotation_scale_rad: float = Field(gt=0)
    max_translation_m: float = Field(gt=0)
    max_rotation_rad: float = Field(gt=0)
    gripper: Literal['opening'] = 'opening'  # 0 closed .. 1 open


class Contract(_Strict):
    """One setup: see config/contract/libero.yaml."""

    name: str
    control_rate_hz: float = Field(gt=0)
    base_frame: str
    policy_camera: str
    cameras: dict[str, CameraSpec]
    action: ActionSpec
    topics: tuple[TopicSpec, ...]

    @model_validator(mode='after')
    def _is_consistent(self) -> Contract:
        if self.policy_camera not in self.cameras:
            raise ValueError(
                f"policy_camera '{self.policy_camera}' is not one of: {', '.join(self.cameras)}"
            )
        names = [topic.name for topic in self.topics]
        if len(set(names)) != len(names):
            raise ValueError(f'a topic is listed twice: {", ".join(sorted(names))}')
        images = {topic.name for topic in self.topics if topic.role == 'image'}
        for camera, spec in self.cameras.items():
            if spec.topic not in images:
                raise ValueError(f"camera '{camera}': topic '{spec.topic}' has no image entry")
            self._check_depth(camera, spec.depth)
        for role in ('policy_step', 'episode_event'):
            self._only(role)
        return self

    def _check_depth(self, camera: str, depth: DepthSpec | None) -> None:
        wanted = {
            'depth': depth and depth.topic,
            'camera_info': depth and depth.camera_info,
            'camera_pose': depth and depth.camera_pose,
        }
        for role, name in wanted.items():
            if name and name not in {topic.name for topic in self.topics if topic.role == role}:
                raise ValueError(f"camera '{camera}': topic '{name}' has no {role} entry")

    def _only(self, role: str) -> TopicSpec:
        found = [topic for topic in self.topics if topic.role == role]
        if len(found) != 1:
            raise ValueError(f'{len(found)} topics have the role {role}; expected one')
        return found[0]

    def topic(self, role: str) -> TopicSpec:
        """Return the topic of a role that occurs once.

        Raises:
            ContractError: none or several topics have it.

        """
        try:
            return self._only(role)
        except ValueError as error:
            raise ContractError(f"contract '{self.name}': {error}") from error

    def track(self, controller: str) -> TopicSpec:
        """Return the topic that says how many steps an episode has.

        Where a person drives a robot all along (controller 'teleop') nobody proposes steps: only
        what the guard executed is there.
        """
        is_driven = controller == 'teleop' and any(t.role == 'executed_step' for t in self.topics)
        return self.topic('executed_step' if is_driven else 'policy_step')

    def missing_messages(
        self, counts: dict[str, int], steps: int, controller: str = 'policy'
    ) -> dict[str, int]:
        """Return topic -> how many of an episode's messages are not there.

        Pictures and steps come once a step, states once more after the last one.
        """
        missing = {}
        track = self.track(controller)
        for topic in self.topics:
            expected = steps if topic.role in ONCE_A_STEP else steps + 1
            if topic.role == 'policy_step' and topic != track:
                continue
            if topic.per_step and counts.get(topic.name, 0) < expected:
                missing[topic.name] = expected - counts.get(topic.name, 0)
        return missing

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back."""
        return self.model_dump(mode='json')

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = 'contract') -> Contract:
        """Check plain data.

        Raises:
            ContractError: names each key that is unknown, missing or out of range.

        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = '; '.join(
                f'{".".join(map(str, item["loc"])) or "contract"}: {item["msg"]}'
                for item in error.errors()
            )
            raise ContractError(f'{source}: {problems}') from error

    def save(self, folder: Path) -> None:
        """Write it into a policy's folder: a policy acts under the contract it was trained on."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        (folder / BESIDE_POLICY).write_text(text)

    def with_camera_size(self, pixels: int) -> Contract:
        """Return this contract with square pictures of another size."""
        data = self.to_dict()
        for camera in data['cameras'].values():
            camera.update(height=pixels, width=pixels)
        return Contract.from_dict(data, f'{self.name} at {pixels} px')

    def apply_image(self, camera: str, raw: np.ndarray) -> np.ndarray:
        """Turn a camera's picture into what the policy sees.

        Args:
            camera: name of the camera.
            raw: (H, W, 3) uint8 RGB as published.

        Returns:
            (H', W', 3) uint8 RGB, contiguous.

        Raises:
            ContractError: unknown camera, wrong shape or type.

        """
        if camera not in self.cameras:
            raise ContractError(
                f"camera '{camera}' is not in contract '{self.name}'; "
                f'it has: {", ".join(self.cameras)}.'
            )
        spec = self.cameras[camera]
        expected = (spec.height, spec.width, 3)
        if raw.shape != expected or raw.dtype != np.uint8:
            raise ContractError(
                f"camera '{camera}' gave {raw.dtype} {raw.shape}; contract '{self.name}' expects "
                f'uint8 {expected}. Set the camera or the contract to the same size.'
            )
        image = raw[::-1, ::-1] if spec.transform.rotate_deg == 180 else raw
        if spec.transform.crop is not None:
            top, left, height, width = spec.transform.crop
            rows = slice(round(top * spec.height), round((top + height) * spec.height))
            columns = slice(round(left * spec.width), round((left + width) * spec.width))
            image = image[rows, columns]
        if spec.transform.centre_crop_area is not None:
            image = centre_crop(image, spec.transform.centre_crop_area)
        return np.ascontiguousarray(image)


def contract_folders() -> list[Path]:
    """Return the places where contracts are looked up by name."""
    folders = [Path(__file__).resolve().parents[2] / 'config' / 'contract']
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    folders += [Path(p) / 'share' / 'grape' / 'config' / 'contract' for p in prefixes if p]
    return [folder for folder in folders if folder.is_dir()]


def load_contract(path_or_name: Path | str) -> Contract:
    """Read a contract from a YAML file, or by the name of a shipped one.

    Raises:
        ContractError: no such file or name (the names are listed), or a bad contract.

    """
    path = Path(path_or_name)
    if path.suffix not in ('.yaml', '.yml'):
        found = {p.stem: p for folder in contract_folders() for p in folder.glob('*.yaml')}
        if str(path_or_name) not in found:
            raise ContractError(
                f"There is no contract '{path_or_name}'. Give the path of a YAML file or one of: "
                f'{", ".join(sorted(found)) or "(none found)"}.'
            )
        path = found[str(path_or_name)]
    if not path.is_file():
        raise ContractError(f"There is no contract file '{path}'.")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ContractError(f'{path} is not valid YAML: {error}') from error
    if not isinstance(data, dict):
        raise ContractError(f'{path} holds {type(data).__name__}; expected a mapping.')
    return Contract.from_dict(data, str(path))


def contract_of_policy(policy_dir: Path | str) -> str:
    """Return what `load_contract` takes for a policy: the one in its folder, else the default."""
    beside = Path(policy_dir) / BESIDE_POLICY
    return str(beside) if beside.is_file() else DEFAULT
