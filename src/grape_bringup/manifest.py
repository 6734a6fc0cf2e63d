"""episodes.jsonl: which episodes a folder holds, what they were asked to be, how they ended.

Append-only, one line an episode that ended in success, failure or error. It is why the same
command goes on where it was: a decided episode with the same request is not played again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from grape_bringup.graph_setup import EpisodeRequest
from grape_episode.outcome import Outcome

FILE = 'episodes.jsonl'
DECIDED = (Outcome.SUCCESS, Outcome.FAILURE)

log = logging.getLogger(__name__)


class ManifestError(ValueError):
    """A folder that holds other episodes than those asked for; the text names the difference."""


@dataclass(frozen=True)
class EpisodeRecord:
    """One line. `asked` is the request with what it was played by (policy, adapter, contract)."""

    episode_id: str
    task: str
    init_state: int
    outcome: Outcome
    steps: int
    bag: str  # relative to the manifest's folder; '' where no bag was closed
    detail: str
    asked_sha256: str
    asked: Mapping[str, object]
    recorded_at: str

    @property
    def decided(self) -> bool:
        """Say whether the policy decided the episode: an infrastructure error did not."""
        return self.outcome in DECIDED


class Manifest:
    """The records of one folder of bags."""

    def __init__(self, folder: Path, played_by: Mapping[str, object]) -> None:
        """Read what is there.

        Args:
            folder: of the bags; made by the first record.
            played_by: what the episodes are a function of, beside their requests.

        """
        self.folder = folder
        self._played_by = dict(played_by)
        self._path = folder / FILE
        self._records = {record.episode_id: record for record in read_manifest(folder)}

    def find(self, request: EpisodeRequest) -> EpisodeRecord | None:
        """Return the decided episode of this request, None where it is still to be played.

        Raises:
            ManifestError: the folder holds an episode of that name made with other settings.

        """
        record = self._records.get(request.episode_id)
        if record is None:
            return None
        asked = self._asked(request)
        if record.asked_sha256 != _sha256(asked):
            names = sorted(set(asked) | set(record.asked))
            changes = '; '.join(
                f'{name}: {record.asked.get(name)} there, {asked.get(name)} now'
                for name in names
                if record.asked.get(name) != asked.get(name)
            )
            raise ManifestError(
                f"'{self.folder}' holds episode {request.episode_id} made with other settings "
                f'({changes}). Use another output folder, or delete this one.'
            )
        return record if record.decided else None

    def add(
        self, request: EpisodeRequest, outcome: Outcome, steps: int, bag: Path | None, detail: str
    ) -> EpisodeRecord:
        """Append an episode that ended."""
        asked = self._asked(request)
        record = EpisodeRecord(
            episode_id=request.episode_id,
            task=request.task,
            init_state=request.init_state,
            outcome=outcome,
            steps=steps,
            bag='' if bag is None else bag.name,
            detail=detail,
            asked_sha256=_sha256(asked),
            asked=asked,
            recorded_at=datetime.now(UTC).isoformat(timespec='seconds'),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(record) | {'outcome': str(outcome)}) + '\n'
        if self._path.is_file() and not self._path.read_bytes().endswith(b'\n'):
            line = '\n' + line  # after a line that a killed run left incomplete
        with self._path.open('a') as stream:
            stream.write(line)
        self._records[record.episode_id] = record
        return record

    def bag(self, record: EpisodeRecord) -> Path | None:
        """Return where a record's bag is."""
        return self.folder / record.bag if record.bag else None

    def _asked(self, request: EpisodeRequest) -> dict[str, object]:
        return asdict(request) | self._played_by


def read_manifest(folder: Path) -> list[EpisodeRecord]:
    """Return a folder's records in the order they ended; [] where there is no manifest."""
    path = folder / FILE
    if not path.is_file():
        return []
    records = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            content = json.loads(line)
            record = EpisodeRecord(**content | {'outcome': Outcome(content['outcome'])})
        except (json.JSONDecodeError, TypeError, ValueError, KeyError) as error:
            log.warning('%s line %d is incomplete and was left out (%r)', path, number, error)
            continue
        records.append(record)
    return records


def _sha256(asked: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
