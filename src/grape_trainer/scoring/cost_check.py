"""Whether a cost program would be accepted: the static check, then a made-up trajectory.

The second finds what the text does not show: loops that do not end, indices that are not there,
costs that are not one finite number. A program that passes can still be refused for an episode,
which `CostSandbox.evaluate` then says with the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grape_trainer.scoring.cost_form import StageInputs
from grape_trainer.scoring.cost_program import CostFunction, Inspection, inspect_text
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.cost_source import Problem, ProgramError, read_text

TRIAL_STATES = 12
TRIAL_KEYPOINTS = 8  # target, receptacle and six obstacles


@dataclass(frozen=True)
class FunctionCheck:
    """One function: its problems, and what it cost on the made-up trajectory."""

    function: CostFunction
    problems: tuple[Problem, ...]
    lowest: float | None = None  # None: it was not run
    highest: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether nothing is wrong with this function."""
        return not self.problems


@dataclass(frozen=True)
class CheckReport:
    """Whether a program is accepted, and why not."""

    notation: str  # '' where the text was refused before it was known
    sha256: str  # '' where the file could not be read
    functions: tuple[FunctionCheck, ...]
    problems: tuple[Problem, ...]  # all, with and without a function
    walls: Mapping[str, bool]  # that the sandbox stood behind

    @property
    def accepted(self) -> bool:
        """Whether the program as a whole is accepted."""
        return not self.problems

    def as_json(self) -> dict[str, object]:
        """Return the report as plain data."""
        return {
            'accepted': self.accepted,
            'notation': self.notation,
            'sha256': self.sha256,
            'functions': [
                {
                    **vars(each.function),
                    'accepted': each.accepted,
                    'lowest': each.lowest,
                    'highest': each.highest,
                    'problems': [vars(problem) for problem in each.problems],
                }
                for each in self.functions
            ],
            'problems': [vars(problem) for problem in self.problems],
            'sandbox': dict(self.walls),
        }


def check_file(path: Path | str, sandbox: CostSandbox) -> CheckReport:
    """Check a file; what is wrong with it, or that it cannot be read, is in the report.

    Raises:
        SandboxError: no worker could be started.

    """
    try:
        text = read_text(path)
    except ProgramError as error:
        return CheckReport('', '', (), error.problems, {})
    return check_text(text, sandbox, path=Path(path))


def check_text(
    text: str, sandbox: CostSandbox, notation: str | None = None, path: Path | None = None
) -> CheckReport:
    """Check a program's text; what is wrong with it is in the report."""
    inspection = inspect_text(text, sandbox, notation, path)
    problems, ranges = inspection.problems, {}
    if not problems:
        ranges, problems = _tried(inspection, sandbox)
    functions = tuple(
        FunctionCheck(
            function,
            tuple(problem for problem in problems if problem.function == function.name),
            *ranges.get(function.name, (None, None)),
        )
        for function in inspection.functions
    )
    return CheckReport(
        inspection.notation, inspection.sha256, functions, problems, dict(sandbox.walls)
    )


def _tried(
    inspection: Inspection, sandbox: CostSandbox
) -> tuple[dict[str, tuple[float, float]], tuple[Problem, ...]]:
    """Run every function on the made-up trajectory; return (lowest, highest) of each."""
    program = inspection.program()
    trial = made_up_trial()
    try:
        outcome = sandbox.run(program, {f.stage: trial for f in program.functions})
    except ProgramError as error:
        return {}, error.problems
    ranges = {
        name: (float(costs.min()), float(costs.max())) for name, costs in outcome.costs.items()
    }
    return ranges, outcome.problems


def made_up_trial() -> StageInputs:
    """Return a pick-and-place: down to the target, up with it, over to the receptacle."""
    passed = np.linspace(0.0, 1.0, TRIAL_STATES)
    way = np.array([[0.40, 0.00, 0.30], [0.50, -0.20, 0.07], [0.50, -0.20, 0.30],
                    [0.61, 0.19, 0.30]])  # fmt: skip
    at = np.linspace(0.0, 1.0, len(way))
    end_effector = np.stack([np.interp(passed, at, way[:, axis]) for axis in range(3)], axis=1)
    held = passed >= at[1]
    keypoints = np.empty((TRIAL_STATES, TRIAL_KEYPOINTS, 3))
    keypoints[:, 0] = (0.50, -0.21, 0.05)
    keypoints[held, 0] = end_effector[held] - (0.0, 0.01, 0.02)
    keypoints[:, 1] = (0.60, 0.20, 0.01)
    for obstacle in range(2, TRIAL_KEYPOINTS):
        keypoints[:, obstacle] = (0.35 + 0.06 * obstacle, -0.32 + 0.11 * obstacle, 0.05)
    return StageInputs(
        end_effector=end_effector,
        keypoints=keypoints,
        held=held,
        collided=passed > 0.9,
        time_s=np.arange(TRIAL_STATES) / 20.0,
        progress=passed,
    )
