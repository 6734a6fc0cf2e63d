"""From what is asked for to the trial that is played: task, limits, and the start to restore."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from grape.action import RunEpisode

from grape_bringup.robot.initial_state import find_reference, next_init_state
from grape_bringup.robot.trial_config import DEFAULT_MAX_STEPS, TrialConfig
from grape_bringup.robot.trial_episode import Asked
from grape_bringup.robot.trial_flow import RefusedError, Trial

CONTROLLERS = ('policy', 'teleop')


def next_goal(config: TrialConfig, bags: Path) -> RunEpisode.Goal:
    """Return the goal of `trial/next`: the initial state whose turn it is, and a new name.

    Raises:
        RobotConfigError: there are no tasks.

    """
    task = config.next_task()
    state = next_init_state(bags, task, config.tasks[task].init_states, config.next.trials_each)
    now = datetime.now(UTC)
    return RunEpisode.Goal(
        task=task,
        init_state=state,
        seed=int(now.timestamp()),
        temperature=config.next.temperature,
        controller=config.next.controller,
        episode_id=f'{task.replace("/", "_")}_{state}_{now:%Y%m%dT%H%M%S}',
    )


def asked_of(goal: RunEpisode.Goal, config: TrialConfig, bags: Path) -> Asked:
    """Return the trial of a goal.

    Raises:
        RefusedError: no such controller, or a task that nothing is known of.

    """
    controller = goal.controller or 'policy'
    if controller not in CONTROLLERS:
        raise RefusedError(f"controller '{controller}' is not one of: {', '.join(CONTROLLERS)}")
    entry = config.tasks.get(goal.task)
    if entry is None and not goal.instruction:
        raise RefusedError(
            f"task '{goal.task}' is not in the trial configuration and comes without an "
            f'instruction. Known are: {", ".join(config.tasks) or "none"}'
        )
    trial = Trial(
        episode_id=goal.episode_id,
        task=goal.task,
        instruction=goal.instruction or entry.instruction,
        init_state=goal.init_state,
        max_steps=goal.max_steps or (entry.max_steps if entry else DEFAULT_MAX_STEPS),
        controller=controller,
    )
    has_start = goal.init_state >= 0
    reference = find_reference(bags, goal.task, goal.init_state) if has_start else None
    environment = dict(entry.environment) if entry else {}
    return Asked(trial, goal.seed, goal.temperature, environment, reference)


def reset_prompt(asked: Asked) -> str:
    """Return what the person is asked to do before a trial."""
    trial = asked.trial
    what = f"Task '{trial.instruction}'"
    if trial.init_state < 0:
        return f'{what}: put the scene back, then trial/ready.'
    if asked.reference is None:
        return (
            f'{what}: set up initial state {trial.init_state}; this is its first trial, and its '
            'start is what later ones restore. Then trial/ready.'
        )
    return (
        f'{what}: restore initial state {trial.init_state} as {asked.reference.episode_id} began '
        '(the ghost in trial/ghost), and drive the arm back. Then trial/ready.'
    )
