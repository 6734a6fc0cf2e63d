"""What a stage is (GRAPE Eq. 7), who plays which part in it, and what a plan of stages is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class StageError(ValueError):
    """An episode that cannot be cut into stages; the text says what it lacks."""


@dataclass(frozen=True)
class Stage:
    """One stage of a task; constraints are the cost terms that cost.py knows for it."""

    number: int  # from 1, as in the paper's stageN_..._constraintM
    name: str
    description: str
    keypoints: tuple[str, ...]  # roles
    grasp: bool  # ends with a grasp
    release: bool  # ends with a release
    constraints: tuple[str, ...]
    ends: str  # the event that ends it, a name in stage_events.EVENTS or JOINT_EVENTS


@dataclass(frozen=True)
class Roles:
    """Which recorded keypoint plays which part in the task."""

    target: str
    receptacle: str  # '' where the task has none
    support: tuple[str, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, object]) -> Roles:
        """Read the roles that the environment declared at START (EpisodeInfo.environment).

        They stand under 'roles' or at the top level: target, receptacle, support (a name or a
        list of names).

        Raises:
            StageError: target or receptacle missing.

        """
        roles = declared_roles(environment)
        absent = [key for key in ('target', 'receptacle') if not roles.get(key)]
        if absent:
            raise StageError(
                f"the episode's environment declares no {' and no '.join(absent)}; it has: "
                f"{', '.join(map(str, roles)) or 'nothing'}. Pick-and-place needs 'target' and "
                "'receptacle' (names of keypoints) in the configuration that START carries."
            )
        return cls(str(roles['target']), str(roles['receptacle']), declared_support(roles))


@dataclass(frozen=True)
class PlannedStage:
    """A stage and who plays which part in it."""

    stage: Stage
    roles: Roles


@dataclass(frozen=True)
class StagePlan:
    """The stages of one task: links, one for each goal, each a run of stages in order."""

    template: str  # 'turn_on+pick_place'; 'proposal' where a VLM or a person proposed the stages
    links: tuple[tuple[PlannedStage, ...], ...]
    any_order: bool  # whether the links may be done in another order than this one
    reason: str  # what it was picked from, for people

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        """All stages, in the order of the plan."""
        return tuple(stage for link in self.links for stage in link)


def declared_roles(environment: Mapping[str, object]) -> Mapping[str, object]:
    """Return the mapping that declares the roles; StageError where it is none."""
    roles = environment.get('roles', environment)
    if not isinstance(roles, Mapping):
        raise StageError(f"the environment's 'roles' is {roles!r}; expected a mapping.")
    return roles


def declared_support(roles: Mapping[str, object]) -> tuple[str, ...]:
    """Return what the target rests on at first, a name or a list of names, as names."""
    support = roles.get('support') or ()
    return (support,) if isinstance(support, str) else tuple(support)


def declared_passable(environment: Mapping[str, object]) -> frozenset[str]:
    """Return the keypoints that are no obstacles: regions, and what the goal acts on."""
    return frozenset(map(str, environment.get('not_obstacles') or ()))
