"""The score table: one row a bag, as a CSV that people can open.

A bag that cannot be scored has a row too: `status` says why, `detail` what to do. Every score
stands beside what made it: objective, weights, cost and configuration hashes, code version.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

SCORED, NO_LOG_PROBS = 'scored', 'no_log_probs'
CORRUPTED, UNSCORABLE = 'corrupted', 'unscorable'
FAILED = (CORRUPTED, UNSCORABLE)

# Columns that tables of before do not have.
ADDED = ('left_out', 'keypoints', 'approval', 'self_left_out')

log = logging.getLogger(__name__)


class ScoreTableError(ValueError):
    """A score table that cannot be read; the text names the file and what to do."""


@dataclass(frozen=True)
class ScoreRow:
    """One bag's row; numbers that there are not are None.

    status: scored | no_log_probs | error | interrupted | corrupted | unscorable.
    """

    bag: Path  # absolute in memory; in the file relative to it where below its folder
    episode_id: str = ''
    task: str = ''
    init_state: int | None = None
    seed: int | None = None
    temperature: float | None = None
    adapter_id: str = ''
    policy_sha256: str = ''
    outcome: str = ''
    success: bool | None = None
    steps: int | None = None
    status: str = SCORED
    r_self: float | None = None
    r_self_per_token: float | None = None
    self_left_out: int | None = None  # steps of a person or a held arm, not in r_self
    stage_costs: Mapping[str, float] = field(default_factory=dict)  # columns cost_<stage>
    log_r_ext: float | None = None
    r_ext: float | None = None
    r_gcpg: float | None = None
    collisions: int | None = None
    path_length_m: float | None = None
    grasps: int | None = None
    drops: int | None = None
    left_out: str = ''  # constraints that look at contacts, where none are recorded
    objective: str = ''
    lambda_self: float | None = None
    lambda_ext: float | None = None
    lambda_success: float | None = None
    self_reward: str = ''
    keypoints: str = ''  # privileged | perceived
    approval: str = ''  # built-in | approved | unapproved
    cost_sha256: str = ''
    config_sha256: str = ''
    code_version: str = ''
    detail: str = ''


def write_scores(path: Path | str, rows: Iterable[ScoreRow], stages: Sequence[str]) -> None:
    """Write a table by renaming over the old one; stages name the cost columns."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    with partial.open('w', newline='') as stream:
        writer = csv.writer(stream, lineterminator='\n')
        writer.writerow(_columns(stages))
        writer.writerows(_cells(row, stages, path.parent) for row in rows)
    os.replace(partial, path)


def append_score(path: Path | str, row: ScoreRow, stages: Sequence[str]) -> None:
    """Append one row to a table that write_scores began; on the disk when it returns."""
    path = Path(path)
    with path.open('a', newline='') as stream:
        csv.writer(stream, lineterminator='\n').writerow(_cells(row, stages, path.parent))


def read_scores(path: Path | str) -> list[ScoreRow]:
    """Read a table; a last line that a killed run left incomplete is dropped with a warning.

    Raises:
        ScoreTableError: no such file, other columns, or a cell that is not of its column's kind.

    """
    path = Path(path)
    if not path.is_file():
        raise ScoreTableError(f"There is no score table '{path}'. Make one with 'grape score'.")
    with path.open(newline='') as stream:
        lines = list(csv.reader(stream))
    header = lines[0] if lines else []
    stages = [name.removeprefix('cost_') for name in header if _is_stage_column(name)]
    columns = _columns(stages)
    if header != [name for name in columns if name in header or name not in ADDED]:
        raise ScoreTableError(
            f"'{path}' is not a score table of this version; its columns are: "
            f"{', '.join(header[:6])}... Make it again with 'grape score', to another file."
        )
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) == len(header):
            rows.append(_parsed(dict(zip(header, cells, strict=True)), stages, path, number))
        elif number == len(lines):
            log.warning('%s: the last line is incomplete and was dropped', path)
        else:
            raise ScoreTableError(
                f"'{path}' line {number} has {len(cells)} cells; expected {len(header)}. Make "
                "the table again with 'grape score'."
            )
    return rows


def _is_stage_column(name: str) -> bool:
    return name.startswith('cost_') and name != 'cost_sha256'


def _columns(stages: Sequence[str]) -> list[str]:
    names: list[str] = []
    for item in fields(ScoreRow):
        names += [f'cost_{s}' for s in stages] if item.name == 'stage_costs' else [item.name]
    return names


def _cells(row: ScoreRow, stages: Sequence[str], folder: Path) -> list[str]:
    cells = []
    for item in fields(ScoreRow):
        value = vars(row)[item.name]
        if item.name == 'bag':
            cells.append(portable_path(value, folder))
        elif item.name == 'stage_costs':
            cells += [_cell(value.get(stage)) for stage in stages]
        else:
            cells.append(_cell(value))
    return cells


def _cell(value: object) -> str:
    if value is None:
        return ''
    # repr gives the shortest text that reads back as the same float.
    return repr(value) if isinstance(value, float) else str(value)


def portable_path(bag: Path, folder: Path) -> str:
    """Return bag relative to folder when it is below it, else absolute."""
    bag, folder = bag.resolve(), folder.resolve()
    return str(bag.relative_to(folder)) if bag.is_relative_to(folder) else str(bag)


def _parsed(cells: Mapping[str, str], stages: Sequence[str], path: Path, number: int) -> ScoreRow:
    values: dict[str, object] = {}
    try:
        for item in fields(ScoreRow):
            if item.name == 'stage_costs':
                costs = {stage: _float(cells[f'cost_{stage}']) for stage in stages}
                values['stage_costs'] = {k: v for k, v in costs.items() if v is not None}
            elif item.name in cells:
                values[item.name] = _PARSERS[item.type](cells[item.name])
    except ValueError as error:
        raise ScoreTableError(
            f"'{path}' line {number}: {error}. Make the table again with 'grape score'."
        ) from error
    values['bag'] = (path.parent / values['bag']).resolve()
    return ScoreRow(**values)


def _float(text: str) -> float | None:
    return float(text) if text else None


def _int(text: str) -> int | None:
    return int(text) if text else None


def _bool(text: str) -> bool | None:
    if text not in ('', 'True', 'False'):
        raise ValueError(f"'{text}' is neither True nor False")
    return text == 'True' if text else None


_PARSERS: Mapping[str, Callable[[str], object]] = {
    'Path': Path,
    'str': str,
    'float | None': _float,
    'int | None': _int,
    'bool | None': _bool,
}
