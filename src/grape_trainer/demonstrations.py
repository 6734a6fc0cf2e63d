"""Successful bags as demonstrations: pixels, action tokens and the action statistics.

The statistics (q01, q99, mask) are computed once over all demonstrations that are trained on and
belong to the policy from then on. The gripper (0 closed .. 1 open) is not normalised.

On a robot what was executed is learned from, not what was proposed: a person's corrections count
as the person made them, and steps in which the arm was held count not at all. With `corrections`
only the person's steps are taken, of successes and failures alike (as in DAgger, Ross et al.
2011: states that the policy got into, with what a person did there).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from grape_episode.bag import find_bags, read_episode, read_info
from grape_episode.contract import Contract
from grape_episode.episode import Episode
from grape_episode.label import effective_outcome
from grape_episode.outcome import Outcome
from grape_trainer.dataset import DataError, policy_actions, resize_images
from grape_trainer.learner import generator_for

# A step is a no-op below this norm of the six pose dimensions in policy units (OpenVLA's
# regenerated LIBERO data, regenerate_libero_dataset.py) ...
LIBERO_NOOP_NORM = 1e-4
# ... or below both norms of the commanded motion (RL4VLA, arXiv 2505.19789, at 5 Hz), where the
# gripper command stands still too.
RL4VLA_NOOP_TRANSLATION_M = 0.01
RL4VLA_NOOP_ROTATION_RAD = 0.06
TELEOP = 'teleop'
ACTED = ('policy', 'expert', TELEOP)  # whose steps moved the arm
ACTION_MASK = (True, True, True, True, True, True, False)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demonstrations:
    """N control steps of many episodes in one block.

    `instruction_index` points into `instructions`; `episode_index` into `episodes`.
    """

    images: np.ndarray  # (N, S, S, 3) uint8 RGB
    actions: np.ndarray  # (N, 7) float64, policy units
    instruction_index: np.ndarray  # (N,) int64
    episode_index: np.ndarray  # (N,) int64
    instructions: tuple[str, ...]
    episodes: tuple[Path, ...]

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)


def successful_bags(folders: Sequence[Path]) -> list[Path]:
    """Return the bags below `folders` whose outcome (label, else recording) is success.

    Raises:
        DataError: none is.

    """
    bags = find_bags(folders)
    good = [bag for bag in bags if effective_outcome(bag) == Outcome.SUCCESS]
    if not good:
        raise DataError(
            f'{", ".join(map(str, folders))} holds {len(bags)} bags, none a success. '
            "Record demonstrations with 'grape demos'."
        )
    if len(good) < len(bags):
        log.info('%d of %d bags are successes; the others are left out', len(good), len(bags))
    return good


def corrected_bags(folders: Sequence[Path]) -> list[Path]:
    """Return the bags below `folders`, successes and failures, in which a person took over.

    Raises:
        DataError: none is there.

    """
    decided = (Outcome.SUCCESS, Outcome.FAILURE)
    bags = [bag for bag in find_bags(folders) if effective_outcome(bag) in decided]
    found = [bag for bag in bags if TELEOP in read_episode(bag, images=False).sources]
    if not found:
        raise DataError(
            f'{", ".join(map(str, folders))} holds {len(bags)} successes and failures, none with '
            'a step that a person executed (executed_step, source teleop). Intervene in trials '
            'on the robot, label them, and try again; or train without --corrections.'
        )
    log.info('%d of %d bags have corrections; the others are left out', len(found), len(bags))
    return found


def hold_out(bags: Sequence[Path], count: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Split whole episodes at random into (training, held out); both in their given order."""
    if count >= len(bags):
        raise DataError(
            f'{count} episodes are to be held out of {len(bags)}; record more, or lower '
            'held_out_episodes.'
        )
    order = torch.randperm(len(bags), generator=generator_for(seed, 'hold_out', 0)).tolist()
    held = set(order[:count])
    return (
        [bag for i, bag in enumerate(bags) if i not in held],
        [bag for i, bag in enumerate(bags) if i in held],
    )


def load_demonstrations(
    bags: Sequence[Path],
    image_size: int,
    noop_filter: str,
    on_bag: Callable[[int], None] = lambda _: None,
    corrections: bool = False,
) -> Demonstrations:
    """Read bags into one block, without no-ops if asked.

    Args:
        bags: episodes to read.
        image_size: S, the model's.
        noop_filter: 'none', 'libero' or 'rl4vla'; see `noops`.
        on_bag: called with the number of bags read so far.
        corrections: only what a person executed.

    """
    sources = (TELEOP,) if corrections else ACTED
    instructions: dict[str, int] = {}
    images, actions, instruction_index, episode_index = [], [], [], []
    for number, bag in enumerate(bags):
        episode = read_episode(bag).as_executed()
        action = policy_actions(episode)
        keep = ~noops(episode, noop_filter) & np.isin(episode.sources, sources)
        index = instructions.setdefault(episode.info.instruction, len(instructions))
        images.append(resize_images(episode.policy_images()[keep], image_size))
        actions.append(action[keep])
        instruction_index.append(np.full(keep.sum(), index))
        episode_index.append(np.full(keep.sum(), number))
        on_bag(number + 1)
    return Demonstrations(
        images=np.concatenate(images),
        actions=np.concatenate(actions),
        instruction_index=np.concatenate(instruction_index),
        episode_index=np.concatenate(episode_index),
        instructions=tuple(instructions),
        episodes=tuple(bags),
    )


def instructions_of(bags: Sequence[Path]) -> list[str]:
    """Return the distinct instructions of bags, sorted."""
    return sorted({read_info(bag).instruction for bag in bags})


def common_contract(bags: Sequence[Path]) -> Contract:
    """Return the contract that all bags were recorded under.

    Raises:
        DataError: they differ.

    """
    first = read_info(bags[0]).contract
    for bag in bags:
        if read_info(bag).contract != first:
            raise DataError(
                f'{bag} was recorded under another contract than {bags[0]}: their pictures or '
                'actions mean different things. Train on bags of one contract.'
            )
    return Contract.from_dict(first, str(bags[0]))


def noops(episode: Episode, rule: str) -> np.ndarray:
    """Mark the steps of an episode that do nothing.

    Args:
        episode: T recorded steps.
        rule: 'libero', on normalised actions; 'rl4vla', on the metric motion that was commanded
            (PolicyStep's delta, after the safety gate); 'none'.

    Returns:
        (T,) True where the pose stands still by the rule and the gripper command is that of the
        last kept step (of the first step: any).

    Raises:
        DataError: no such rule.

    """
    actions = policy_actions(episode)
    if rule == 'none':
        return np.zeros(len(actions), bool)
    if rule == 'libero':
        still = np.linalg.norm(actions[:, :6], axis=1) < LIBERO_NOOP_NORM
    elif rule == 'rl4vla':
        moved_m = np.linalg.norm(episode.translation_m, axis=1)
        turned_rad = np.linalg.norm(episode.rotation_rotvec_rad, axis=1)
        still = (moved_m < RL4VLA_NOOP_TRANSLATION_M) & (turned_rad < RL4VLA_NOOP_ROTATION_RAD)
    else:
        raise DataError(f"The no-op rule is '{rule}'; expected none, libero or rl4vla.")
    return without_gripper_changes(still, actions[:, 6])


def without_gripper_changes(still: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Return (T,) `still` but for steps whose gripper command is not the last kept step's."""
    marked = np.zeros(len(still), bool)
    last_kept = None
    for step, (stands, command) in enumerate(zip(still, gripper, strict=True)):
        marked[step] = stands and (last_kept is None or command == last_kept)
        if not marked[step]:
            last_kept = command
    return marked


def action_statistics(actions: np.ndarray, episodes: int) -> dict[str, object]:
    """Return one entry of dataset_statistics.json.

    Args:
        actions: (N, 7) policy units, all that is trained on.
        episodes: how many episodes they come from.

    """
    return {
        'action': {
            'mean': actions.mean(0).tolist(),
            'std': actions.std(0).tolist(),
            'min': actions.min(0).tolist(),
            'max': actions.max(0).tolist(),
            'q01': np.quantile(actions, 0.01, axis=0).tolist(),
            'q99': np.quantile(actions, 0.99, axis=0).tolist(),
            'mask': list(ACTION_MASK),
        },
        'num_transitions': len(actions),
        'num_trajectories': episodes,
    }
