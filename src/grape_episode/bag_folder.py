"""A bag as a folder: which folders are bags, what their episode.json says, opening one.

DIR/<episode id>/metadata.yaml       rosbag2, version 9; holds episode.json's text too
DIR/<episode id>/<episode id>.mcap   the messages, as they came over the wire
DIR/<episode id>/episode.json        EpisodeInfo, there from the first message on
DIR/<episode id>/labels.jsonl        people's verdicts (label.py)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rosbags.rosbag2 import Reader

from grape_episode.episode import EpisodeInfo

METADATA = 'metadata.yaml'
INFO_FILE = 'episode.json'
CUSTOM_KEY = 'grape_episode'  # of metadata.yaml's custom_data


class BagError(ValueError):
    """A bag that cannot be used; the text names it and says what to do."""


def find_bags(paths: Path | str | Iterable[Path | str]) -> list[Path]:
    """Return the bag folders at or below the given paths, sorted, each once.

    Folders whose name begins with a dot are not looked into.

    Raises:
        BagError: a path does not exist, or holds no bag.

    """
    if isinstance(paths, Path | str):
        paths = [paths]
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"'{path}' does not exist; expected a bag or a folder of bags.")
        here = {
            item.parent
            for name in (INFO_FILE, METADATA)
            for item in path.rglob(name)
            if not any(part.startswith('.') for part in item.relative_to(path).parts)
        }
        if not here:
            raise BagError(
                f"'{path}' holds no bag (no {METADATA} or {INFO_FILE} in it or below); "
                'give a folder that `grape collect`, `grape demos` or the recorder wrote.'
            )
        found |= here
    return sorted(found)


def read_info(path: Path | str) -> EpisodeInfo:
    """Read what is known of an episode, without its messages.

    Raises:
        BagError: not a bag, or one that no recorder of this project wrote.

    """
    path = Path(path)
    if not path.is_dir():
        raise BagError(f"'{path}' is not a folder; a bag is a folder with {METADATA}.")
    try:
        if (path / INFO_FILE).is_file():
            text = (path / INFO_FILE).read_text()
        elif (path / METADATA).is_file():
            text = _custom_data(path)
        else:
            raise BagError(_unclosed_or_no_bag(path))
        return EpisodeInfo.from_dict(json.loads(text))
    except BagError:
        raise
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise BagError(f"'{path}': its episode data cannot be read ({error}).") from error


@contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """Open a bag's messages for the with block.

    Raises:
        BagError: not a bag, not closed, truncated or corrupted; also from within the block for
            what rosbags finds while it reads.

    """
    if not path.is_dir():
        raise BagError(f"'{path}' is not a folder; a bag is a folder with {METADATA}.")
    if not (path / METADATA).is_file():
        raise BagError(_unclosed_or_no_bag(path))
    for name in _files(path):
        if not (path / name).is_file():
            raise BagError(
                f"'{path}': {METADATA} names {name}, which is not there; copy the whole folder, "
                'and do not rename its files.'
            )
        if (path / name).stat().st_size == 0:
            raise BagError(f"'{path}': {name} is empty; copy it again from where it came from.")
    try:
        with Reader(path) as reader:
            yield reader
    except BagError:
        raise
    except Exception as error:  # noqa: BLE001 - rosbags lets a damaged file raise anything at all
        raise BagError(
            f"'{path}' is truncated or corrupted ({type(error).__name__}: {error}); expected a "
            f'complete MCAP file. Run: grape bag recover {path}'
        ) from error


def _custom_data(path: Path) -> str:
    data = _metadata(path).get('custom_data') or {}
    if CUSTOM_KEY not in data:
        raise BagError(
            f"'{path}' is a rosbag without episode data ({INFO_FILE}); "
            "record it with the project's recorder node."
        )
    return data[CUSTOM_KEY]


def _metadata(path: Path) -> dict:
    try:
        data = yaml.safe_load((path / METADATA).read_text())
        return data['rosbag2_bagfile_information']
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise BagError(
            f"'{path}': its {METADATA} is not rosbag2's ({error!r}). Run: grape bag recover {path}"
        ) from error


def _files(path: Path) -> list[str]:
    names = _metadata(path).get('relative_file_paths')
    if not isinstance(names, list) or not names:
        raise BagError(
            f"'{path}': its {METADATA} names no file of messages. Run: grape bag recover {path}"
        )
    return names


def _unclosed_or_no_bag(path: Path) -> str:
    if (path / INFO_FILE).is_file() or any(path.glob('*.mcap')):
        return (
            f"'{path}' has no {METADATA}: the recorder was killed before it closed the bag. "
            f'Run: grape bag recover {path}'
        )
    return (
        f"'{path}' is not a bag: it has no {METADATA} and no .mcap file. "
        'Give a folder that the recorder wrote.'
    )
