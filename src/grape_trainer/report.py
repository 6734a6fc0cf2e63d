"""One page about one run: success before and after, every trial, the pairs, the curves.

The page is one HTML file without network access: plots are inline SVG, pictures are data URIs.
What a run folder lacks is named on the page (report_run.py); only a folder that holds nothing of
a run is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from grape_trainer.report_media import Film, MediaError, film
from grape_trainer.report_page import inline, page_environment
from grape_trainer.report_plots import (
    TERM_LABELS,
    curves_plot,
    distances_plot,
    success_plot,
    terms_plot,
)
from grape_trainer.report_reading import term_spread, verdicts
from grape_trainer.report_run import Note, Run, Trial, config_value, find_bag, read_run
from grape_trainer.scoring.objective import Objective, ObjectiveError, load_objective

REPORT_NAME = 'report.html'
# A page with more rows than this is slow to open; all of them are in scores.csv.
MAX_TRIAL_ROWS = 2000
MAX_PAIR_ROWS = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownTrial:
    """A trial chosen to be looked at."""

    title: str
    film: Film
    distances_svg: Markup | None


@dataclass(frozen=True)
class Fact:
    """One line of the run's origin: what, and every value that occurs."""

    name: str
    values: tuple[str, ...]


def build_report(run_dir: Path | str) -> Path:
    """Write RUN/report.html.

    Args:
        run_dir: a run folder of `grape iterate`, complete or not.

    Returns:
        The path of the page.

    Raises:
        ReportError: no such folder, or nothing of a run in it.

    """
    run = read_run(run_dir)
    shown, media_notes = _shown_trials(run)
    notes = (*run.notes, *media_notes)
    trials = [trial for r in run.rounds for trial in r.trials]
    stages = list(dict.fromkeys(stage for t in trials for stage in t.row.stage_costs))
    durations_s = [p.seconds for p in run.phases if p.seconds is not None]
    curves = curves_plot(run.rounds)
    terms = terms_plot(trials)
    page = (
        page_environment()
        .get_template('report.html.j2')
        .render(
            run=run,
            name=run.path.resolve().name,
            made_at=datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
            notes=notes,
            verdicts=verdicts(run.evaluations),
            success_svg=inline(success_plot(run.evaluations) if run.evaluations else None),
            terms_svg=inline(terms),
            curves_svg=inline(curves),
            trials=trials,
            trial_rows=[(r.number, t) for r in run.rounds for t in r.trials][:MAX_TRIAL_ROWS],
            trial_count=len(trials),
            unscored=[trial for trial in trials if trial.row.r_gcpg is None],
            stages=stages,
            term_labels=TERM_LABELS,
            spreads=[(r, term_spread(r.trials)) for r in run.rounds],
            max_pair_rows=MAX_PAIR_ROWS,
            shown=shown,
            phases=run.phases,
            longest_s=max(durations_s, default=0.0),
            total_s=sum(durations_s),
            facts=_facts(run, trials),
        )
    )
    path = run.path / REPORT_NAME
    partial = path.with_suffix('.html.partial')
    partial.write_text(page, encoding='utf-8')
    partial.replace(path)
    log.info('%s: %.1f MB, %d notes', path, path.stat().st_size / 1e6, len(notes))
    return path


def _shown_trials(run: Run) -> tuple[list[ShownTrial], list[Note]]:
    """Return films of a success and of a failure, best of one pair, and what went wrong."""
    shown, notes = [], []
    objective = _objective(run)
    for outcome, candidates in _candidates(run).items():
        problem = f'No trial ended in {outcome}: there is none to show.'
        for bag, episode_id in candidates[:3]:
            path = find_bag(run, bag, episode_id)
            if path is None:
                problem = f"The bag of trial '{episode_id}' is not there: it was at '{bag}'."
                continue
            try:
                found = film(path, objective)
            except MediaError as error:
                problem = str(error)
                continue
            svg = None
            if found.distances is not None:
                svg = inline(distances_plot(found.distances, f'{outcome}: {found.episode_id}'))
            shown.append(ShownTrial(f'A {outcome}', found, svg))
            break
        else:
            notes.append(Note('bags', problem))
    return shown, notes


def _candidates(run: Run) -> dict[str, list[tuple[Path, str]]]:
    """Return (bag, episode id) of successes and failures, the clearest pair's first."""
    found: dict[str, list[tuple[Path, str]]] = {'success': [], 'failure': []}
    for r in run.rounds:
        pairs = sorted(r.pairs.pairs if r.pairs else (), key=lambda pair: -pair.margin)
        for pair in pairs:
            if (pair.chosen.outcome, pair.rejected.outcome) == ('success', 'failure'):
                found['success'].append((pair.chosen.bag, pair.chosen.episode_id))
                found['failure'].append((pair.rejected.bag, pair.rejected.episode_id))
        for trial in r.trials:
            if trial.row.outcome in found:
                found[trial.row.outcome].append((trial.row.bag, trial.row.episode_id))
    for evaluation in run.evaluations:
        for result in evaluation.results:
            bag = evaluation.bags.get((result.task, result.init_state))
            if bag and str(result.outcome) in found:
                found[str(result.outcome)].append((Path(bag), Path(bag).name))
    return {outcome: list(dict.fromkeys(bags)) for outcome, bags in found.items()}


def _objective(run: Run) -> Objective | None:
    """Return the objective that the trials were scored for, None where it is not to be found."""
    rows = [t.row for r in run.rounds for t in r.trials if t.row.r_ext is not None]
    if len({row.config_sha256 for row in rows}) != 1:
        return None
    row = rows[0]
    try:
        objective = load_objective(row.objective)
    except ObjectiveError as error:
        log.warning('the stages of the trials are not shown: %s', error)
        return None
    scored = objective.with_reward(
        lambda_self=row.lambda_self,
        lambda_ext=row.lambda_ext,
        lambda_success=row.lambda_success,
        self_reward=row.self_reward,
    )
    if scored.program is not None and scored.template is not None:
        return scored  # its own hash leaves the program out; the stages are the template's
    if scored.config_sha256 != row.config_sha256:
        log.warning("objective '%s' has changed since the trials were scored", row.objective)
        return None
    return scored


def _facts(run: Run, trials: Iterable[Trial]) -> list[Fact]:
    """Return what the run's numbers are a function of."""
    rows = [trial.row for trial in trials]
    seed = config_value(run, 'seed')
    seeds = [row.seed for row in rows if row.seed is not None]
    span = [f'{min(seeds)} to {max(seeds)}'] if seeds else []
    found = {
        'seed of the run': [] if seed is None else [str(seed)],
        'seeds of the trials': span,
        'code version': _distinct(row.code_version for row in rows),
        'policy sha256': _distinct(row.policy_sha256 for row in rows),
        'adapters that collected': _distinct(row.adapter_id for row in rows),
        'adapters evaluated': _distinct(e.adapter_id for e in run.evaluations),
        'sampling temperature': _distinct(row.temperature for row in rows),
        'objective': _distinct(row.objective for row in rows),
        'cost sha256': _distinct(row.cost_sha256 for row in rows),
        'objective settings sha256': _distinct(row.config_sha256 for row in rows),
    }
    return [Fact(name, tuple(values)) for name, values in found.items() if values]


def _distinct(values: Iterable[object]) -> list[str]:
    return [str(value) for value in dict.fromkeys(values) if value not in (None, '')]
