"""Which episodes wait for a label, in which order, and what has been said of each.

Places in the queue do not change while it is open: new recordings are added at the end. What
others say meanwhile is read from the bags' own labels.jsonl, so that any number of people can
label the same folder.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from grape_episode.bag_folder import BagError, find_bags, read_info
from grape_episode.episode import EpisodeInfo
from grape_episode.label import Label, append_label, read_labels, standing, undo_label
from grape_episode.outcome import Outcome

JUDGED = (Outcome.SUCCESS, Outcome.FAILURE)  # by a simulator

log = logging.getLogger(__name__)


class ConflictError(RuntimeError):
    """Somebody else said something meanwhile; the text says who and what."""


@dataclass(frozen=True)
class Entry:
    """One episode in the queue."""

    number: int
    bag: Path
    info: EpisodeInfo


class LabelQueue:
    """The episodes below a folder; safe on any thread."""

    def __init__(self, bags: Path) -> None:
        self._bags = bags
        self._lock = threading.Lock()
        self.entries: list[Entry] = []
        self._known: set[Path] = set()
        self.refresh()

    def refresh(self) -> int:
        """Add what was recorded since; return how many."""
        with self._lock:
            try:
                folders = [bag for bag in find_bags(self._bags) if bag not in self._known]
            except BagError:  # nothing was recorded yet
                folders = []
            found = []
            for bag in folders:
                try:
                    info = read_info(bag)
                except BagError as error:
                    log.warning('%s is left out: %s', bag, error)
                    self._known.add(bag)
                    continue
                if (bag / 'metadata.yaml').is_file():  # not one that is being recorded
                    found.append((info.started_at, bag, info))
            for _, bag, info in sorted(found, key=lambda item: item[:2]):
                self.entries.append(Entry(len(self.entries), bag, info))
                self._known.add(bag)
            return len(found)

    def history(self, number: int) -> list[Label]:
        """Return what has been said of an episode, oldest first."""
        return read_labels(self.entries[number].bag)

    def holds(self, number: int) -> Label | None:
        """Return the verdict that holds."""
        return standing(self.history(number))

    def waits(self, number: int) -> bool:
        """Say whether nobody, and no simulator, has judged an episode."""
        return self.holds(number) is None and self.entries[number].info.outcome not in JUDGED

    def waiting(self) -> list[int]:
        """Return the episodes that wait for a label."""
        return [entry.number for entry in self.entries if self.waits(entry.number)]

    def order(self) -> list[int]:
        """Return all episodes, those that wait first."""
        waiting = self.waiting()
        return waiting + sorted({e.number for e in self.entries} - set(waiting))

    def after(self, number: int) -> int | None:
        """Return the next one that waits, from the beginning again after the last."""
        waiting = [n for n in self.waiting() if n != number]
        return next((n for n in waiting if n > number), waiting[0] if waiting else None)

    def label(
        self,
        number: int,
        outcome: str,
        labeller: str,
        seen: Label | None,
        reason: str = '',
        score: float | None = None,
        stage: str = '',
    ) -> Label:
        """Keep a verdict; it is on the disk when this returns.

        Args:
            number: of the episode.
            outcome: success, failure or discard.
            labeller: who.
            seen: the verdict that the person saw to hold.
            reason: in the person's words.
            score: 0 to 10; None: not said.
            stage: the last one that was reached.

        Raises:
            ConflictError: another verdict holds meanwhile; nothing was written.
            ValueError, OSError: see append_label.

        """
        holds = self.holds(number)
        if holds != seen:
            who = (holds.labeller or 'somebody') if holds else 'somebody'
            said = f'said {holds.outcome}' if holds else 'took the label back'
            raise ConflictError(f'{who} {said} meanwhile. Press again to give yours as well.')
        bag = self.entries[number].bag
        return append_label(bag, outcome, reason, labeller, score, stage)

    def undo(self, number: int, labeller: str, expected: Label | None) -> None:
        """Take a verdict back.

        Raises:
            ValueError: it does not hold any more, or there is none.

        """
        undo_label(self.entries[number].bag, labeller, expected)
