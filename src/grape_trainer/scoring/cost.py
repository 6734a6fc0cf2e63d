"""The costs of a trial's stages, after the paper's appendix E.2, vectorised over time.

A constraint is a function `stageN_<target|path|collision|grasp>_constraintM(end_effector,
keypoints, signals)`. It gets a stage's N states at once, end_effector (N, 3) and keypoints
(N, K, 3) in m in the robot base frame (z up), ordered as in the appendix: 0 the target, 1 the
receptacle, 2: the obstacles. It gives a cost for each state, (N,), 0 or less where satisfied.

An objective reduces it over the stage (last, mean, max or min state) to c and normalises it:

    cost = weight * clip((c - threshold) / (worst - threshold), 0, 1)

No cost is a sum over steps, so the same motion costs the same at any control rate and R_ext does
not grow with an episode's length. The costs of a stage add up; a stage that was never reached
costs its worst, the sum of its weights.

What differs from E.2: the carried target's own tracked position is compared with the receptacle
(E.2 uses the end effector, which says nothing after a drop); z is up (E.2 compares index 1); a
path is compared with the straight one of E.2.3 instead of being counted in 1 cm steps.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from grape_episode.episode import Episode
from grape_trainer.scoring.cost_form import StageInputs
from grape_trainer.scoring.cost_templates import TEMPLATE_CONSTRAINTS
from grape_trainer.scoring.keypoint import KeypointTrack
from grape_trainer.scoring.objective import GeometrySettings, Objective, TermSettings
from grape_trainer.scoring.stage import Roles, Segmentation, StageSpan, control_rate_hz
from grape_trainer.scoring.stage_signals import ROBOT_BODIES
from grape_trainer.scoring.stage_templates import origin_of

TARGET, RECEPTACLE, FIRST_OBSTACLE = 0, 1, 2
# Environments publish the gripper's own pose under this name; it is no obstacle.
GRIPPER_KEYPOINT = 'gripper'


class CostError(ValueError):
    """A cost that is not a finite number; the text names the constraint."""


@dataclass(frozen=True)
class Signals:
    """What else a constraint may look at, over the N states of its stage."""

    held: np.ndarray  # (N,) bool, the target is in the gripper
    collided: np.ndarray  # (N,) bool, SceneState.collisions is not empty
    time_s: np.ndarray  # (N,) since the stage began
    geometry: GeometrySettings
    progress: np.ndarray | None = None  # (N,) 0 .. 1, towards the event that ends the stage


Constraint = Callable[[np.ndarray, np.ndarray, Signals], np.ndarray]


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


@dataclass(frozen=True)
class CostProgram:
    """The text of all that computes an objective's costs, and its hash."""

    text: str
    sha256: str


def stage1_target_constraint1(end_effector, keypoints, signals):
    """Distance from the end effector to the target, m (E.2.1 stage 1)."""
    return _distance(end_effector, keypoints[:, TARGET])


def stage2_target_constraint1(end_effector, keypoints, signals):
    """Horizontal distance from the carried target to the receptacle, m (E.2.1 stage 2)."""
    return _distance(keypoints[:, TARGET, :2], keypoints[:, RECEPTACLE, :2])


def stage3_target_constraint1(end_effector, keypoints, signals):
    """Distance from the target to the receptacle it shall rest in or on, m (E.2.1 stage 3)."""
    return _distance(keypoints[:, TARGET], keypoints[:, RECEPTACLE])


def stage1_grasp_constraint1(end_effector, keypoints, signals):
    """Return 1 while the target is not held."""
    return 1.0 - signals.held


def stage2_grasp_constraint1(end_effector, keypoints, signals):
    """Return 1 while the target is not held: a drop on the way."""
    return 1.0 - signals.held


def stage3_grasp_constraint1(end_effector, keypoints, signals):
    """Return 1 while the target is still held: it has to be released."""
    return 1.0 * signals.held


def stage1_collision_constraint1(end_effector, keypoints, signals):
    """Return 1 while the end effector is not above the target (E.2.2 stage 1)."""
    return _below(end_effector, keypoints[:, TARGET], signals.geometry)


def stage1_collision_constraint2(end_effector, keypoints, signals):
    """Clearance missing to all obstacles, m (E.2.2 stage 2)."""
    return _clearance_missing(end_effector, keypoints, signals)


def stage1_collision_constraint3(end_effector, keypoints, signals):
    """Return 1 while the robot touches what is neither the target nor its support."""
    return 1.0 * signals.collided


def stage2_collision_constraint1(end_effector, keypoints, signals):
    """Clearance missing to all obstacles, m, of end effector or held target (E.2.2 stage 2)."""
    return _clearance_missing(end_effector, keypoints, signals)


def stage2_collision_constraint2(end_effector, keypoints, signals):
    """Return 1 while the robot or the held target touches what it should not."""
    return 1.0 * signals.collided


def stage3_collision_constraint1(end_effector, keypoints, signals):
    """Return 1 while the end effector is not above the receptacle's keypoint (E.2.2 stage 3)."""
    return _below(end_effector, keypoints[:, RECEPTACLE], signals.geometry)


def stage3_collision_constraint2(end_effector, keypoints, signals):
    """Clearance missing to all obstacles, m, of end effector or held target."""
    return _clearance_missing(end_effector, keypoints, signals)


def stage3_collision_constraint3(end_effector, keypoints, signals):
    """Return 1 while the robot or the held target touches what it should not."""
    return 1.0 * signals.collided


def stage1_path_constraint1(end_effector, keypoints, signals):
    """Path so far and what remains to the target, over the straight path, minus 1."""
    return _detour(end_effector, keypoints[:, TARGET], signals.geometry)


def stage1_path_constraint2(end_effector, keypoints, signals):
    """Time so far and what remains, over the time of the straight path, minus 1 (E.2.3)."""
    return _delay(end_effector, keypoints[:, TARGET], signals)


def stage2_path_constraint1(end_effector, keypoints, signals):
    """Path so far and what remains to the receptacle, over the straight path, minus 1."""
    return _detour(end_effector, keypoints[:, RECEPTACLE], signals.geometry)


def stage2_path_constraint2(end_effector, keypoints, signals):
    """Time so far and what remains, over the time of the straight path, minus 1 (E.2.3)."""
    return _delay(end_effector, keypoints[:, RECEPTACLE], signals)


def stage3_path_constraint1(end_effector, keypoints, signals):
    """Path so far and what remains to the receptacle, over the straight path, minus 1."""
    return _detour(end_effector, keypoints[:, RECEPTACLE], signals.geometry)


def stage3_path_constraint2(end_effector, keypoints, signals):
    """Time so far and what remains, over the time of the straight path, minus 1 (E.2.3)."""
    return _delay(end_effector, keypoints[:, RECEPTACLE], signals)


def stage_costs(
    episode: Episode, track: KeypointTrack, segmentation: Segmentation, objective: Objective
) -> tuple[StageCost, ...]:
    """Return C of every stage of an episode.

    Raises:
        CostError: a constraint gave a number that is not finite.
        KeypointError: a role that names no recorded keypoint.

    """
    costs = []
    for span, states in states_of(episode, track, segmentation):
        settings = objective.stages[span.stage.name]
        arrays = None
        if states is not None:
            signals = Signals(
                held=states.held,
                collided=states.collided,
                time_s=states.time_s,
                geometry=objective.geometry,
                progress=states.progress,
            )
            arrays = (states.end_effector, states.keypoints, signals)
        terms = tuple(
            _term(objective.template, name, term, arrays) for name, term in settings.items()
        )
        costs.append(_stage_cost(span, settings, terms))
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
    for index, span in enumerate(segmentation.spans):
        if not span.reached:
            yield span, None
            continue
        states = span.states
        yield (
            span,
            StageInputs(
                end_effector=np.asarray(episode.ee_position_m)[states],
                keypoints=track.select(_keypoint_names(track, span.roles))[states],
                held=segmentation.holds[index][states],
                collided=collided[states],
                time_s=time_s[states] - time_s[states][0],
                progress=segmentation.progress[index][states],
            ),
        )


def cost_program(objective: Objective) -> CostProgram:
    """Return the text of an objective's costs: settings, constraints and what they call."""
    parts = [f'# geometry: {objective.geometry.model_dump()}']
    for stage in objective.template_stages:
        for name, term in objective.stages[stage.name].items():
            function = constraint_of(objective.template, name)
            called = '' if function.__name__ == name else f'# {name}:\n'
            parts.append(f'# {stage.name}: {term.model_dump()}\n{called}{_source(function)}')
    parts += [_source(shared) for shared in _SHARED]
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


def _keypoint_names(track: KeypointTrack, roles: Roles) -> tuple[str, ...]:
    """Return target, receptacle (the target where there is none), and the obstacles."""
    besides = {*_allowed(roles), *roles.support, GRIPPER_KEYPOINT}
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


def _term(
    template: str,
    name: str,
    term: TermSettings,
    arrays: tuple[np.ndarray, np.ndarray, Signals] | None,
) -> TermCost:
    if arrays is None:
        return TermCost(name, None, term.weight)
    raw = _reduced(constraint_of(template, name)(*arrays), term.reduce)
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


def _stage_cost(
    span: StageSpan, settings: Mapping[str, TermSettings], terms: tuple[TermCost, ...]
) -> StageCost:
    return StageCost(
        stage=span.stage.name,
        reached=span.reached,
        completed=span.completed,
        cost=sum(term.cost for term in terms),
        worst=sum(term.weight for term in settings.values()),
        terms=terms,
    )


def _distance(a, b):
    return np.linalg.norm(a - b, axis=-1)


def _below(end_effector, keypoint, geometry):
    return 1.0 * (end_effector[:, 2] < keypoint[:, 2] - geometry.above_margin_m)


def _clearance_missing(end_effector, keypoints, signals):
    obstacles = keypoints[:, FIRST_OBSTACLE:]
    nearest = _distance(end_effector[:, None], obstacles)
    carried = _distance(keypoints[:, TARGET, None], obstacles)
    nearest = np.where(signals.held[:, None], np.minimum(nearest, carried), nearest)
    return np.maximum(signals.geometry.clearance_m - nearest, 0.0).sum(axis=1)


def _detour(end_effector, goal, geometry):
    steps = np.linalg.norm(np.diff(end_effector, axis=0), axis=-1)
    so_far = np.concatenate(([0.0], np.cumsum(steps)))
    remaining = _distance(end_effector, goal)
    return (so_far + remaining) / max(remaining[0], geometry.straight_floor_m) - 1.0


def _delay(end_effector, goal, signals):
    remaining = _distance(end_effector, goal)
    speed = signals.geometry.straight_speed_mps
    straight = max(remaining[0], signals.geometry.straight_floor_m)
    return (signals.time_s * speed + remaining) / straight - 1.0


_SHARED = (_distance, _below, _clearance_missing, _detour, _delay, _reduced, _normalised)

BUILTIN: Mapping[str, Constraint] = {
    constraint.__name__: constraint
    for constraint in (
        stage1_target_constraint1,
        stage1_grasp_constraint1,
        stage1_collision_constraint1,
        stage1_collision_constraint2,
        stage1_collision_constraint3,
        stage1_path_constraint1,
        stage1_path_constraint2,
        stage2_target_constraint1,
        stage2_grasp_constraint1,
        stage2_collision_constraint1,
        stage2_collision_constraint2,
        stage2_path_constraint1,
        stage2_path_constraint2,
        stage3_target_constraint1,
        stage3_grasp_constraint1,
        stage3_collision_constraint1,
        stage3_collision_constraint2,
        stage3_collision_constraint3,
        stage3_path_constraint1,
        stage3_path_constraint2,
    )
}
