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

import yaml
from pydantic import Field, ValidationError, model_serializer, model_validator

from grape_trainer.scoring.objective_sections import (
    GeometrySettings,
    KeypointSettings,
    ProgramSettings,
    RewardSettings,
    Section,
    TermSettings,
)
from grape_trainer.scoring.stage import MotionSettings, SegmentSettings, Stage
from grape_trainer.scoring.stage_templates import (
    JOINT,
    NEED_MOTION,
    chained_settings,
    link_names,
    template_stages,
)

# What sections name files, relative to that of the objective.
FILES = {'program': ('costs', 'stages'), 'keypoints': ('clicks', 'numbers', 'weights')}
_SOURCE_TREE = Path(__file__).resolve().parents[3]


class ObjectiveError(ValueError):
    """An objective file that a person has to mend."""


class Objective(Section):
    """A resolved objective."""

    name: str = Field(min_length=1, pattern=r'^[A-Za-z0-9_.+-]+$')
    # A name in stage_templates.TEMPLATES, or a chain 'turn_on+pick_place'; None: proposed stages.
    template: str | None = None
    reward: RewardSettings
    segmentation: SegmentSettings
    motion: MotionSettings | None = None  # what templates other than pick_place need
    geometry: GeometrySettings
    # Stage name -> built-in constraint name -> settings.
    stages: dict[str, dict[str, TermSettings]] = Field(default_factory=dict)
    program: ProgramSettings | None = None  # None: built-in costs
    keypoints: KeypointSettings | None = None  # None: the recorded scene's

    @model_serializer(mode='wrap')
    def _without_unused(self, handler: Callable[[Objective], dict]) -> dict:
        """Leave out what is not used: objectives without it keep their hash."""
        unused = [n for n in ('motion', 'program', 'keypoints') if vars(self)[n] is None]
        return {name: value for name, value in handler(self).items() if name not in unused}

    @model_validator(mode='after')
    def _known(self) -> Objective:
        if self.template is None:
            if self.program is None or self.stages:
                raise ValueError(
                    "there is no 'template'; an objective without one has a section 'program', "
                    "whose 'stages' name proposed ones, and no section 'stages'"
                )
            return self
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
        """The stages of the template, in order; none without a template."""
        return () if self.template is None else template_stages(self.template)

    @property
    def config_sha256(self) -> str:
        """Hash of every setting, independent of comments and order in the file."""
        text = json.dumps(self.model_dump(mode='json'), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_lambdas(self, self_reward: float, external: float, success: float) -> Objective:
        """Return the same objective with other weights of Eq. 9."""
        return self.with_reward(
            lambda_self=self_reward, lambda_ext=external, lambda_success=success
        )

    def with_reward(self, **changes: object) -> Objective:
        """Return the same objective with another section `reward`, as far as it is given."""
        content = self.model_dump()
        content['reward'] |= changes
        return _validated(content, f"objective '{self.name}'")

    def with_keypoints(self, **settings: object) -> Objective:
        """Return the same objective with keypoints from elsewhere; see KeypointSettings."""
        content = self.model_dump() | {'keypoints': settings}
        return _validated(content, f"objective '{self.name}'")

    def with_program(
        self,
        costs: Path | None = None,
        stages: Path | None = None,
        approved_sha: str = '',
        allow_unapproved: bool = False,
    ) -> Objective:
        """Return the same objective with another program; see ProgramSettings.

        What is not given is as the objective says; costs and stages are given together.

        Raises:
            ObjectiveError: it does not say how a program's functions count.

        """
        if self.program is None:
            raise ObjectiveError(
                f"objective '{self.name}' has no section 'program', which says how the functions "
                'of a cost program count. Take --objective generated, or copy the section from '
                'config/objective/generated.yaml.'
            )
        content = self.model_dump()
        if costs is not None or stages is not None:
            content['program'] |= {'costs': costs, 'stages': stages, 'approved_sha': ''}
        given = {'approved_sha': approved_sha, 'allow_unapproved': allow_unapproved}
        content['program'] |= {name: value for name, value in given.items() if value}
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
    return _validated(_from_its_folder(content, path.parent), f"'{path}'")


def load_scored_objective(
    name: str = '',
    costs: Path | None = None,
    stages: Path | None = None,
    approved_sha: str = '',
    allow_unapproved: bool = False,
) -> Objective:
    """Read an objective and say which cost program it scores with.

    Args:
        name: as in `load_objective`; '': 'generated' with costs or stages, else 'completion'.
        costs: a cost program; None: what the objective says.
        stages: a proposal of stages; None: what the objective says.
        approved_sha: how the sha256 of an approved text begins; '': the file's text of now.
        allow_unapproved: whether nobody needs to have approved it.

    Raises:
        ObjectiveError: as `load_objective`, or no section 'program' for what is given.

    """
    given = costs is not None or stages is not None
    objective = load_objective(name or ('generated' if given else 'completion'))
    if given or approved_sha or allow_unapproved:
        return objective.with_program(costs, stages, approved_sha, allow_unapproved)
    return objective


def _from_its_folder(content: dict[str, object], folder: Path) -> dict[str, object]:
    """Return an objective's content with its files named from anywhere."""
    content = dict(content)
    for section, names in FILES.items():
        if isinstance(content.get(section), dict):
            files = {
                name: str(folder.resolve() / str(value))
                for name, value in content[section].items()
                if name in names and value is not None
            }
            content[section] = content[section] | files
    return content


def _chained(objectives: list[Objective]) -> Objective:
    """Return one objective for the links of several, in this order."""
    first = objectives[0]
    name = JOINT.join(objective.name for objective in objectives)
    if any(objective.program or objective.keypoints for objective in objectives):
        raise ObjectiveError(
            f"an objective of '{name}' has a section 'program' or 'keypoints', which a chain "
            'cannot have. Write one YAML file for the chain.'
        )
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
