"""Which stages a task has: a template, or a chain of them, from its goal or its instruction.

The environment declares its goal at START (EpisodeInfo.environment), in LIBERO's form: a list of
predicates with their arguments, [['in', 'soup_1', 'basket_1_contain_region'], ...]. Each predicate
is a link of the plan. Without a goal (a real robot) the instruction's verbs say which templates,
and the environment's roles who plays which part. A person may name the template instead.

To open and to close end with events of their own where the environment declares the joint of what
is acted on (stage_part.py); without one there is only 'moved', which knows no direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from grape_episode.episode import EpisodeInfo
from grape_trainer.scoring.stage_definition import (
    PlannedStage,
    Roles,
    Stage,
    StageError,
    StagePlan,
    declared_roles,
    declared_support,
)
from grape_trainer.scoring.stage_part import (
    AIMED_EVENTS,
    Joint,
    aim_of,
    declared_joint,
    declared_parts,
)
from grape_trainer.scoring.stage_templates import (
    JOINT,
    NEED_RECEPTACLE,
    link_names,
    template_links,
)

# Goal predicates (LIBERO's, lower case) and the template that reaches them.
PREDICATES: Mapping[str, str] = {
    'in': 'pick_place',
    'on': 'pick_place',
    'open': 'open_close',
    'close': 'open_close',
    'turnon': 'turn_on',
    'turnoff': 'turn_on',
}
# Verbs of an instruction and their template; the first that fits a clause counts.
VERBS: tuple[tuple[str, str], ...] = (
    (r'\b(push|press|hit|tap)\b.*\b(button|key|switch|bell)\b', 'push_button'),
    (r'\b(knock|tip|topple|push)\b.*\b(down|over)\b|\btopple\b', 'knock_down'),
    (r'\bstack\b', 'stack'),
    (r'\b(turn|switch)\b.*\b(on|off)\b|\b(turn|rotate)\b.*\b(knob|dial|valve)\b', 'turn_on'),
    (r'\b(open|close|shut)\b', 'open_close'),
    (r'\b(pick|put|place|move|bring|take|lift|drop)\b', 'pick_place'),
)


@dataclass(frozen=True)
class Goal:
    """One link of a task: a template and who plays which part."""

    template: str
    roles: Roles
    aim: str = ''  # the predicate to reach, where it has a direction: open, close, turnon, turnoff


def plan_for(
    info: EpisodeInfo, keypoints: Sequence[str], template: str | None = None
) -> StagePlan:
    """Return the plan of an episode.

    Args:
        info: its instruction and what the environment declared.
        keypoints: names of the recorded keypoints.
        template: take this template or chain, whatever the goal says; None: pick one.

    Raises:
        StageError: nothing says what the task is, or the template does not fit the goal.

    """
    environment = info.environment
    if template in NEED_RECEPTACLE:
        return _plan([_declared(template, info)], environment, 'given')
    goals = goals_of(environment, info.instruction, keypoints)
    if template is not None:
        return _override(template, goals, info)
    if goals:
        return _plan(goals, environment, 'goal')
    templates = templates_in(info.instruction)
    if not templates:
        raise StageError(
            f"nothing says which stages '{info.instruction}' has: the environment declares no "
            f'goal, and no verb of the instruction is known. Name a template: '
            f'{", ".join(sorted({name for _, name in VERBS}))}.'
        )
    if len(templates) > 1:
        raise StageError(
            f"'{info.instruction}' is {JOINT.join(templates)}, and the environment declares the "
            'roles of one part only. Declare a goal at START (docs/reference/stages.md).'
        )
    return _plan([_declared(templates[0], info)], environment, 'instruction')


def goals_of(
    environment: Mapping[str, object], instruction: str, keypoints: Sequence[str]
) -> tuple[Goal, ...]:
    """Return the goals that the environment declared, () where it declared none.

    A region that is to be filled and whose drawer is shut is to be opened first. Of several goals,
    those that hold from the start are no stages.

    Raises:
        StageError: a predicate that no template reaches, or one without arguments.

    """
    declared = environment.get('goal') or ()
    if not isinstance(declared, list | tuple):
        raise StageError(
            f"the environment's 'goal' is {declared!r}; expected a list such as [['in', 'soup_1', "
            "'basket_1']]."
        )
    goals = []
    for predicate in declared:
        name, *arguments = [str(part) for part in predicate] or ['']
        if name.lower() not in PREDICATES or not arguments:
            raise StageError(
                f'the goal {list(predicate)!r} has no template; there are templates for: '
                f'{", ".join(PREDICATES)}. Name a template for the whole task.'
            )
        goals += _goals(name.lower(), arguments, environment, keypoints)
    if len(goals) > 1:
        goals = [goal for goal in goals if not _holds(goal, environment)] or goals
    if len(goals) == 1:
        goals = [_refined(goals[0], environment, instruction)]
    return tuple(goals)


def templates_in(instruction: str) -> list[str]:
    """Return the template of each clause of an instruction; clauses without a verb have none."""
    found = []
    for clause in re.split(r',|;|\bthen\b|\band\b', instruction.lower()):
        names = [name for pattern, name in VERBS if re.search(pattern, clause)]
        if names and not _goes_on(found, names[0], clause):
            found.append(names[0])
    return found


def keypoint_of(argument: str, environment: Mapping[str, object], keypoints: Sequence[str]) -> str:
    """Return the recorded keypoint of a goal's argument that is acted on.

    In this order: what the environment's 'parts' say, the keypoint of that very name (a region's
    own), the object whose region it is. The argument itself where none fits.
    """
    return declared_parts(environment).get(argument) or _place_of(argument, keypoints)


def _place_of(argument: str, keypoints: Sequence[str]) -> str:
    """Return the recorded keypoint of an argument that is carried, or that something is put in."""
    fits = [name for name in keypoints if argument == name or argument.startswith(f'{name}_')]
    return max(fits, key=len) if fits else argument


def _goals(
    predicate: str,
    arguments: Sequence[str],
    environment: Mapping[str, object],
    keypoints: Sequence[str],
) -> list[Goal]:
    """Return the goal of a predicate, after that of opening what it is to be put in."""
    template = PREDICATES[predicate]
    # What the first goal's target rests on is no obstacle for the other links either.
    support = declared_support(declared_roles(environment))
    if template not in NEED_RECEPTACLE:
        target = keypoint_of(arguments[0], environment, keypoints)
        return [Goal(template, Roles(target, '', support), predicate)]
    places = [_place_of(argument, keypoints) for argument in arguments]
    goals = [Goal(template, Roles(places[0], ''.join(places[1:2]), support))]
    if len(arguments) > 1 and arguments[1] in declared_parts(environment):
        opened = _goals('open', arguments[1:2], environment, keypoints)[0]
        if _joint_of(opened, environment) is not None and not _holds(opened, environment):
            goals.insert(0, opened)
    return goals


def _joint_of(goal: Goal, environment: Mapping[str, object]) -> Joint | None:
    """Return the joint that tells a goal's direction, None where none is declared."""
    joint = declared_joint(environment, goal.roles.target)
    return joint if joint is not None and goal.aim in joint.reached else None


def _holds(goal: Goal, environment: Mapping[str, object]) -> bool:
    """Return whether a goal is declared to be reached at the first state."""
    joint = _joint_of(goal, environment)
    return joint is not None and bool(joint.beyond(joint.value, goal.aim))


def _refined(goal: Goal, environment: Mapping[str, object], instruction: str) -> Goal:
    """Return a single goal with the roles that the environment declared for it itself."""
    if goal.template == 'pick_place':
        template = 'stack' if templates_in(instruction) == ['stack'] else 'pick_place'
        roles = declared_roles(environment)
        complete = bool(roles.get('target') and roles.get('receptacle'))
        return Goal(template, Roles.from_environment(environment) if complete else goal.roles)
    return goal


def _override(template: str, goals: Sequence[Goal], info: EpisodeInfo) -> StagePlan:
    environment, links = info.environment, link_names(template)
    if len(links) == 1:
        fits = [goal for goal in goals if goal.template == template]
        return _plan(fits[:1] or [_declared(template, info)], environment, 'given')
    remaining = list(goals)
    chosen = []
    for link in links:
        match = next((goal for goal in remaining if goal.template == link), None)
        if match is None:
            raise StageError(
                f"template '{template}' does not fit the goal of the episode, which is "
                f'{JOINT.join(goal.template for goal in goals) or "not declared"}. Score it with '
                'an objective of that template, or of one of its links.'
            )
        remaining.remove(match)
        chosen.append(match)
    return _plan(chosen, environment, 'given')


def _declared(template: str, info: EpisodeInfo) -> Goal:
    """Return a task of one link, with the declared roles and the direction of its verb."""
    environment = info.environment
    if template in NEED_RECEPTACLE:
        return Goal(template, Roles.from_environment(environment))
    roles = declared_roles(environment)
    if not roles.get('target'):
        raise StageError(
            f"the episode's environment declares no target; it has: "
            f"{', '.join(map(str, roles)) or 'nothing'}. Template '{template}' needs 'target' "
            '(the name of a keypoint) in the configuration that START carries.'
        )
    target = str(roles['target'])
    target = declared_parts(environment).get(target, target)
    aim = aim_of(info.instruction)
    aim = aim if PREDICATES.get(aim) == template else ''
    return Goal(template, Roles(target, '', declared_support(roles)), aim)


def _plan(goals: Sequence[Goal], environment: Mapping[str, object], reason: str) -> StagePlan:
    template = JOINT.join(goal.template for goal in goals)
    links = tuple(
        tuple(PlannedStage(_aimed(stage, goal, environment), goal.roles) for stage in stages)
        for stages, goal in zip(template_links(template), goals, strict=True)
    )
    return StagePlan(template, links, any_order=len(links) > 1, reason=reason)


def _aimed(stage: Stage, goal: Goal, environment: Mapping[str, object]) -> Stage:
    """Return a stage that ends with the event of its goal's direction, if a joint tells it."""
    if stage.ends in ('moved', 'turned') and _joint_of(goal, environment) is not None:
        return replace(stage, ends=AIMED_EVENTS[goal.aim])
    return stage


def _goes_on(found: Sequence[str], name: str, clause: str) -> bool:
    """Return whether a clause is the second half of a carry: 'pick up a and place it in b'."""
    carried = found[-1:] in (['pick_place'], ['stack']) and name in NEED_RECEPTACLE
    return carried and re.search(r'\b(it|them)\b', clause) is not None
