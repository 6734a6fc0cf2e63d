"""Message definitions for reading and writing bags without ROS.

Writing takes the definitions of the package's own interfaces from its msg/ folder; reading takes
every definition from the bag itself, so that a training server needs pip only.
"""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from functools import cache
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

OWN_MESSAGES = (
    'EpisodeEvent',
    'GuardState',
    'PolicyStep',
    'SceneState',
    'TeleopCommand',
    'TrialState',
)


class EventKind(IntEnum):
    """EpisodeEvent's kinds, for code that runs without ROS."""

    START = 1
    READY = 2
    STOP = 3
    RECORDED = 4
    LABEL = 5
    INTERVENTION = 6
    STAGE = 7
    ERROR = 8


@cache
def typestore() -> Typestore:
    """Return the standard ROS 2 types and the package's own.

    Raises:
        FileNotFoundError: the package's msg folder is in no known place.

    """
    store = get_typestore(Stores.ROS2_KILTED)
    types = {}
    for name in OWN_MESSAGES:
        text = (_message_folder() / f'{name}.msg').read_text()
        types.update(get_types_from_msg(text, f'grape/msg/{name}'))
    store.register(types)
    return store


def _message_folder() -> Path:
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    places = [Path(__file__).resolve().parents[2] / 'msg']
    places += [Path(p) / 'share' / 'grape' / 'msg' for p in prefixes if p]
    for place in places:
        if (place / 'PolicyStep.msg').is_file():
            return place
    raise FileNotFoundError(
        f'PolicyStep.msg is in none of: {", ".join(map(str, places))}. Run make setup.'
    )
