"""Proposed stages as a file that a person reads, changes and approves, and as a plan.

Written once and whole: a proposal that fails leaves the last file as it was. The costs in it are
text; cost_program.py checks and runs what was approved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grape_episode.episode import EpisodeInfo
from grape_trainer.scoring.stage_definition import (
    PlannedStage,
    Roles,
    Stage,
    StageError,
    StagePlan,
)
from grape_trainer.scoring.stage_events import EVENTS, JOINT_EVENTS
from grape_trainer.scoring.stage_plan import plan_for
from grape_trainer.scoring.vlm import Proposed
from grape_trainer.scoring.vlm_reply import ProposedConstraint, program_text

VERSION = 1


class ProposalError(ValueError):
    """A file of proposed stages that cannot be used; the text names it and what to mend."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')


class Origin(_Part):
    """What a proposal was made from."""

    kind: Literal['template', 'model']
    template: str = ''
    model: str = ''
    answers: tuple[str, ...] = ()  # keys in the cache, the last one is the proposal
    cost_usd: float | None = None  # None: not known, or there was nothing to pay
    code_version: str = ''


class ProposalStage(_Part):
    """One stage, with the names of its keypoints."""

    number: int = Field(ge=1)
    name: str = Field(pattern=r'^[a-z][a-z0-9_]{0,39}$')
    description: str
    keypoints: tuple[str, ...] = Field(min_length=1)  # what, then where
    grasp: bool
    release: bool
    ends: Literal[(*EVENTS, *JOINT_EVENTS)]
    constraints: tuple[ProposedConstraint, ...]  # none: a template's, whose objective has them


class StageProposal(_Part):
    """The stages of one task, as proposed."""

    version: Literal[1] = VERSION
    task: str
    instruction: str
    keypoints: tuple[str, ...]  # by their number
    stages: tuple[ProposalStage, ...] = Field(min_length=1)
    origin: Origin

    @model_validator(mode='after')
    def _consistent(self) -> StageProposal:
        numbers = [stage.number for stage in self.stages]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f'the numbers of the stages are {numbers}; expected 1, 2, 3, ...')
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f'the names of the stages repeat: {", ".join(names)}')
        for stage in self.stages:
            unknown = [name for name in stage.keypoints if name not in self.keypoints]
            if unknown:
                raise ValueError(
                    f"stage '{stage.name}' names {unknown[0]}; the keypoints are: "
                    f'{", ".join(self.keypoints)}'
                )
        return self

    @property
    def program(self) -> str:
        """The costs of all stages as one cost program, unchecked; '' for a template's."""
        constraints = [c for stage in self.stages for c in stage.constraints]
        return program_text(constraints) if constraints else ''

    def plan(self, recorded: Sequence[str]) -> StagePlan:
        """Return the plan that stage.py cuts a trial by.

        Args:
            recorded: names of the trial's keypoints.

        Raises:
            StageError: a keypoint of a stage that the trial does not have.

        """
        named = dict.fromkeys(name for stage in self.stages for name in stage.keypoints)
        absent = [name for name in named if name not in recorded]
        if absent:
            raise StageError(
                f'the proposal names {", ".join(absent)}; the trial has the keypoints: '
                f'{", ".join(recorded)}. Propose stages for this task.'
            )
        link = tuple(_planned(stage) for stage in self.stages)
        return StagePlan('proposal', (link,), any_order=False, reason=self.origin.kind)


def choose_plan(
    proposal: StageProposal | None,
    info: EpisodeInfo,
    keypoints: Sequence[str],
    template: str | None,
) -> StagePlan:
    """Return the plan of an episode: the proposal's, or without one that of `plan_for`.

    Raises:
        StageError: as they do.

    """
    if proposal is not None:
        return proposal.plan(keypoints)
    return plan_for(info, keypoints, template)


def proposal_of_plan(
    plan: StagePlan, task: str, instruction: str, keypoints: Sequence[str], code_version: str
) -> StageProposal:
    """Return a template's stages as a proposal; its costs are those of its objective."""
    stages = tuple(
        ProposalStage(
            number=item.stage.number,
            name=item.stage.name,
            description=item.stage.description,
            keypoints=tuple(n for n in (item.roles.target, item.roles.receptacle) if n),
            grasp=item.stage.grasp,
            release=item.stage.release,
            ends=item.stage.ends,
            constraints=(),
        )
        for item in plan.stages
    )
    origin = Origin(kind='template', template=plan.template, code_version=code_version)
    return _checked(task, instruction, keypoints, stages, origin)


def proposal_of_model(
    proposed: Proposed, task: str, instruction: str, keypoints: Sequence[str], code_version: str
) -> StageProposal:
    """Return what a model proposed, with the names of its keypoints."""
    stages = tuple(
        ProposalStage(
            number=stage.number,
            name=stage.name,
            description=stage.description,
            keypoints=tuple(keypoints[index] for index in stage.keypoints),
            grasp=stage.grasp,
            release=stage.release,
            ends=stage.event,
            constraints=stage.constraints,
        )
        for stage in proposed.stages.stages
    )
    origin = Origin(
        kind='model',
        model=proposed.answers[-1].model,
        answers=tuple(answer.key for answer in proposed.answers),
        cost_usd=proposed.cost_usd,
        code_version=code_version,
    )
    return _checked(task, instruction, keypoints, stages, origin)


def write_proposal(path: Path | str, proposal: StageProposal) -> None:
    """Write a proposal as JSON, by renaming over the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    content = proposal.model_dump(mode='json', by_alias=True)
    partial.write_text(json.dumps(content, indent=1) + '\n')
    os.replace(partial, path)


def read_proposal(path: Path | str) -> StageProposal:
    """Read a proposal, as written or as a person changed it.

    Raises:
        ProposalError: no such file, another version, a missing or unknown key, a value that
            cannot be.

    """
    return parse_proposal(read_proposal_text(path), path)


def read_proposal_text(path: Path | str) -> str:
    """Return the text of a file; ProposalError where it cannot be read."""
    try:
        return Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise ProposalError(f"'{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ProposalError(f"'{path}' is not JSON ({error}).") from error


def parse_proposal(text: str, path: Path | str) -> StageProposal:
    """Do what `read_proposal` does, with the text of the file."""
    try:
        return StageProposal.model_validate(json.loads(text))
    except ValidationError as error:
        problems = [
            f'  {".".join(map(str, e["loc"])) or "the whole"}: {e["msg"]}'
            for e in error.errors(include_url=False)
        ]
        lines = [f"'{path}' holds no valid stages:", *problems, 'Make it: grape stages propose.']
        raise ProposalError('\n'.join(lines)) from error
    except (ValueError, RecursionError) as error:
        raise ProposalError(
            f"'{path}' is not JSON ({error}). Make it anew: 'grape stages propose'."
        ) from error


def _planned(stage: ProposalStage) -> PlannedStage:
    definition = Stage(
        stage.number,
        stage.name,
        stage.description,
        stage.keypoints,
        stage.grasp,
        stage.release,
        (),
        stage.ends,
    )
    return PlannedStage(definition, Roles(stage.keypoints[0], ''.join(stage.keypoints[1:2]), ()))


def _checked(
    task: str,
    instruction: str,
    keypoints: Sequence[str],
    stages: tuple[ProposalStage, ...],
    origin: Origin,
) -> StageProposal:
    return StageProposal(
        task=task,
        instruction=instruction,
        keypoints=tuple(keypoints),
        stages=stages,
        origin=origin,
    )
