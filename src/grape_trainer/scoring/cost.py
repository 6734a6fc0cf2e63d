"""The costs of a trial's stages: constraints over their states, made into numbers that add up.

The constraints of a stage are the built-in ones of its template (cost_builtin.py,
cost_templates.py), or what a cost program says about it (cost_program.py). Each gives a cost for
each state, (N,), 0 or less where satisfied; an objective reduces it over the stage (last, mean,
max or min state) to c and normalises it:

    cost = weight * clip((c - threshold) / (worst - threshold), 0, 1)

No cost is a sum over steps, so the same motion costs the same at any control rate and R_ext does
not grow with an episode's length. The costs of a stage add up; a stage that was never reached
costs its worst, the sum of its weights.

A trial without SceneState says nothing about contacts: constraints that look at them are left
out of it with their weights, and named.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from grape_episode.episode import Episode
from grape_trainer.scoring.cost_builtin import (
    BUILTIN,
    NEED_CONTACTS,
    SHARED,
    Constraint,
    Signals,
)
from grape_trainer.scoring.cost_form import StageInputs
from grape_trainer.scoring.cost_program import Program
from grape_trainer.scoring.cost_templates import TEMPLATE_CONSTRAINTS
from grape_trainer.scoring.keypoint import KeypointTrack
from grape_trainer.scoring.objective import Objective, TermSettings
from grape_trainer.scoring.stage import Roles, Segmentation, StageSpan, control_rate_hz
from grape_trainer.scoring.stage_definition import declared_passable
from grape_trainer.scoring.stage_signals import ROBOT_BODIES
from grape_trainer.scoring.stage_templates import origin_of

if TYPE_CHECKING:
    from grape_trainer.scoring.cost_sandbox import CostSandbox

# Environments publish the gripper's own pose under this name; it is no obstacle.
GRIPPER_KEYPOINT = 'gripper'


class CostError(ValueError):
    """A cost that is not a finite number; the text names the constraint."""


@dataclass(frozen=True)
class Generated:
    """A cost program and how its functions count."""

    program: Program
    terms: Mapping[int, Mapping[str, TermSettings]]  # number of a stage -> function -> settings


@dataclass(frozen=True)
class TermCost:
    """One constraint over one stage."""

    name: str
    raw: float | None  # reduced over the stage, in the constraint's unit; None: never reached
    cost: float  # in [0, weight]


@dataclass(frozen=True)
class StageCost:
    """C of Eq. 8 for one stage, in [0, worst]."""

    stage: str
    reached: bool
    completed: bool
    cost: float
    worst: float
    terms: tuple[TermCost, ...]
    left_out: tuple[str, ...] = ()  # constraints that look at contacts, where none are recorded


@dataclass(frozen=True)
class CostProgram:
    """The text of all that computes an objective's costs, and its hash."""

    text: str
    sha256: str


def stage_costs(
    episode: Episode,
    track: KeypointTrack,
    segmentation: Segmentation,
    objective: Objective,
    generated: Generated | None = None,
    sandbox: CostSandbox | None = None,
) -> tuple[StageCost, ...]:
    """Return C of every stage of an episode.

    Args:
        episode: without SceneState, what looks at contacts is left out.
        track: its keypoints.
        segmentation: its stages.
        objective: the built-in constraints and their settings.
        generated: a program, whose functions replace the built-in constraints of their stages.
        sandbox: that the program runs in, in one request for all stages.

    Raises:
        CostError: a constraint gave a number that is not finite.
        KeypointError: a role that names no recorded keypoint.
        ProgramError: a function of the program failed; names function and state.
        SandboxError: no worker of the sandbox could be started.

    """
    found = list(states_of(episode, track, segmentation))
    contacts = episode.scene is not None
    curves: Mapping[str, np.ndarray] = {}
    if generated is not None:
        curves = _run(generated, found, contacts, sandbox)
    costs = []
    for span, states in found:
        settings = _settings(span.stage.number, span.stage.name, objective, generated)
        blind = () if contacts else _need_contacts(settings, objective, generated)
        known = {name: term for name, term in settings.items() if name not in blind}
        terms = tuple(_term(name, term, states, objective, curves) for name, term in known.items())
        costs.append(
            StageCost(
                stage=span.stage.name,
                reached=span.reached,
                completed=span.completed,
                cost=sum(term.cost for term in terms),
                worst=sum(term.weight for term in known.values()),
                terms=terms,
                left_out=tuple(blind),
            )
        )
    return tuple(costs)


def states_of(
    episode: Episode, track: KeypointTrack, segmentation: Segmentation
) -> Iterator[tuple[StageSpan, StageInputs | None]]:
    """Yield every stage with its states, None where it was never reached.

    Raises:
        KeypointError: a role that names no recorded keypoint.

    """
    time_s = np.arange(len(track.positions_m)) / control_rate_hz(episode)
    collided = _collided(episode, [span.roles for span in segmentation.spans])
    passable = declared_passable(episode.info.environment)
    for index, span in enumerate(segmentation.spans):
        if not span.reached:
            yield span, None
            continue
        states = span.states
        yield (
            span,
            StageInputs(
                end_effector=np.asarray(episode.ee_position_m)[states],
                keypoints=track.select(keypoint_names(track, span.roles, passable))[states],
                held=segmentation.holds[index][states],
                collided=collided[states],
                time_s=time_s[states] - time_s[states][0],
                progress=segmentation.progress[index][states],
            ),
        )


def cost_program(objective: Objective, generated: Generated | None = None) -> CostProgram:
    """Return the text of all costs: settings, constraints and what they call, the program."""
    parts = [f'# geometry: {objective.geometry.model_dump()}']
    replaced = {} if generated is None else generated.terms
    for stage in objective.template_stages:
        if stage.number in replaced:
            continue
        for name, term in objective.stages[stage.name].items():
            function = constraint_of(objective.template, name)
            called = '' if function.__name__ == name else f'# {name}:\n'
            parts.append(f'# {stage.name}: {term.model_dump()}\n{called}{_source(function)}')
    parts += [_source(shared) for shared in (*SHARED, _reduced, _normalised)]
    if generated is not None:
        terms = [item for each in replaced.values() for item in each.items()]
        parts += [f'# {name} of the program: {term.model_dump()}' for name, term in terms]
        program = generated.program
        parts.append(f'# the program, {program.notation}:\n{program.text}')
    text = '\n'.join(parts)
    return CostProgram(text, hashlib.sha256(text.encode()).hexdigest())


def constraint_of(template: str, name: str) -> Constraint:
    """Return the function of a constraint of a template or chain; StageError without one."""
    link, own = origin_of(template, name)
    found = TEMPLATE_CONSTRAINTS.get(link, {}).get(own, own)
    return BUILTIN[found] if isinstance(found, str) else found


@cache
def _source(function: Callable) -> str:
    return inspect.getsource(function)


def keypoint_names(
    track: KeypointTrack, roles: Roles, passable: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return target, receptacle (the target where there is none), and the obstacles."""
    besides = {*_allowed(roles), *roles.support, *passable, GRIPPER_KEYPOINT}
    obstacles = (name for name in track.names if name not in besides)
    return (roles.target, roles.receptacle or roles.target, *obstacles)


def _allowed(roles: Roles) -> set[str]:
    return {roles.target, roles.receptacle} - {''}


def _collided(episode: Episode, roles: Sequence[Roles]) -> np.ndarray:
    """Return (T+1,) whether something is recorded that should not touch.

    An environment knows the target and the receptacle of one goal. In a task of several, that the
    robot touches those of the others is no collision.
    """
    if episode.scene is None:
        return np.zeros(len(episode.ee_position_m), dtype=bool)
    goals = {name for each in roles for name in _allowed(each)} if len(set(roles)) > 1 else set()
    excused = {'|'.join(sorted((body, goal))) for body in ROBOT_BODIES for goal in goals}
    return np.array([bool(set(pairs) - excused) for pairs in episode.scene.collisions])


def _settings(
    number: int, name: str, objective: Objective, generated: Generated | None
) -> Mapping[str, TermSettings]:
    """Return the settings of a stage's constraints; none where nobody says anything about it."""
    if generated is not None and number in generated.terms:
        return generated.terms[number]
    return objective.stages.get(name, {})


def _need_contacts(
    names: Iterable[str], objective: Objective, generated: Generated | None
) -> tuple[str, ...]:
    """Return those constraints of one stage that look at recorded contacts."""
    functions = [] if generated is None else generated.program.functions
    inputs = {function.name: function.inputs for function in functions}
    return tuple(
        name
        for name in names
        if (
            'collided' in inputs[name]
            if name in inputs
            else constraint_of(objective.template, name).__name__ in NEED_CONTACTS
        )
    )


def _run(
    generated: Generated,
    stages: Iterable[tuple[StageSpan, StageInputs | None]],
    contacts: bool,
    sandbox: CostSandbox | None,
) -> Mapping[str, np.ndarray]:
    """Return the costs of a program's functions over the states of their stages."""
    if sandbox is None:
        raise ValueError('a cost program was given and no sandbox to run it in; give one')
    reached = {span.stage.number: states for span, states in stages if states is not None}
    names = [
        function.name
        for function in generated.program.functions
        if contacts or 'collided' not in function.inputs
    ]
    return sandbox.evaluate(generated.program, reached, names)


def _term(
    name: str,
    term: TermSettings,
    states: StageInputs | None,
    objective: Objective,
    curves: Mapping[str, np.ndarray],
) -> TermCost:
    if states is None:
        return TermCost(name, None, term.weight)
    if name in curves:
        costs = curves[name]
    else:
        signals = Signals(
            held=states.held,
            collided=states.collided,
            time_s=states.time_s,
            geometry=objective.geometry,
            progress=states.progress,
        )
        constraint = constraint_of(objective.template, name)
        costs = constraint(states.end_effector, states.keypoints, signals)
    raw = _reduced(costs, term.reduce)
    if not np.isfinite(raw):
        raise CostError(
            f"{name} is {raw} over this stage; expected a finite number. Look at the episode's "
            'end-effector positions and keypoints.'
        )
    return TermCost(name, raw, _normalised(raw, term))


def _reduced(costs: np.ndarray, reduce: str) -> float:
    if reduce == 'last':
        return float(costs[-1])
    return float({'mean': np.mean, 'max': np.max, 'min': np.min}[reduce](costs))


def _normalised(raw: float, term: TermSettings) -> float:
    share = (raw - term.threshold) / (term.worst - term.threshold)
    return term.weight * min(max(share, 0.0), 1.0)
