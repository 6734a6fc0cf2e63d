"""Recorded trials for PPO, GRPO and TGRPO: whose they are, and their rewards.

These methods compare the policy with the one that acted. So a trial counts where the policy and
adapter of its bag are those that training starts from; others are refused, left out or, by name,
kept (their recorded log-probabilities stay the denominators of the ratios).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from grape_episode.bag import find_bags, read_episode, read_info
from grape_episode.episode import Episode, EpisodeInfo, policy_steps
from grape_episode.label import effective_outcome
from grape_episode.outcome import Outcome
from grape_policy_node.action_tokens import ACTION_DIMS
from grape_trainer.dataset import DataError, bag_sha256, data_hash
from grape_trainer.objective.sparse_reward import (
    grasp_hold_rewards,
    stage_rewards,
    success_rewards,
)
from grape_trainer.scoring.keypoint import KeypointError, track_from_scene
from grape_trainer.scoring.objective import Objective
from grape_trainer.scoring.stage import StageError, control_rate_hz, segment_plan
from grape_trainer.scoring.stage_plan import plan_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RlTrial:
    """One trial to learn from, T control steps.

    `on_policy`: the policy and adapter that acted are those that training starts from.
    """

    bag: Path
    sha256: str
    task: str
    init_state: int
    instruction: str
    success: bool
    on_policy: bool
    rewards: torch.Tensor  # (T,) float32
    log_probs: torch.Tensor  # (T, 7) float32, as recorded (temperature 1, full vocabulary)

    @property
    def state(self) -> tuple[str, int]:
        """Its task and initial state."""
        return self.task, self.init_state


@dataclass(frozen=True)
class Actor:
    """Who is to have acted: the policy folder's sha256 and the adapter's id."""

    policy_sha256: str
    adapter_id: str

    def acted(self, info: EpisodeInfo) -> bool:
        """Return whether it played an episode; an adapter's folder may have been renamed."""
        policy = info.policy.get('policy_sha256') or self.policy_sha256
        weights = (name.rpartition('-')[2] for name in (info.adapter_id, self.adapter_id))
        return policy == self.policy_sha256 and len(set(weights)) == 1


def choose_bags(folders: Sequence[Path], actor: Actor, other: str) -> dict[Path, bool]:
    """Return the bags below folders to learn from, and whether the actor played them.

    Args:
        folders: bags, or folders of bags; errors and interrupted episodes are left out.
        actor: who is to have acted.
        other: what becomes of others' trials: 'refuse', 'leave_out' or 'keep'.

    Raises:
        DataError: no bag ended in success or failure; others' trials and 'refuse', or none left.

    """
    bags = find_bags(folders)
    decided = [b for b in bags if effective_outcome(b) in (Outcome.SUCCESS, Outcome.FAILURE)]
    if not decided:
        raise DataError(
            f'{", ".join(map(str, folders))} holds {len(bags)} bags, none a success or failure. '
            "Record trials with 'grape collect'."
        )
    if len(decided) < len(bags):
        log.info(
            '%d of %d bags are errors or interrupted; they are left out',
            len(bags) - len(decided), len(bags),
        )  # fmt: skip
    infos = {bag: read_info(bag) for bag in decided}
    own = {bag: actor.acted(info) for bag, info in infos.items()}
    _judge([info for bag, info in infos.items() if not own[bag]], len(infos), actor, other)
    chosen = {bag: acted for bag, acted in own.items() if acted or other == 'keep'}
    _warn_of_temperatures([infos[bag] for bag in chosen])
    return chosen


def read_trials(
    chosen: Mapping[Path, bool],
    reward: str,
    objective: Objective,
    on_trial: Callable[[int], None] = lambda _: None,
) -> list[RlTrial]:
    """Read trials with their rewards.

    Args:
        chosen: of `choose_bags`.
        reward: 'grasp_hold', 'grasp_hold_difference', 'stage' or 'success'.
        objective: its segmentation finds grasps and stages.
        on_trial: called with the number of trials done.

    Raises:
        DataError: a bag without recorded log-probabilities, or without such a reward.

    """
    found, bare = [], 0
    for bag, on_policy in chosen.items():
        episode, success = read_episode(bag, images=False), _succeeded(bag)
        bare += episode.scene is None and reward != 'success'
        try:
            rewards = trial_rewards(episode, success, reward, objective)
        except (StageError, KeypointError, ValueError) as error:
            raise DataError(f"'{bag}' has no reward '{reward}': {error}") from error
        info = episode.info
        found.append(
            RlTrial(
                bag=bag,
                sha256=bag_sha256(bag),
                task=info.task,
                init_state=info.init_state,
                instruction=info.instruction,
                success=success,
                on_policy=on_policy,
                rewards=torch.from_numpy(rewards).float(),
                log_probs=_log_probs(episode),
            )
        )
        on_trial(len(found))
    if bare:
        log.warning('%d of %d trials recorded no scene: only success pays', bare, len(found))
    return found


def trials_hash(chosen: Mapping[Path, bool]) -> str:
    """Return one sha256 over the recordings and outcomes (labels count) of bags."""
    return data_hash([f'{bag_sha256(bag)} {_succeeded(bag)}' for bag in chosen])


def trial_rewards(
    episode: Episode, success: bool, reward: str, objective: Objective
) -> np.ndarray:
    """Return (T,) float64 rewards; without a scene those of success alone."""
    steps = len(episode.gripper_command)
    if reward == 'success' or episode.scene is None:
        return success_rewards(steps, success)
    track = track_from_scene(episode.scene)
    plan = plan_for(episode.info, track.names, objective.template)
    found = segment_plan(episode, track, plan, objective.segmentation, objective.motion)
    if reward == 'stage':
        return stage_rewards(found, success)
    rate_hz = control_rate_hz(episode)
    return grasp_hold_rewards(found.held, success, rate_hz, reward == 'grasp_hold_difference')


def _log_probs(episode: Episode) -> torch.Tensor:
    found = np.asarray(episode.token_log_probs, dtype=np.float32)
    if len(found) and not policy_steps(episode).all():
        raise DataError(
            f"'{episode.path}': a person or the guard took {int((~policy_steps(episode)).sum())} "
            'of its steps; returns and advantages need trials that the policy played alone. '
            'Leave it out (TPO, DPO and KTO take it).'
        )
    expected = (len(episode.gripper_command), ACTION_DIMS)
    if found.shape != expected:
        raise DataError(
            f"'{episode.path}' has log-probabilities of shape {found.shape}; expected {expected}, "
            'of the tokens that a policy sampled. Leave out the trials of experts and of served '
            'policies without log-probabilities.'
        )
    return torch.from_numpy(found)


def _succeeded(bag: Path) -> bool:
    return effective_outcome(bag) == Outcome.SUCCESS


def _judge(strange: Sequence[EpisodeInfo], total: int, actor: Actor, other: str) -> None:
    if not strange:
        return
    adapters = Counter(info.adapter_id or 'none' for info in strange)
    names = ', '.join(f"'{name}' ({count})" for name, count in adapters.items())
    if other == 'refuse' or (other == 'leave_out' and len(strange) == total):
        raise DataError(
            f'{len(strange)} of {total} trials were not played by policy '
            f"{actor.policy_sha256[:8]} with adapter '{actor.adapter_id}': their adapters are "
            f'{names}. Pass the policy and --adapter that collected them, or set other_trials to '
            'leave_out or, to learn off-policy, to keep.'
        )
    verb = 'are left out' if other == 'leave_out' else 'are kept (off-policy)'
    log.warning(
        '%d of %d trials are of another policy or adapter and %s: %s',
        len(strange), total, verb, names,
    )  # fmt: skip


def _warn_of_temperatures(infos: Sequence[EpisodeInfo]) -> None:
    odd = sorted({info.temperature for info in infos if info.temperature != 1.0})
    if odd:
        log.warning(
            'trials were sampled at temperatures %s; the ratios are those of temperature 1, at '
            'which the log-probabilities are recorded', ', '.join(f'{t:g}' for t in odd),
        )  # fmt: skip
