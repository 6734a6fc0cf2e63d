"""What a person approved: the text of a cost program, kept beside its file.

An approval names the sha256 of the text, so that another text is another program, and keeps the
text, so that trials stay scorable with it whatever becomes of the file.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from grape_trainer.scoring.cost_program import Program

if TYPE_CHECKING:
    from grape_trainer.scoring.cost_review import CostReview

SUFFIX = '.approval.json'


class ApprovalError(ValueError):
    """A program that nobody approved; the text says what to do."""


@dataclass(frozen=True)
class Approval:
    """That a person looked at a program and wants it used."""

    sha256: str
    by: str
    at: str  # UTC, ISO 8601
    note: str
    trials: int  # that it was reviewed on
    flags: tuple[str, ...]  # that the person accepted
    text: str = ''  # of the program; '' in approvals of before it was kept
    stages_sha256: str = ''  # of the proposed stages in a file of their own


def approve(
    path: Path,
    program: Program,
    reviews: Sequence[CostReview],
    trials: int,
    note: str = '',
    stages_sha256: str = '',
) -> Approval:
    """Record that the person at the keyboard wants this text used, and the text, beside the file.

    Args:
        path: of the program, or of a proposal with costs.
        program: what it holds.
        reviews: what the person saw.
        trials: how many it was reviewed on.
        note: kept with it.
        stages_sha256: of the proposal whose stages it is for, where that is another file.

    """
    flags = tuple(f'{r.function.name}: {flag}' for r in reviews for flag in r.flags)
    at = datetime.now(UTC).isoformat(timespec='seconds')
    approval = Approval(
        program.sha256, getpass.getuser(), at, note, trials, flags, program.text, stages_sha256
    )
    same = (approval.sha256, approval.stages_sha256)
    kept = [e for e in read_approvals(path) if (e.sha256, e.stages_sha256) != same]
    partial = _file(path).with_suffix('.tmp')
    partial.write_text(json.dumps([asdict(each) for each in [*kept, approval]], indent=1) + '\n')
    os.replace(partial, _file(path))
    return approval


def read_approvals(path: Path) -> list[Approval]:
    """Return the approvals of a program's file, [] where there are none.

    Raises:
        ApprovalError: the file of approvals is damaged.
    """
    file = _file(path)
    if not file.is_file():
        return []
    try:
        return [
            Approval(**{**e, 'flags': tuple(e['flags'])}) for e in json.loads(file.read_text())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ApprovalError(
            f"'{file}' is damaged ({error}); review the program again and approve it"
        ) from error


def approval_of(path: Path, program: Program, stages_sha256: str = '') -> Approval | None:
    """Return the approval of this very text for these stages, None where there is none."""
    wanted = (program.sha256, stages_sha256)
    found = [e for e in read_approvals(path) if (e.sha256, e.stages_sha256) == wanted]
    return found[-1] if found else None


def require_approval(path: Path, program: Program, stages_sha256: str = '') -> Approval:
    """Return the approval of this very text for these stages.

    Raises:
        ApprovalError: there is none; says how to give one.
    """
    approval = approval_of(path, program, stages_sha256)
    if approval is not None:
        return approval
    others = len(read_approvals(path))
    changed = f' (it was changed since: {others} other texts were)' if others else ''
    stages = f' for the stages {stages_sha256[:12]}' if stages_sha256 else ''
    raise ApprovalError(
        f"the cost program '{path}' ({program.sha256[:12]}) was not approved{stages}{changed}. "
        f'Look at it on recorded trials: grape costs review {path} BAGS --approve'
        + (' --stages FILE' if stages_sha256 else '')
    )


def approved_text(path: Path, sha256: str) -> str:
    """Return the text that was approved, by how its sha256 begins.

    Raises:
        ApprovalError: no or several approvals begin so, or the text was not kept.
    """
    approvals = read_approvals(path)
    texts = {each.sha256: each.text for each in approvals if each.sha256.startswith(sha256)}
    if len(texts) != 1 or not all(texts.values()):
        kept = ', '.join(dict.fromkeys(each.sha256[:12] for each in approvals if each.text))
        found = f'{len(texts)} approved texts begin' if len(texts) != 1 else 'no kept text begins'
        raise ApprovalError(
            f"{found} with '{sha256}'; '{_file(path)}' keeps the texts of: {kept or 'none'}"
        )
    return next(iter(texts.values()))


def _file(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
