"""All that a score is made from, read and checked once: objective, costs, stages, keypoints.

    setup = prepare(load_objective('generated').with_program(costs=Path('costs.yaml')))

It is plain data and goes into other processes; each runs the program in a sandbox of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from grape_episode.episode import EpisodeInfo
from grape_trainer.scoring.cost import CostProgram, Generated, cost_program
from grape_trainer.scoring.cost_file import CostFile, load_approved
from grape_trainer.scoring.cost_program import CostFunction
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.keypoint import KeypointSource
from grape_trainer.scoring.keypoint_names import make_source, source_content
from grape_trainer.scoring.keypoint_source import PerceivedSource
from grape_trainer.scoring.objective import Objective, ObjectiveError
from grape_trainer.scoring.objective_sections import ProgramSettings, TermSettings
from grape_trainer.scoring.stage import StagePlan
from grape_trainer.scoring.stage_proposal import StageProposal, choose_plan

BUILT_IN, APPROVED, UNAPPROVED = 'built-in', 'approved', 'unapproved'


@dataclass(frozen=True)
class ScoreSetup:
    """What prepare made of an objective."""

    objective: Objective  # without a template where the stages are proposed
    source: KeypointSource
    generated: Generated | None  # the program; None: built-in costs only
    proposal: StageProposal | None  # the stages; None: the template's
    approval: str  # built-in, approved or unapproved
    costs: CostProgram
    config_sha256: str  # of every setting, and of all files but the recorded ones

    @property
    def from_cameras(self) -> bool:
        """Whether keypoints come from pictures; SceneState is then not looked at."""
        return isinstance(self.source, PerceivedSource)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, in order."""
        stages = self.objective.template_stages if self.proposal is None else self.proposal.stages
        return tuple(stage.name for stage in stages)

    def plan(self, info: EpisodeInfo, keypoints: Sequence[str]) -> StagePlan:
        """Return the stages of an episode with these keypoints; StageError where it has none."""
        return choose_plan(self.proposal, info, keypoints, self.objective.template)


def prepare(objective: Objective) -> ScoreSetup:
    """Read and check what an objective names.

    Raises:
        ApprovalError: a program that was not approved, or that cannot be used.
        ObjectiveError: a program whose functions or stages do not fit the objective.
        KeypointError: files of clicks or numbers that cannot be used.
        SandboxError: no worker of the sandbox could be started.

    """
    source = make_source(objective.keypoints)
    generated, proposal, approval = None, None, BUILT_IN
    content = _settings_of(objective)
    if objective.program is not None:
        with CostSandbox() as sandbox:
            file, approved = load_approved(_named(objective), sandbox)
        proposal, approval = file.proposal, APPROVED if approved else UNAPPROVED
        if proposal is not None:
            objective = objective.model_copy(update={'template': None, 'stages': {}})
        generated = _generated(objective, file)
        terms = [item for each in generated.terms.values() for item in each.items()]
        content = _settings_of(objective) | {
            'program': [file.program.sha256, file.stages_sha256],
            'functions': {name: term.model_dump() for name, term in terms},
        }
    if objective.keypoints is not None:
        content['keypoints'] = source_content(objective.keypoints, source)
    text = json.dumps(content, sort_keys=True)
    return ScoreSetup(
        objective=objective,
        source=source,
        generated=generated,
        proposal=proposal,
        approval=approval,
        costs=cost_program(objective, generated),
        config_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _settings_of(objective: Objective) -> dict[str, object]:
    """Return all settings but those that name files, of which the contents count."""
    return objective.model_dump(mode='json', exclude={'program', 'keypoints'})


def _named(objective: Objective) -> ProgramSettings:
    """Return the program of an objective; ObjectiveError where it names no file."""
    if not objective.program.named:
        raise ObjectiveError(
            f"objective '{objective.name}' is for a cost program and names none. Give one with "
            "--costs or --stages, or in its section 'program'."
        )
    return objective.program


def _generated(objective: Objective, file: CostFile) -> Generated:
    """Return a program with the settings of its functions, by the number of their stage."""
    if file.proposal is None and objective.template is None:
        raise ObjectiveError(
            f"objective '{objective.name}' has no template and '{file.path}' no stages; give "
            'stages with --stages, or name a template.'
        )
    stages = objective.template_stages if file.proposal is None else file.proposal.stages
    numbers = {stage.number: stage.name for stage in stages}
    if 'sha256' in numbers.values():
        raise ObjectiveError("a stage is called 'sha256', as a column of the table is; rename it.")
    terms: dict[int, dict[str, TermSettings]] = {}
    for function in file.program.functions:
        if function.stage not in numbers:
            raise ObjectiveError(
                f"'{file.path}' has {function.name}, and there is no stage {function.stage}; the "
                f'stages are: {", ".join(f"{n} {name}" for n, name in numbers.items())}.'
            )
        terms.setdefault(function.stage, {})[function.name] = function_settings(
            objective, function
        )
    for number, settings in objective.program.overrides.items():
        functions = file.program.of_stage(number)
        known = {name for each in functions for name in (each.name, each.cost_class)}
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ObjectiveError(
                f"objective '{objective.name}' overrides {', '.join(unknown)} of stage {number}; "
                f"'{file.path}' has there: {', '.join(f.name for f in functions) or 'nothing'}."
            )
    return Generated(file.program, terms)


def function_settings(objective: Objective, function: CostFunction) -> TermSettings:
    """Return how a function counts: its own settings, its class's in its stage, its class's."""
    program = objective.program
    here = program.overrides.get(function.stage, {})
    for found in (here.get(function.name), here.get(function.cost_class)):
        if found is not None:
            return found
    if function.cost_class not in program.classes:
        raise ObjectiveError(
            f"objective '{objective.name}' does not say how {function.name} counts: its classes "
            f"are {', '.join(program.classes) or 'none'}. Add '{function.cost_class}'."
        )
    return program.classes[function.cost_class]
