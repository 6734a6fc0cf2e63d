"""Trials that begin alike: the reference of an initial state, its ghost, and the arm's distance.

Preference pairs compare trials from one and the same start. On a robot a person restores it: the
first recorded trial of a task and initial state is the reference for all later ones. Its first
picture is laid over the live one, and the arm has to be where it was then.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grape_episode.bag_folder import BagError, find_bags, open_bag, read_info
from grape_episode.contract import Contract, ContractError
from grape_episode.episode import EpisodeInfo
from grape_episode.label import read_labels, standing
from grape_episode.messages import typestore
from grape_episode.outcome import Outcome

GHOST_WEIGHT = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a recorded trial began."""

    episode_id: str
    image: np.ndarray  # (H, W, 3) uint8 RGB of the policy's camera, as published
    position_m: np.ndarray  # (3,) end effector, base frame
    quaternion_xyzw: np.ndarray  # (4,)


def find_reference(bags: Path, task: str, init_state: int) -> Start | None:
    """Return how the first trial of a task and initial state began; None where there is none.

    Trials that a person discarded, that were an error or that made no step are passed over, and so
    is a bag that cannot be read.
    """
    found = [
        (info.started_at, bag)
        for bag, info in _trials(bags)
        if (info.task, info.init_state) == (task, init_state)
    ]
    for _, bag in sorted(found):
        try:
            return first_observation(bag)
        except (BagError, ContractError) as error:
            log.warning('%s is no reference: %s', bag, error)
    return None


def first_observation(bag: Path) -> Start:
    """Read the first picture and pose of a bag, and no more of it.

    Raises:
        BagError: they are not there.

    """
    info = read_info(bag)
    contract = Contract.from_dict(info.contract, str(bag))
    image_topic = contract.cameras[contract.policy_camera].topic
    pose_topic = contract.topic('ee_pose').name
    first = {}
    with open_bag(bag) as reader:
        for topic in (image_topic, pose_topic):
            chosen = [c for c in reader.connections if c.topic == topic]
            for connection, _, cdr in reader.messages(connections=chosen) if chosen else ():
                first[topic] = typestore().deserialize_cdr(cdr, connection.msgtype)
                break
    missing = [topic for topic in (image_topic, pose_topic) if topic not in first]
    if missing:
        raise BagError(f"'{bag}' has no message on {' and '.join(missing)}.")
    picture, pose = first[image_topic], first[pose_topic].pose
    if picture.encoding != 'rgb8':
        raise BagError(f"'{bag}': {image_topic} is {picture.encoding}; expected rgb8.")
    at, turn = pose.position, pose.orientation
    return Start(
        info.episode_id,
        np.asarray(picture.data).reshape(picture.height, picture.width, 3),
        np.array([at.x, at.y, at.z]),
        np.array([turn.x, turn.y, turn.z, turn.w]),
    )


def next_init_state(bags: Path, task: str, init_states: int, trials_each: int) -> int:
    """Return the initial state whose turn it is: each gets its trials before the next one's turn.

    Once all have theirs, it is the one with the fewest trials.
    """
    done = Counter(info.init_state for _, info in _trials(bags) if info.task == task)
    for number in range(init_states):
        if done[number] < trials_each:
            return number
    return min(range(init_states), key=lambda number: (done[number], number))


def ghost(live: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Return the reference picture laid over the live one; None where their sizes differ."""
    if live.shape != reference.shape:
        return None
    mixed = GHOST_WEIGHT * reference.astype(np.float32) + (1 - GHOST_WEIGHT) * live
    return mixed.round().astype(np.uint8)


def pose_distance(
    position_m: np.ndarray, quaternion_xyzw: np.ndarray, start: Start
) -> tuple[float, float]:
    """Return how far a pose is from the reference's start: m, and rad."""
    move = float(np.linalg.norm(position_m - start.position_m))
    norms = np.linalg.norm(quaternion_xyzw) * np.linalg.norm(start.quaternion_xyzw)
    cosine = abs(float(quaternion_xyzw @ start.quaternion_xyzw)) / norms if norms else 0.0
    return move, 2 * math.acos(min(1.0, cosine))


def _trials(bags: Path) -> Iterator[tuple[Path, EpisodeInfo]]:
    """Yield the bags that count as trials."""
    try:
        folders = find_bags(bags)
    except BagError:  # nothing was recorded yet
        return
    for bag in folders:
        try:
            info = read_info(bag)
            label = standing(read_labels(bag))
        except (BagError, ValueError) as error:
            log.warning('%s is passed over: %s', bag, error)
            continue
        is_discarded = label is not None and label.outcome == 'discard'
        if info.steps > 0 and info.outcome is not Outcome.ERROR and not is_discarded:
            yield bag, info
