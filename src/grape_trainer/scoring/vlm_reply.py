"""A model's reply, checked against its schema: stages, and costs as text that nobody runs here.

What is wrong with a reply is said in words that the model gets back. The costs stay text: whether
they may run is for the checker of cost programs (cost_program.py) and for a person to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from grape_trainer.scoring.cost_form import CLASSES
from grape_trainer.scoring.stage_events import EVENTS

MOST_STAGES = 12
MOST_PROBLEMS = 12  # said at once
_FENCE = re.compile(r'```[A-Za-z0-9_-]*[ \t]*\r?\n(.*?)```', re.DOTALL)


class ReplyError(ValueError):
    """A reply that is not of the form asked for; the text is for the model."""


def _as_text(value: object) -> object:
    """Take a declarative cost, a JSON object, as its text; anything else as it is."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid', strict=True)


class ProposedConstraint(_Reply):
    """One cost of one stage."""

    stage: int = Field(ge=1, le=MOST_STAGES)
    cost_class: Literal[CLASSES] = Field(alias='class')
    notation: Literal['declarative', 'python']
    text: Annotated[str, BeforeValidator(_as_text)] = Field(min_length=1, max_length=4000)

    @model_validator(mode='after')
    def _of_its_notation(self) -> ProposedConstraint:
        if self.notation == 'declarative':
            self.entry()
        elif not re.search(rf'\bdef stage{self.stage}_{self.cost_class}_constraint', self.text):
            raise ValueError(
                f'text defines no function stage{self.stage}_{self.cost_class}_constraintM'
            )
        return self

    def entry(self) -> dict[str, Any]:
        """Return a declarative cost with its stage and class; ValueError where it is none."""
        try:
            content = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'text is no JSON object ({type(error).__name__})') from error
        if not isinstance(content, dict) or 'kind' not in content:
            raise ValueError("text is no JSON object with a 'kind'")
        place = {'stage': self.stage, 'class': self.cost_class}
        wrong = [key for key, value in place.items() if content.get(key, value) != value]
        if wrong:
            raise ValueError(f'text has another {" and ".join(wrong)} than the constraint')
        return place | content


class ProposedStage(_Reply):
    """One stage of Eq. 7."""

    number: int = Field(ge=1, le=MOST_STAGES)
    name: str = Field(pattern=r'^[a-z][a-z0-9_]{0,39}$')
    description: str = Field(min_length=1, max_length=300)
    keypoints: tuple[int, ...] = Field(min_length=1, max_length=20, strict=False)
    grasp: bool
    release: bool
    ends: Literal[tuple(EVENTS)] | None = None
    constraints: tuple[ProposedConstraint, ...] = Field(min_length=1, max_length=16, strict=False)

    @property
    def event(self) -> str:
        """The event that ends the stage: as said, or what grasp and release come to."""
        if self.ends is not None:
            return self.ends
        if self.grasp:
            return 'grasped'
        placed = len(self.keypoints) > 1
        if self.release:
            return 'placed' if placed else 'released'
        return 'arrived' if placed else 'reached'

    @model_validator(mode='after')
    def _agrees(self) -> ProposedStage:
        if self.grasp and self.release:
            raise ValueError('it grasps and releases; split it into two stages')
        if self.grasp and self.event != 'grasped':
            raise ValueError(f"grasp is true, but it ends '{self.ends}'; expected 'grasped'")
        if self.event in ('arrived', 'placed', 'stacked') and len(self.keypoints) < 2:
            raise ValueError(f"a stage that ends '{self.event}' needs two keypoints: what, where")
        other = [c.stage for c in self.constraints if c.stage != self.number]
        if other:
            raise ValueError(f'a constraint of stage {other[0]} stands in stage {self.number}')
        return self


class ProposedStages(_Reply):
    """All that a model is asked for."""

    stages: tuple[ProposedStage, ...] = Field(min_length=1, max_length=MOST_STAGES, strict=False)

    @model_validator(mode='after')
    def _in_order(self) -> ProposedStages:
        numbers = [stage.number for stage in self.stages]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f'the numbers of the stages are {numbers}; expected 1, 2, 3, ...')
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f'the names of the stages repeat: {", ".join(names)}')
        notations = {c.notation for stage in self.stages for c in stage.constraints}
        if len(notations) > 1:
            raise ValueError('two notations are mixed; write all constraints in one')
        return self

    @property
    def program_text(self) -> str:
        """The costs of all stages as one cost program, unchecked text."""
        return program_text([c for stage in self.stages for c in stage.constraints])


def program_text(constraints: Sequence[ProposedConstraint]) -> str:
    """Return the text of a cost program of these costs, all of one notation; it is unchecked."""
    if constraints[0].notation == 'declarative':
        return json.dumps({'costs': [c.entry() for c in constraints]}, indent=1) + '\n'
    return '\n\n'.join(c.text.strip('\n') for c in constraints) + '\n'


def parse_reply(text: str, keypoints: int) -> ProposedStages:
    """Return what a model proposes.

    Args:
        text: its reply; prose and fences around the JSON are overlooked.
        keypoints: how many there are.

    Raises:
        ReplyError: no JSON, or JSON of another form; says each problem and its place.

    """
    try:
        found = ProposedStages.model_validate(_json_in(text))
    except ValidationError as error:
        raise ReplyError(_problems(error)) from error
    for stage in found.stages:
        wrong = [index for index in stage.keypoints if not 0 <= index < keypoints]
        if wrong:
            raise ReplyError(
                f'stages.{stage.number - 1}.keypoints: there is no keypoint {wrong[0]}; there are '
                f'0 to {keypoints - 1}.'
            )
    return found


def _json_in(text: str) -> object:
    """Return the JSON object of a reply: the whole, the fenced, or the first that there is."""
    fenced = [match.group(1) for match in _FENCE.finditer(text)]
    start = text.find('{')
    candidates = [text, *fenced, text[start:] if start >= 0 else '']
    for candidate in candidates:
        try:
            content, _ = json.JSONDecoder().raw_decode(candidate.strip())
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            return content
    raise ReplyError(
        'There is no JSON object in your reply; expected one object with "stages", nothing else.'
    )


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False)[:MOST_PROBLEMS]:
        place = '.'.join(str(part) for part in problem['loc']) or 'the whole'
        lines.append(f'{place}: {problem["msg"].removeprefix("Value error, ")}')
    more = error.error_count() - len(lines)
    return '\n'.join([*lines, *([f'... and {more} more'] if more > 0 else [])])
