"""What a run folder of `grape iterate` holds, read for the report: whatever is there.

    config.yaml  state.json  base/eval.json  (or round_0/eval.json)
    round_<k>/   scores.csv  pairs.json  <method>/metrics.jsonl  eval.json  bags/

A file that is missing or broken gives a note that names it and the command that writes it, so
that a run that was interrupted, or whose steps a person did by hand, has a page too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path

import yaml

from grape_trainer.evaluation import EpisodeResult, EvaluationSummary
from grape_trainer.iteration_config import METHODS, PAIRED
from grape_trainer.scoring.preference import PairingError, PairSet, read_pairs
from grape_trainer.scoring.score_table import ScoreRow, ScoreTableError, read_scores


class ReportError(ValueError):
    """A folder that is no run folder; the text says what was expected."""


@dataclass(frozen=True)
class Trial:
    """One row of scores.csv and its number, from 1, within its task and initial state."""

    number: int
    row: ScoreRow


@dataclass(frozen=True)
class Evaluation:
    """One evaluated policy: eval.json."""

    label: str
    path: Path
    adapter_id: str
    summary: EvaluationSummary
    tasks: dict[str, EvaluationSummary]
    results: tuple[EpisodeResult, ...]
    bags: dict[tuple[str, int], str]  # (task, init_state) -> bag, where the file says it


@dataclass(frozen=True)
class Round:
    """One iteration of Algorithm 1."""

    number: int
    path: Path
    trials: tuple[Trial, ...]
    pairs: PairSet | None
    metrics: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Phase:
    """One step of the run, as state.json has it."""

    name: str
    started: str  # as written, ISO 8601
    seconds: float | None  # None: it has not ended
    status: str


@dataclass(frozen=True)
class Note:
    """Something that the page can't show: the file, what is wrong, what to do."""

    file: str
    text: str


@dataclass(frozen=True)
class Run:
    """All that was found in a run folder."""

    path: Path
    config_text: str | None
    phases: tuple[Phase, ...]
    rounds: tuple[Round, ...]
    evaluations: tuple[Evaluation, ...]  # the base policy first
    notes: tuple[Note, ...]


@dataclass
class _Reader:
    """Reads files below one folder and collects the notes."""

    root: Path
    notes: list[Note] = field(default_factory=list)

    def text(self, path: Path, what: str, remedy: str) -> str | None:
        if not path.is_file():
            self.note(path, f'missing: {what}. {remedy}')
            return None
        try:
            return path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            self.note(path, f'cannot be read ({error}): {what}. {remedy}')
            return None

    def json(self, path: Path, what: str, remedy: str) -> dict[str, object] | None:
        text = self.text(path, what, remedy)
        if text is None:
            return None
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            self.note(path, f'not JSON ({error}): {what}. {remedy}')
            return None
        if not isinstance(content, dict):
            self.note(path, f'a {type(content).__name__}, expected an object: {what}. {remedy}')
            return None
        return content

    def note(self, path: Path, text: str) -> None:
        # The folder is in the title; paths below it are enough.
        text = text.replace(f'{self.root}/', '').strip()
        self.notes.append(Note(str(path.relative_to(self.root)), text))


def read_run(run_dir: Path | str) -> Run:
    """Read a run folder.

    Raises:
        ReportError: no such folder, or nothing of a run in it.

    """
    root = Path(run_dir)
    if not root.is_dir():
        raise ReportError(
            f"There is no run folder '{root}'. Make one with 'grape iterate --config FILE' or "
            "'grape demo'."
        )
    rounds = _round_folders(root)
    # A round_0 in which nothing was collected is the evaluation before the first round.
    first = root / 'round_0'
    base = first if first.is_dir() and not _is_trained(first) else root / 'base'
    rounds = [(number, path) for number, path in rounds if path != base]
    evaluated = [(base, 'base policy')]
    evaluated += [(path, f'after round {number}') for number, path in rounds]
    if not any((path / 'eval.json').is_file() for path, _ in evaluated) and not rounds:
        found = ', '.join(sorted(p.name for p in root.iterdir())) or 'nothing'
        raise ReportError(
            f"'{root}' is not a run folder: it holds {found}; expected round_1/ or "
            "base/eval.json, as 'grape iterate' and 'grape demo' write them."
        )
    reader = _Reader(root)
    config = reader.text(
        root / 'config.yaml', 'the resolved configuration', "'grape iterate' writes it."
    )
    evaluations = [_evaluation(reader, path, label) for path, label in evaluated]
    return Run(
        path=root,
        config_text=config,
        phases=_phases(reader, root / 'state.json'),
        rounds=tuple(_round(reader, number, path) for number, path in rounds),
        evaluations=tuple(e for e in evaluations if e is not None),
        notes=tuple(reader.notes),
    )


def config_value(run: Run, name: str) -> object:
    """Return a top-level value of config.yaml, None where there is none."""
    try:
        content = yaml.safe_load(run.config_text or '')
    except yaml.YAMLError:
        return None
    return content.get(name) if isinstance(content, dict) else None


def find_bag(run: Run, bag: Path | str, episode_id: str) -> Path | None:
    """Return a trial's bag folder: where the file says, or in the run folder if that was moved."""
    folders = [path for r in run.rounds for path in (r.path, r.path / 'bags')]
    folders += [path for e in run.evaluations for path in (e.path, e.path / 'bags')]
    name = episode_id or Path(bag).name
    candidates = [Path(bag), *(folder / name for folder in folders)]
    return next((path for path in candidates if name and path.is_dir()), None)


def _round_folders(root: Path) -> list[tuple[int, Path]]:
    found = []
    for path in root.glob('round_*'):
        number = path.name.removeprefix('round_')
        if path.is_dir() and number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def _is_trained(path: Path) -> bool:
    return any((path / name).exists() for name in ('scores.csv', 'pairs.json', 'bags', *METHODS))


def _phases(reader: _Reader, path: Path) -> tuple[Phase, ...]:
    content = reader.json(path, 'the record of steps', "'grape iterate' writes it.")
    if content is None:
        return ()
    try:
        entries = content['phases'].items()
        return tuple(_phase(name, entry) for name, entry in entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reader.note(
            path,
            f'Not a record of steps ({error!r}); expected {{"phases": {{NAME: {{"started_at": '
            'ISO 8601, "ended_at": ISO 8601}, ...}}.',
        )
        return ()


def _phase(name: str, entry: Mapping[str, object]) -> Phase:
    started = datetime.fromisoformat(str(entry['started_at']))
    ended = entry.get('ended_at')
    seconds = None
    if ended is not None:
        seconds = (datetime.fromisoformat(str(ended)) - started).total_seconds()
    status = str(entry.get('status') or ('unfinished' if ended is None else 'done'))
    return Phase(name, started.isoformat(sep=' ', timespec='seconds'), seconds, status)


def _round(reader: _Reader, number: int, path: Path) -> Round:
    trained = next((path / name for name in METHODS if (path / name).is_dir()), path / METHODS[0])
    return Round(
        number=number,
        path=path,
        trials=_trials(reader, path / 'scores.csv'),
        pairs=_pairs(reader, path / 'pairs.json') if trained.name in PAIRED else None,
        metrics=_metrics(reader, trained / 'metrics.jsonl'),
    )


def _trials(reader: _Reader, path: Path) -> tuple[Trial, ...]:
    try:
        rows = read_scores(path)
    except (ScoreTableError, UnicodeDecodeError) as error:
        reader.note(path, str(error))
        return ()
    if not rows:
        reader.note(path, "The table has no trial. Collect some with 'grape collect'.")
    counts: dict[tuple[str, int | None], int] = {}
    trials = []
    for row in sorted(rows, key=lambda r: (r.task, r.init_state or 0)):
        cell = (row.task, row.init_state)
        counts[cell] = counts.get(cell, 0) + 1
        trials.append(Trial(counts[cell], row))
    return tuple(trials)


def _pairs(reader: _Reader, path: Path) -> PairSet | None:
    try:
        return read_pairs(path)
    except (PairingError, UnicodeDecodeError) as error:
        reader.note(path, str(error))
        return None


def _metrics(reader: _Reader, path: Path) -> tuple[dict[str, float], ...]:
    text = reader.text(path, 'the training curves', "'grape train' writes them.")
    lines = [] if text is None else text.splitlines()
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(dict(json.loads(line)))
        except (json.JSONDecodeError, TypeError, ValueError):
            reader.note(path, f'Line {number} is not a JSON object and is left out.')
    return tuple(metrics)


def _evaluation(reader: _Reader, folder: Path, label: str) -> Evaluation | None:
    path = folder / 'eval.json'
    content = reader.json(path, f'the evaluation ({label})', "Write it with 'grape evaluate'.")
    if content is None:
        return None
    try:
        episodes = list(content.get('episodes') or [])
        results = tuple(map(EpisodeResult.from_dict, episodes))
        return Evaluation(
            label=label,
            path=folder,
            adapter_id=str(content.get('adapter_id', '')),
            summary=_summary(content),
            tasks={name: _summary(part) for name, part in (content.get('tasks') or {}).items()},
            results=results,
            bags={
                (r.task, r.init_state): str(e['bag'])
                for r, e in zip(results, episodes, strict=True)
                if e.get('bag')
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reader.note(path, f"Not an evaluation ({error!r}). Write it again with 'grape evaluate'.")
        return None


def _summary(content: Mapping[str, object]) -> EvaluationSummary:
    values = {f.name: content.get(f.name) for f in fields(EvaluationSummary)}
    for name in ('n', 'successes', 'errors', 'interrupted'):
        values[name] = int(values[name] or 0)
    for name in ('success', 'wilson_low', 'wilson_high'):
        values[name] = None if values[name] is None else float(values[name])
    return EvaluationSummary(**values)
