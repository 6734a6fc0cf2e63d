"""People's verdicts on an episode: labels.jsonl beside the bag, append-only, history and all.

A verdict is one line; taking it back is another one (`undo`), after which the verdict before it
holds again. Nothing is ever overwritten. On a robot nobody but a person says success or failure:
a trial that nobody has labelled counts as interrupted, and never as a failure.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from grape_episode.bag import read_info
from grape_episode.outcome import Outcome

FILE = 'labels.jsonl'
VERDICTS = ('success', 'failure', 'discard')
UNDO = 'undo'
SCORES = (0.0, 10.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Label:
    """One line of the history.

    Attributes:
        outcome: one of VERDICTS, or UNDO.
        reason: in the person's words.
        labeller: who.
        at: when, ISO 8601 in UTC.
        score: how well it went, 0 to 10; None: not said.
        stage: the last stage that was reached; '' : not said.

    """

    outcome: str
    reason: str
    labeller: str
    at: str
    score: float | None = None
    stage: str = ''


def append_label(
    bag: Path | str,
    outcome: str,
    reason: str = '',
    labeller: str = '',
    score: float | None = None,
    stage: str = '',
) -> Label:
    """Add a verdict; it is on the disk when this returns.

    Raises:
        ValueError: not one of the verdicts, a score that is not 0 to 10, or no such bag.

    """
    if outcome not in VERDICTS:
        raise ValueError(f"outcome '{outcome}' is not one of: {', '.join(VERDICTS)}.")
    if score is not None and not SCORES[0] <= score <= SCORES[1]:
        raise ValueError(f'score {score} is not from {SCORES[0]:g} to {SCORES[1]:g}.')
    label = Label(outcome, reason, labeller, _now(), score, stage)
    with _Journal(bag) as journal:
        journal.append(label)
    return label


def undo_label(bag: Path | str, labeller: str = '', expected: Label | None = None) -> Label | None:
    """Take the verdict back that holds now; return the one that holds instead, if any.

    Args:
        bag: folder of the episode.
        labeller: who takes it back.
        expected: what the person believes to hold; another verdict, given by somebody else
            meanwhile, is not taken back.

    Raises:
        ValueError: there is no verdict, another one than expected, or no such bag.

    """
    with _Journal(bag) as journal:
        holds = standing(journal.history)
        if holds is None:
            raise ValueError(f"'{bag}' has no label to take back.")
        if expected is not None and holds != expected:
            raise ValueError(
                f"'{bag}': {holds.labeller or 'somebody'} labelled it {holds.outcome} at "
                f'{holds.at}, after you said {expected.outcome}. Nothing was taken back; look at '
                'it again.'
            )
        undone = Label(UNDO, f'takes back {holds.outcome}', labeller, _now())
        journal.append(undone)
        return standing([*journal.history, undone])


def read_labels(bag: Path | str) -> list[Label]:
    """Return the whole history, oldest first; [] where nobody gave a verdict.

    A line that a killed process left incomplete is left out, with a warning.

    Raises:
        ValueError: a whole line that is no label of this version.

    """
    path = Path(bag) / FILE
    return _parsed(path.read_bytes(), path) if path.is_file() else []


def standing(history: Iterable[Label]) -> Label | None:
    """Return the verdict that holds after a history; None where there is none."""
    verdicts: list[Label] = []
    for label in history:
        if label.outcome != UNDO:
            verdicts.append(label)
        elif verdicts:
            verdicts.pop()
    return verdicts[-1] if verdicts else None


def effective_outcome(bag: Path | str) -> str:
    """Return what counts: the last verdict of a person, else what was recorded.

    A discarded episode counts as interrupted, so that nothing learns from it.
    """
    label = standing(read_labels(bag))
    if label is None:
        return str(read_info(bag).outcome)
    return str(Outcome.INTERRUPTED) if label.outcome == 'discard' else label.outcome


class _Journal:
    """A bag's labels, locked for as long as the block lasts: two labellers take turns."""

    def __init__(self, bag: Path | str) -> None:
        self._path = Path(bag) / FILE
        if not self._path.parent.is_dir():
            raise ValueError(f"There is no bag folder '{bag}'.")

    def __enter__(self) -> _Journal:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._content = self._path.read_bytes()
        self.history = _parsed(self._content, self._path)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def append(self, label: Label) -> None:
        # After a line that was cut by a kill the next one begins on a line of its own.
        gap = b'\n' if self._content and not self._content.endswith(b'\n') else b''
        line = json.dumps({n: v for n, v in asdict(label).items() if v not in (None, '')})
        data = gap + line.encode() + b'\n'
        if os.write(self._descriptor, data) != len(data):
            raise OSError(f"'{self._path}' took only part of a label: is the disk full?")
        os.fsync(self._descriptor)


def _parsed(content: bytes, path: Path) -> list[Label]:
    found = []
    known = {field.name for field in fields(Label)}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError:
            log.warning('%s: line %d is incomplete and was left out: %r', path, number, line[:60])
            continue
        if not isinstance(data, dict) or 'outcome' not in data or set(data) - known:
            raise ValueError(
                f"'{path}' line {number} is {line[:80]!r}; expected a JSON object with outcome "
                f'and at most: {", ".join(sorted(known))}.'
            )
        found.append(Label(**({'reason': '', 'labeller': '', 'at': ''} | data)))
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='milliseconds')
