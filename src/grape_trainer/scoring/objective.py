"""What a trial is scored for: weights and thresholds of each stage's costs, as one YAML.

config/objective/ ships completion, safety and efficiency (GRAPE Sec. 3.6); a person's own mix is a
copy of one of them. An unknown key is an error. There are no defaults in the code: the file says
all that a score was made from, and its sha256 is kept with every score.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from grape_trainer.scoring.stage import MotionSettings, SegmentSettings, Stage
from grape_trainer.scoring.stage_templates import (
    JOINT,
    NEED_MOTION,
    chained_settings,
    link_names,
    template_stages,
)

_SOURCE_TREE = Path(__file__).resolve().parents[3]


class ObjectiveError(ValueError):
    """An objective file that a person has to mend."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')


class RewardSettings(_Section):
    """The weights of Eq. 9."""

    lambda_self: float = Field(ge=0)
    lambda_ext: float = Field(ge=0)
    lambda_success: float = Field(ge=0)
    self_reward: Literal['sum', 'per_token']  # Eq. 10 is the sum


class GeometrySettings(_Section):
    """Numbers inside the cost terms."""

    clearance_m: float = Field(gt=0)  # to an obstacle's keypoint (appendix E.2.2: 0.1)
    above_margin_m: float = Field(ge=0)  # this far below the keypoint still counts as above
    straight_speed_mps: float = Field(gt=0)  # of the straight path that time is compared with
    straight_floor_m: float = Field(gt=0)  # a shorter straight path counts as this long


class TermSettings(_Section):
    """How one constraint's cost over a stage becomes a number in [0, weight]."""

    weight: float = Field(ge=0)
    threshold: float = Field(ge=0)  # tau of Algorithm 1: up to here the cost is 0
    worst: float = Field(gt=0)  # from here on the cost is the whole weight
    reduce: Literal['last', 'mean', 'max', 'min']  # over the stage's states; never a sum

    @model_validator(mode='after')
    def _ordered(self) -> TermSettings:
        if not self.worst > self.threshold:
            raise ValueError(
                f'worst is {self.worst}, threshold is {self.threshold}; expected worst above it'
            )
        return self


class Objective(_Section):
    """A resolved objective."""

    name: str = Field(min_length=1, pattern=r'^[A-Za-z0-9_.+-]+$')
    template: str  # a name in stage_templates.TEMPLATES, or a chain 'turn_on+pick_place'
    reward: RewardSettings
    segmentation: SegmentSettings
    motion: MotionSettings | None = None  # what templates other than pick_place need
    geometry: GeometrySettings
    stages: dict[str, dict[str, TermSettings]]  # stage name -> constraint name -> settings

    @model_serializer(mode='wrap')
    def _without_unused(self, handler: Callable[[Objective], dict]) -> dict:
        """Leave out what pick-and-place does not use: its objectives keep their hash."""
        content = handler(self)
        if content['motion'] is None:
            del content['motion']
        return content

    @model_validator(mode='after')
    def _known(self) -> Objective:
        stages = {stage.name: stage for stage in template_stages(self.template)}
        if self.motion is None and NEED_MOTION & set(link_names(self.template)):
            raise ValueError(f"template '{self.template}' needs a section 'motion'")
        if set(self.stages) != set(stages):
            raise ValueError(
                f"stages are {', '.join(self.stages)}; template '{self.template}' has: "
                f'{", ".join(stages)}'
            )
        for name, terms in self.stages.items():
            _check_terms(stages[name], terms)
        return self

    @property
    def template_stages(self) -> tuple[Stage, ...]:
        """The stages of the template, in order."""
        return template_stages(self.template)

    @property
    def config_sha256(self) -> str:
        """Hash of every setting, independent of comments and order in the file."""
        text = json.dumps(self.model_dump(mode='json'), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_lambdas(self, self_reward: float, external: float, success: float) -> Objective:
        """Return the same objective with other weights of Eq. 9."""
        content = self.model_dump()
        content['reward'] |= {
            'lambda_self': self_reward,
            'lambda_ext': external,
            'lambda_success': success,
        }
        return _validated(content, f"objective '{self.name}'")


def load_objective(path_or_name: str | Path) -> Objective:
    """Read an objective: a YAML file, or the name of one in config/objective/.

    'turn_on+completion' chains two objectives for a task of two goals: the stages of the first,
    then those of the second, with the first's weights of Eq. 9.

    Raises:
        ObjectiveError: no such file or name, not a mapping, an unknown key, a value out of range,
            or two objectives that do not fit together.

    """
    name = str(path_or_name)
    if JOINT in name and not Path(name).is_file():
        return _chained([load_objective(link) for link in name.split(JOINT)])
    path = _find(path_or_name)
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ObjectiveError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ObjectiveError(f"'{path}' holds {type(content).__name__}; expected a mapping.")
    return _validated(content, f"'{path}'")


def _chained(objectives: list[Objective]) -> Objective:
    """Return one objective for the links of several, in this order."""
    first = objectives[0]
    name = JOINT.join(objective.name for objective in objectives)
    for key in ('reward', 'segmentation', 'geometry', 'motion'):
        found = [vars(objective)[key] for objective in objectives]
        if len({value for value in found if value is not None}) > 1:
            raise ObjectiveError(
                f"the objectives of '{name}' differ in their section '{key}'; expected the same "
                'in all of them. Write one YAML file for the chain.'
            )
    motions = [objective.motion for objective in objectives if objective.motion is not None]
    template = JOINT.join(objective.template for objective in objectives)
    settings = [objective.model_dump()['stages'] for objective in objectives]
    content = first.model_dump() | {
        'name': name,
        'template': template,
        'stages': chained_settings([o.template for o in objectives], settings),
    }
    if motions:
        content['motion'] = motions[0].model_dump()
    return _validated(content, f"objective '{name}'")


def _validated(content: dict[str, object], where: str) -> Objective:
    try:
        return Objective.model_validate(content)
    except ValidationError as error:
        lines = [f'{where} is not a valid objective:']
        for problem in error.errors():
            place = '.'.join(str(part) for part in problem['loc']) or 'the whole file'
            lines.append(f'  {place}: {problem["msg"]}')
        lines.append('Compare it with config/objective/completion.yaml.')
        raise ObjectiveError('\n'.join(lines)) from error


def _check_terms(stage: Stage, terms: dict[str, TermSettings]) -> None:
    unknown = [name for name in terms if name not in stage.constraints]
    if unknown:
        raise ValueError(
            f"stage '{stage.name}' has no constraint {', '.join(unknown)}; it has: "
            f'{", ".join(stage.constraints)}'
        )
    if not sum(term.weight for term in terms.values()) > 0:
        raise ValueError(
            f"stage '{stage.name}' has no constraint of positive weight; give it one or more of: "
            f'{", ".join(stage.constraints)}'
        )


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.suffix in ('.yaml', '.yml'):
        if path.is_file():
            return path
        raise ObjectiveError(f"There is no objective file '{path}'.")
    folders = [_SOURCE_TREE / 'config' / 'objective']
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    folders += [Path(p) / 'share' / 'grape' / 'config' / 'objective' for p in prefixes if p]
    for folder in folders:
        if (folder / f'{path}.yaml').is_file():
            return folder / f'{path}.yaml'
    names = sorted({file.stem for folder in folders for file in folder.glob('*.yaml')})
    raise ObjectiveError(
        f"There is no objective '{path_or_name}'; there are: {', '.join(names) or 'none'}. Name "
        'one of these or give a .yaml file.'
    )
