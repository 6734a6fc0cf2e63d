"""The built-in stages of common tasks, as data, and chains of them for tasks of several goals.

Two shapes: what is carried (pick_place, stack) has the stages grasp, transport, place; what is
acted on where it stands (push_button, knock_down, open_close, turn_on) is approached and acted on.

A chain 'turn_on+pick_place' runs its links' stages one after the other. Their numbers go on, and
from the second link on their names end with the link's number: grasp_2, transport_2, place_2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from grape_trainer.scoring.stage_definition import Stage, StageError

JOINT = '+'


def _named(number: int, *names: str) -> tuple[str, ...]:
    return tuple(f'stage{number}_{name}' for name in names)


GRASP = Stage(
    1,
    'grasp',
    'reach the target and grasp it',
    ('target', 'obstacles'),
    grasp=True,
    release=False,
    constraints=_named(
        1,
        'target_constraint1',
        'grasp_constraint1',
        'collision_constraint1',
        'collision_constraint2',
        'collision_constraint3',
        'path_constraint1',
        'path_constraint2',
    ),
    ends='grasped',
)
TRANSPORT = Stage(
    2,
    'transport',
    'lift the target and carry it over the receptacle',
    ('target', 'receptacle', 'obstacles'),
    grasp=False,
    release=False,
    constraints=_named(
        2,
        'target_constraint1',
        'grasp_constraint1',
        'collision_constraint1',
        'collision_constraint2',
        'path_constraint1',
        'path_constraint2',
    ),
    ends='arrived',
)
PLACE = Stage(
    3,
    'place',
    'lower the target into or onto the receptacle and release it',
    ('target', 'receptacle', 'obstacles'),
    grasp=False,
    release=True,
    constraints=_named(
        3,
        'target_constraint1',
        'grasp_constraint1',
        'collision_constraint1',
        'collision_constraint2',
        'collision_constraint3',
        'path_constraint1',
        'path_constraint2',
    ),
    ends='placed',
)
PICK_PLACE = (GRASP, TRANSPORT, PLACE)
STACK = (
    GRASP,
    TRANSPORT,
    replace(
        PLACE,
        description='set the target on top of the receptacle and release it',
        constraints=(
            *_named(3, 'target_constraint1', 'target_constraint2', 'grasp_constraint1'),
            *_named(3, 'collision_constraint2', 'collision_constraint3'),
            *_named(3, 'path_constraint1', 'path_constraint2'),
        ),
        ends='stacked',
    ),
)


def _acted_on(approach: str, name: str, action: str, ends: str) -> tuple[Stage, ...]:
    """Return the two stages of a task that acts on its target where it stands."""
    return (
        Stage(
            1,
            'approach',
            approach,
            ('target', 'obstacles'),
            grasp=False,
            release=False,
            constraints=_named(
                1,
                'target_constraint1',
                'collision_constraint1',
                'collision_constraint2',
                'path_constraint1',
                'path_constraint2',
            ),
            ends='reached',
        ),
        Stage(
            2,
            name,
            action,
            ('target', 'obstacles'),
            grasp=False,
            release=False,
            constraints=_named(
                2, 'target_constraint1', 'collision_constraint1', 'collision_constraint2'
            ),
            ends=ends,
        ),
    )


TEMPLATES: Mapping[str, tuple[Stage, ...]] = {
    'pick_place': PICK_PLACE,
    'stack': STACK,
    'push_button': _acted_on('reach the button', 'press', 'push the button in', 'pressed'),
    'knock_down': _acted_on('reach the target', 'topple', 'make the target fall over', 'fallen'),
    'open_close': _acted_on(
        'reach the drawer, the door or its handle', 'move', 'move it open or shut', 'moved'
    ),
    'turn_on': _acted_on('reach the knob', 'turn', 'turn the knob', 'turned'),
}
# Those that bring the target to a place, and those that look at other events than grasps.
NEED_RECEPTACLE = frozenset(('pick_place', 'stack'))
NEED_MOTION = frozenset(TEMPLATES) - {'pick_place'}


def link_names(template: str) -> tuple[str, ...]:
    """Split a template's name into those of its links.

    Raises:
        StageError: a link that is no template; lists the choices.

    """
    links = tuple(template.split(JOINT))
    unknown = [link for link in links if link not in TEMPLATES]
    if unknown:
        raise StageError(
            f"template '{template}': there is no template {', '.join(map(repr, unknown))}; there "
            f"are: {', '.join(TEMPLATES)}, and chains of them such as 'open_close+pick_place'."
        )
    return links


@cache
def template_links(template: str) -> tuple[tuple[Stage, ...], ...]:
    """Return the stages of each link of a template, numbered and named through the chain.

    Raises:
        StageError: a link that is no template.

    """
    links: list[tuple[Stage, ...]] = []
    offset = 0
    for position, link in enumerate(link_names(template), start=1):
        links.append(tuple(_shifted(stage, offset, position) for stage in TEMPLATES[link]))
        offset += len(TEMPLATES[link])
    return tuple(links)


def template_stages(template: str) -> tuple[Stage, ...]:
    """Return all stages of a template or chain, in order."""
    return tuple(stage for link in template_links(template) for stage in link)


def chained_settings(
    templates: Sequence[str], settings: Sequence[Mapping[str, Mapping[str, object]]]
) -> dict[str, dict[str, object]]:
    """Return the settings of several templates' constraints under their names in the chain.

    Args:
        templates: each a template or a chain.
        settings: of each one, stage name -> constraint name -> anything.

    """
    stages = iter(template_stages(JOINT.join(templates)))
    renamed: dict[str, dict[str, object]] = {}
    for template, given in zip(templates, settings, strict=True):
        for own in template_stages(template):
            stage = next(stages)
            names = dict(zip(own.constraints, stage.constraints, strict=True))
            renamed[stage.name] = {names[key]: value for key, value in given[own.name].items()}
    return renamed


@cache
def origin_of(template: str, constraint: str) -> tuple[str, str]:
    """Return which template a chain's constraint is from, and its name there.

    Raises:
        StageError: the template has no such constraint.

    """
    for link, stages in zip(link_names(template), template_links(template), strict=True):
        for own, shifted in zip(TEMPLATES[link], stages, strict=True):
            if constraint in shifted.constraints:
                return link, own.constraints[shifted.constraints.index(constraint)]
    raise StageError(f"template '{template}' has no constraint '{constraint}'.")


def _shifted(stage: Stage, offset: int, position: int) -> Stage:
    """Return a stage as it is in the position-th link, after `offset` stages."""
    if position == 1:
        return stage
    number = stage.number + offset
    return replace(
        stage,
        number=number,
        name=f'{stage.name}_{position}',
        constraints=tuple(
            name.replace(f'stage{stage.number}_', f'stage{number}_', 1)
            for name in stage.constraints
        ),
    )
