"""The declarative notation of cost programs: a list of costs, each of a kind with its numbers.

    costs:
      - {stage: 1, class: target, kind: distance, to: target}
      - {stage: 1, class: collision, kind: clearance, clearance_m: 0.1}
      - {stage: 2, class: path, kind: steps, to: receptacle, step_m: 0.01}

YAML or JSON. It is the form that a language model is asked for first: there is nothing in it that
could do anything. Each kind has one meaning, the Python text that `formula` returns, so both
notations are one program and run in the same sandbox. The kinds are in cost_kinds.py; an unknown
key is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grape_trainer.scoring.cost_form import REQUIRED_INPUTS, SIGNAL_INPUTS
from grape_trainer.scoring.cost_kinds import KINDS, Cost
from grape_trainer.scoring.cost_source import Problem, ProgramError

MAX_COSTS = 64


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')

    task: str = Field(default='', max_length=300)
    num_stages: int | None = Field(default=None, ge=1, le=99)
    costs: list[Annotated[Cost, Field(discriminator='kind')]] = Field(
        min_length=1, max_length=MAX_COSTS
    )


@dataclass(frozen=True)
class Rendered:
    """A declarative program as Python text, and where its functions stand in the document."""

    python: str
    lines: Mapping[str, int]  # function -> line of the document


def render(content: object, places: Mapping[str, list[int]]) -> Rendered:
    """Return the Python text that a declarative program means.

    Args:
        content: what the document holds (cost_document.py).
        places: where each of its values stands.

    Raises:
        ProgramError: an unknown key or kind, a value out of its range, a name given twice.

    """
    if isinstance(content, list):
        content, places = {'costs': content}, {f'costs.{k}': v for k, v in places.items() if k}
    try:
        document = _Document.model_validate(content)
    except ValidationError as error:
        raise ProgramError(_problem(each, places) for each in error.errors()) from error
    functions, lines, counts = [], {}, Counter()
    for index, cost in enumerate(document.costs):
        where = places.get(f'costs.{index}', [None, None])
        if document.num_stages is not None and cost.stage > document.num_stages:
            text = f'stage {cost.stage} of {document.num_stages} stages'
            raise ProgramError([Problem(text, *where)])
        counts[cost.stage, cost.cost_class] += 1
        number = cost.number or counts[cost.stage, cost.cost_class]
        name = f'stage{cost.stage}_{cost.cost_class}_constraint{number}'
        if name in lines:
            text = f"{name} is there twice; leave 'number' out or give another"
            raise ProgramError([Problem(text, *where)])
        lines[name] = where[0]
        functions.append(_function(name, cost.formula(), cost.note))
    return Rendered('\n\n'.join(functions) + '\n', lines)


def _function(name: str, formula: str, note: str) -> str:
    used = [signal for signal in SIGNAL_INPUTS if re.search(rf'\b{signal}\b', formula)]
    note = ' '.join(note.split())
    docstring = f'    {ascii(note)}\n' if note else ''
    return f'def {name}({", ".join((*REQUIRED_INPUTS, *used))}):\n{docstring}    return {formula}'


def _problem(error: Mapping, places: Mapping[str, list[int]]) -> Problem:
    """Return a problem at the value that pydantic means, or at what should have held it."""
    location = list(error['loc'])
    kind = location.pop(2) if len(location) > 2 and location[0] == 'costs' else None
    named = location[-1] if location and isinstance(location[-1], str) else ''
    message = error['msg'].removeprefix('Value error, ')
    if error['type'] == 'extra_forbidden':
        model = next((each for each in KINDS if kind in _kinds_of(each)), _Document)
        known = (field.alias or name for name, field in model.model_fields.items())
        message = f"'{named[:40]}' is unknown here; there are {', '.join(known)}"
    elif error['type'] == 'model_type':
        message = "expected 'costs:' with a list of costs"
    elif error['type'] == 'model_attributes_type':
        message = 'expected a cost: stage, class, kind and its numbers'
    elif named:
        message = f'{named}: {message}'
    while location and '.'.join(map(str, location)) not in places:
        location.pop()
    return Problem(message, *places.get('.'.join(map(str, location)), (None, None)))


def _kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields['kind'].annotation)
