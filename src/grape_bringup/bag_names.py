"""Names for the bags of episodes that are to be played, beside what earlier runs left behind."""

from __future__ import annotations

import logging
from pathlib import Path

from grape_episode.bag import METADATA, BagError, read_info
from grape_episode.outcome import Outcome

DISCARDED = 'discarded'

log = logging.getLogger(__name__)


def free_bag_name(folder: Path, episode_id: str) -> str:
    """Return the id, or with -r1, -r2 ... where a bag that ended in an error has that name.

    Any other bag of that name is one that the manifest does not know: a killed or cancelled run
    left it. It is moved to FOLDER/../discarded, because the episode will be played again and must
    not be there twice.

    Args:
        folder: of the bags.
        episode_id: of an episode that the manifest has no decided record of.

    """
    name, number = episode_id, 0
    while (folder / name).exists():
        if _is_kept(folder / name):
            number += 1
            name = f'{episode_id}-r{number}'
        else:
            _move_aside(folder / name)
    return name


def _is_kept(bag: Path) -> bool:
    try:
        return read_info(bag).outcome == Outcome.ERROR
    except BagError:
        return (bag / METADATA).is_file()


def _move_aside(bag: Path) -> None:
    aside = bag.parent.parent / DISCARDED
    aside.mkdir(exist_ok=True)
    target, number = aside / bag.name, 0
    while target.exists():
        number += 1
        target = aside / f'{bag.name}-{number}'
    bag.rename(target)
    log.info('%s is of a stopped run, was moved to %s, and is played again', bag.name, aside)
