"""People's verdicts on an episode: labels.jsonl beside the bag, append-only, history and all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from grape_episode.bag import read_info
from grape_episode.outcome import Outcome

FILE = 'labels.jsonl'
VERDICTS = ('success', 'failure', 'discard')


@dataclass(frozen=True)
class Label:
    """One verdict; the last one of the file holds."""

    outcome: str
    reason: str
    labeller: str
    at: str


def append_label(bag: Path | str, outcome: str, reason: str = '', labeller: str = '') -> Label:
    """Add a verdict.

    Raises:
        ValueError: not one of the verdicts, or no such bag.

    """
    if outcome not in VERDICTS:
        raise ValueError(f"outcome '{outcome}' is not one of: {', '.join(VERDICTS)}.")
    bag = Path(bag)
    if not bag.is_dir():
        raise ValueError(f"There is no bag folder '{bag}'.")
    label = Label(outcome, reason, labeller, datetime.now(UTC).isoformat(timespec='seconds'))
    with (bag / FILE).open('a') as file:
        file.write(json.dumps(asdict(label)) + '\n')
    return label


def read_labels(bag: Path | str) -> list[Label]:
    """Return all verdicts, oldest first; [] where nobody gave one."""
    path = Path(bag) / FILE
    if not path.is_file():
        return []
    return [Label(**json.loads(line)) for line in path.read_text().splitlines() if line]


def effective_outcome(bag: Path | str) -> str:
    """Return what counts: the last verdict of a person, else what was recorded.

    A discarded episode counts as interrupted, so that nothing learns from it.
    """
    labels = read_labels(bag)
    if not labels:
        return str(read_info(bag).outcome)
    return str(Outcome.INTERRUPTED) if labels[-1].outcome == 'discard' else labels[-1].outcome
