"""Which thing in the first picture is which: files of clicks or numbers, and their source.

    clicks.json    {"milk_1": [167, 108], ...}   pixels (keypoint_clicks.py)
    numbers.json   {"milk_1": 3, ...}            from 1, in the picture that draw_numbered makes

One file serves the trials of one initial state. A folder serves many: TASK-iNN.json for each, such
as libero_object_0-i07.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from grape_episode.episode import Episode
from grape_trainer.scoring.keypoint import KeypointError, KeypointSource, SceneSource
from grape_trainer.scoring.keypoint_clicks import Clicks, clicks_of_numbers, load_clicks
from grape_trainer.scoring.keypoint_proposal import Proposal
from grape_trainer.scoring.keypoint_source import PerceivedSource, make_proposer
from grape_trainer.scoring.objective_sections import KeypointSettings

ALL = ''  # the key of a file that serves all trials


@dataclass(frozen=True)
class Names:
    """What a person said about the first picture of each initial state; a `Chooser`."""

    place: Path
    found: Mapping[str, Mapping]  # TASK-iNN, or ALL -> name -> [u, v] or number
    numbered: bool

    def __call__(
        self, episode: Episode, image: np.ndarray, proposals: tuple[Proposal, ...]
    ) -> Clicks:
        """Return the clicks of an episode; KeypointError where there are none."""
        key = names_key(episode.info.task, episode.info.init_state)
        said = self.found.get(ALL, self.found.get(key))
        if said is None:
            raise KeypointError(
                f"there is no '{key}.json' in '{self.place}'; it has: "
                f'{", ".join(self.found) or "none"}. Say there which thing is which.'
            )
        return clicks_of_numbers(proposals, said) if self.numbered else said


def names_key(task: str, init_state: int) -> str:
    """Return how the file of an initial state is called, without its ending."""
    return f'{task.replace("/", "_")}-i{init_state:02d}'


def make_source(settings: KeypointSettings | None) -> KeypointSource:
    """Return where keypoints come from.

    Raises:
        KeypointError: files that are not there, or of another form.

    """
    if settings is None or settings.source == 'scene':
        return SceneSource()
    numbered = settings.source == 'perceived'
    place = settings.numbers if numbered else settings.clicks
    load: Callable = load_numbers if numbered else load_clicks
    if place.is_dir():
        found = {file.stem: load(file) for file in sorted(place.glob('*.json'))}
    else:
        found = {ALL: load(place)}
    proposer = make_proposer(settings.proposer, settings.weights, settings.model)
    return PerceivedSource(Names(place, found, numbered), proposer, settings.camera)


def source_content(settings: KeypointSettings, source: KeypointSource) -> dict[str, object]:
    """Return all that a source's keypoints depend on beside the episode, as plain data."""
    content: dict[str, object] = {'source': settings.source}
    if isinstance(source, PerceivedSource):
        content |= settings.model_dump(mode='json', include={'proposer', 'model', 'camera'})
        content |= {'names': source.choose.found, 'tracking': asdict(source.settings)}
        if settings.weights is not None:
            with settings.weights.open('rb') as stream:
                content['weights'] = hashlib.file_digest(stream, 'sha256').hexdigest()
    return content


def load_numbers(path: Path | str) -> dict[str, int]:
    """Read a file of numbers.

    Raises:
        KeypointError: no such file, no JSON, or something else than name -> number from 1.

    """
    path = Path(path)
    if not path.is_file():
        raise KeypointError(f"There is no file of numbers '{path}'.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise KeypointError(f"'{path}' is not JSON: {error}") from error
    valid = isinstance(content, dict) and content
    if not valid or not all(type(n) is int and n > 0 for n in content.values()):
        raise KeypointError(
            f"'{path}' holds {content!r:.60}; expected an object of name -> number from 1 in the "
            'numbered picture.'
        )
    return content
