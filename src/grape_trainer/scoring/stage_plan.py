"""Which stages a task has: a template, or a chain of them, from its goal or its instruction.

The environment declares its goal at START (EpisodeInfo.environment), in LIBERO's form: a list of
predicates with their arguments, [['in', 'soup_1', 'basket_1_contain_region'], ...]. Each predicate
is a link of the plan. Without a goal (a real robot) the instruction's verbs say which templates,
and the environment's roles who plays which part. A person may name the template instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grape_episode.episode import EpisodeInfo
from grape_trainer.scoring.stage_definition import (
    PlannedStage,
    Roles,
    StageError,
    StagePlan,
    declared_roles,
    declared_support,
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
        return _plan([template], [_declared(template, environment)], 'given')
    goals = goals_of(environment, info.instruction, keypoints)
    if template is not None:
        return _override(template, goals, environment)
    if goals:
        return _plan([goal.template for goal in goals], [goal.roles for goal in goals], 'goal')
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
    return _plan(templates, [_declared(templates[0], environment)], 'instruction')


def goals_of(
    environment: Mapping[str, object], instruction: str, keypoints: Sequence[str]
) -> tuple[Goal, ...]:
    """Return the goals that the environment declared, () where it declared none.

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
        goals.append(_goal(PREDICATES[name.lower()], arguments, environment, keypoints))
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
    """Return the recorded keypoint of a goal's argument.

    In this order: what the environment's 'parts' say, the keypoint of that very name (a region's
    own), the object whose region it is. The argument itself where none fits.
    """
    parts = environment.get('parts') or {}
    if isinstance(parts, Mapping) and argument in parts:
        return str(parts[argument])
    fits = [name for name in keypoints if argument == name or argument.startswith(f'{name}_')]
    return max(fits, key=len) if fits else argument


def _goal(
    template: str,
    arguments: Sequence[str],
    environment: Mapping[str, object],
    keypoints: Sequence[str],
) -> Goal:
    names = [keypoint_of(argument, environment, keypoints) for argument in arguments]
    receptacle = names[1] if template in NEED_RECEPTACLE and len(names) > 1 else ''
    # What the first goal's target rests on is no obstacle for the other links either.
    support = declared_support(declared_roles(environment))
    return Goal(template, Roles(names[0], receptacle, support))


def _refined(goal: Goal, environment: Mapping[str, object], instruction: str) -> Goal:
    """Return a single goal with the roles that the environment declared for it itself."""
    if goal.template == 'pick_place':
        template = 'stack' if templates_in(instruction) == ['stack'] else 'pick_place'
        roles = declared_roles(environment)
        complete = bool(roles.get('target') and roles.get('receptacle'))
        return Goal(template, Roles.from_environment(environment) if complete else goal.roles)
    return goal


def _override(
    template: str, goals: Sequence[Goal], environment: Mapping[str, object]
) -> StagePlan:
    links = link_names(template)
    if len(links) == 1:
        roles = [goal.roles for goal in goals if goal.template == template]
        roles = roles or [_declared(template, environment)]
        return _plan(links, roles[:1], 'given')
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
        chosen.append(match.roles)
    return _plan(links, chosen, 'given')


def _declared(template: str, environment: Mapping[str, object]) -> Roles:
    """Return the roles of a task of one link, as declared."""
    if template in NEED_RECEPTACLE:
        return Roles.from_environment(environment)
    roles = declared_roles(environment)
    if not roles.get('target'):
        raise StageError(
            f"the episode's environment declares no target; it has: "
            f"{', '.join(map(str, roles)) or 'nothing'}. Template '{template}' needs 'target' "
            '(the name of a keypoint) in the configuration that START carries.'
        )
    return Roles(str(roles['target']), '', declared_support(roles))


def _plan(templates: Sequence[str], roles: Sequence[Roles], reason: str) -> StagePlan:
    template = JOINT.join(templates)
    links = tuple(
        tuple(PlannedStage(stage, link_roles) for stage in stages)
        for stages, link_roles in zip(template_links(template), roles, strict=True)
    )
    return StagePlan(template, links, any_order=len(links) > 1, reason=reason)


def _goes_on(found: Sequence[str], name: str, clause: str) -> bool:
    """Return whether a clause is the second half of a carry: 'pick up a and place it in b'."""
    carried = found[-1:] in (['pick_place'], ['stack']) and name in NEED_RECEPTACLE
    return carried and re.search(r'\b(it|them)\b', clause) is not None
