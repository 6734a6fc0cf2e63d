"""Cost programs: text that computes costs, in one of two notations with the same meaning.

    program = load_program('costs.yaml', sandbox)
    costs = sandbox.evaluate(program, {1: grasp_states, 2: transport_states, 3: place_states})

Declarative (cost_notation.py; preferred) or a safe subset of Python (cost_python.py). The first is
turned into the second, and the second is checked and run in the sandbox (cost_sandbox.py); nothing
of a program is parsed or run in this process. The text as it was given and its sha256 are kept,
to be stored with every score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grape_trainer.scoring.cost_form import stage_name
from grape_trainer.scoring.cost_notation import render
from grape_trainer.scoring.cost_source import (
    DECLARATIVE,
    NOTATIONS,
    Problem,
    ProgramError,
    check_text,
    fenced_code,
    notation_of,
    read_text,
)

if TYPE_CHECKING:
    from grape_trainer.scoring.cost_sandbox import CostSandbox


@dataclass(frozen=True)
class CostFunction:
    """One cost function of a program."""

    name: str
    stage: int  # from 1
    cost_class: str  # target, path, collision or grasp
    number: int  # from 1
    line: int | None  # in the text as it was given
    inputs: tuple[str, ...]  # its parameters
    explanation: str  # its docstring's first line, or its note


@dataclass(frozen=True)
class Program:
    """A program that passed the static check."""

    functions: tuple[CostFunction, ...]
    notation: str  # python or declarative
    text: str  # as it was given
    python: str  # what runs; for a declarative program, what it means
    sha256: str  # of the text

    def of_stage(self, stage: int) -> tuple[CostFunction, ...]:
        """Return the functions of a stage, in the order of the text."""
        return tuple(function for function in self.functions if function.stage == stage)


@dataclass(frozen=True)
class Inspection:
    """What the static check found: a program, or the problems and what is known beside them."""

    functions: tuple[CostFunction, ...]
    problems: tuple[Problem, ...]
    notation: str
    text: str
    python: str

    @property
    def sha256(self) -> str:
        """Hash of the text as it was given."""
        return hashlib.sha256(self.text.encode('utf-8', 'surrogatepass')).hexdigest()

    def program(self, name: str = 'the cost program') -> Program:
        """Return the program; ProgramError where there are problems."""
        if self.problems:
            raise ProgramError(self.problems, name)
        return Program(self.functions, self.notation, self.text, self.python, self.sha256)


def load_program(path: Path | str, sandbox: CostSandbox) -> Program:
    """Read a program from a file, statically checked.

    Raises:
        ProgramError: it cannot be read, or is refused; the text says where and why.

    """
    path = Path(path)
    return inspect_text(read_text(path), sandbox, path=path).program(f"'{path}'")


def parse_program(text: str, sandbox: CostSandbox, notation: str | None = None) -> Program:
    """Return a program, statically checked.

    Args:
        text: the program; Markdown around its fenced code is overlooked.
        sandbox: where it is parsed.
        notation: 'python' or 'declarative'; None: by the fence, or by what it looks like.

    Raises:
        ProgramError: it is refused; the text says where and why.

    """
    return inspect_text(text, sandbox, notation).program()


def inspect_text(
    text: str, sandbox: CostSandbox, notation: str | None = None, path: Path | None = None
) -> Inspection:
    """Check a text statically; what is wrong with it is in the answer, it does not raise."""
    if notation is not None and notation not in NOTATIONS:
        raise ValueError(f"notation is '{notation}'; expected one of {', '.join(NOTATIONS)}")
    code, found = text, notation or ''
    try:
        check_text(text.removeprefix('\ufeff'))
        code, named = fenced_code(text.removeprefix('\ufeff'))
        found = notation or notation_of(code, named, path)
        if found == DECLARATIVE:
            rendered = render(*sandbox.read_document(code))
            functions, problems = sandbox.inspect(rendered.python)
            lines = rendered.lines
            return Inspection(_functions(functions, lines), problems, found, text, rendered.python)
        functions, problems = sandbox.inspect(code)
        return Inspection(_functions(functions), problems, found, text, code)
    except ProgramError as error:
        return Inspection((), error.problems, found, text, '')


def _functions(
    described: Sequence[dict], lines: dict[str, int] | None = None
) -> tuple[CostFunction, ...]:
    """Return the cost functions among those that the worker describes; helpers are left out."""
    functions = []
    for each in described:
        form = stage_name(each['name'])
        if form is not None:
            functions.append(
                CostFunction(
                    name=each['name'],
                    stage=form.stage,
                    cost_class=form.cost_class,
                    number=form.number,
                    line=each['line'] if lines is None else lines[each['name']],
                    inputs=tuple(each['inputs']),
                    explanation=each['explanation'],
                )
            )
    return tuple(functions)
