"""The plots of a run's report, as SVG to be put inside an HTML page (report_figure.py)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from grape_trainer.evaluation import EvaluationSummary
from grape_trainer.report_distances import StageDistances
from grape_trainer.report_figure import INK, OUTCOME_COLOURS, STYLE, inline_svg, make_panels
from grape_trainer.report_reading import percent
from grape_trainer.report_run import Evaluation, Round, Trial

OUTCOME_MARKERS = {'success': 'o', 'failure': 'X', 'error': 's', 'interrupted': 'D'}
SERIES_COLOURS = ('#8a94a6', '#0072B2', '#E69F00', '#56B4E9', '#CC79A7', '#009E73')
STAGE_COLOURS = ('#0072B2', '#E69F00', '#CC79A7')

TERM_LABELS = {
    'r_gcpg': 'R_GCPG',
    'r_self': 'R_self (nats, sum)',
    'r_self_per_token': 'R_self per token (nats)',
    'log_r_ext': 'log R_ext',
    'r_ext': 'R_ext',
    'success': 'I_success',
}
STRIP_TERMS = ('r_gcpg', 'r_self', 'r_self_per_token', 'log_r_ext', 'r_ext')

# Title, and (metric, line style, label) of each line.
CURVES = (
    ('Loss', (('loss', '-', ''),)),
    ('Reward margin', (('rewards/margins', '-', ''),)),
    ('Accuracy: chosen above rejected', (('rewards/accuracies', '-', ''),)),
    (
        'Log-ratio to the reference, nats per step',
        (
            ('log_ratio_per_step/chosen', '-', 'chosen'),
            ('log_ratio_per_step/rejected', ':', 'rejected'),
        ),
    ),
)


def success_plot(evaluations: Sequence[Evaluation]) -> str:
    """Return bars of the success rates with 95 % Wilson intervals, overall and per task."""
    tasks = sorted({task for e in evaluations for task in e.tasks})
    groups = ['all tasks', *tasks] if len(tasks) > 1 else tasks or ['all tasks']
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = make_panels(1, 1, max(5.5, 1.7 * len(groups) + 1.5), 3.3)
        width = 0.8 / len(evaluations)
        for i, evaluation in enumerate(evaluations):
            offset = (i - (len(evaluations) - 1) / 2) * width
            parts = [evaluation.tasks.get(group, evaluation.summary) for group in groups]
            bars = [(x + offset, p) for x, p in enumerate(parts) if p.success is not None]
            _rates(axes, bars, width * 0.92, SERIES_COLOURS[i % len(SERIES_COLOURS)])
            axes.bar(
                [0], [0], color=SERIES_COLOURS[i % len(SERIES_COLOURS)], label=evaluation.label
            )
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_ylim(0, 1.2)
        ticks = np.linspace(0, 1, 6)
        axes.set_yticks(ticks, [percent(tick) for tick in ticks])
        axes.set_ylabel('success')
        axes.grid(axis='x', visible=False)
        figure.legend(loc='outside lower center', ncols=min(len(evaluations), 5))
        return inline_svg(
            figure,
            'Success rates with 95 % Wilson intervals: '
            + '; '.join(f'{e.label}: {e.summary}' for e in evaluations),
        )


def terms_plot(trials: Sequence[Trial]) -> str | None:
    """Return one strip plot a reward term: every trial is a mark, every outcome a column.

    None where no trial has a term.
    """
    names = [n for n in STRIP_TERMS if any(vars(t.row)[n] is not None for t in trials)]
    if not names:
        return None
    scored = {t.row.outcome for t in trials if any(vars(t.row)[n] is not None for n in names)}
    outcomes = [outcome for outcome in OUTCOME_COLOURS if outcome in scored]
    generator = np.random.default_rng(0)
    with matplotlib.rc_context(STYLE):
        figure, panels = make_panels(1, len(names), 1.95 * len(names) + 0.4, 2.9)
        for axes, name in zip(panels, names, strict=True):
            for i, outcome in enumerate(outcomes):
                values = [vars(t.row)[name] for t in trials if t.row.outcome == outcome]
                values = np.array([v for v in values if v is not None])
                axes.scatter(
                    i + generator.uniform(-0.22, 0.22, len(values)),
                    values,
                    s=26,
                    marker=OUTCOME_MARKERS[outcome],
                    color=OUTCOME_COLOURS[outcome],
                    alpha=0.7,
                    linewidths=0,
                )
                if len(values):
                    axes.hlines(np.median(values), i - 0.32, i + 0.32, color=INK, linewidth=1.5)
            axes.set_title(TERM_LABELS[name])
            axes.set_xticks(range(len(outcomes)), outcomes)
            axes.set_xlim(-0.6, len(outcomes) - 0.4)
            axes.grid(axis='x', visible=False)
        return inline_svg(
            figure,
            f'Strip plots of {", ".join(TERM_LABELS[n] for n in names)} of {len(trials)} trials '
            'by outcome; a bar is the median. The numbers are in the table of trials.',
        )


def curves_plot(rounds: Sequence[Round]) -> str | None:
    """Return the TPO curves, one colour a round; None where no metric was logged."""
    logged = {name for r in rounds for line in r.metrics for name in line}
    panels = [(t, series) for t, series in CURVES if any(name in logged for name, _, _ in series)]
    if not panels:
        return None
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    with matplotlib.rc_context(STYLE):
        figure, grid = make_panels(rows, columns, 4.6 * columns, 2.6 * rows, shown=len(panels))
        for axes, (title, series) in zip(grid, panels, strict=False):
            for i, r in enumerate(rounds):
                for name, line, label in series:
                    _curve(axes, r, name, line, SERIES_COLOURS[1 + i % 5], label, len(rounds) > 1)
            axes.set_title(title)
            axes.set_xlabel('optimiser step')
            axes.xaxis.get_major_locator().set_params(integer=True)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
        return inline_svg(
            figure,
            f'TPO training curves against the optimiser step: {", ".join(t for t, _ in panels)}.',
        )


def distances_plot(distances: StageDistances, title: str) -> str:
    """Return a trial's distances over time; each is drawn bold in the stage that costs it."""
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = make_panels(1, 1, 4.5, 3.2)
        for colour, line in zip(STAGE_COLOURS, distances.lines, strict=False):
            axes.plot(distances.time_s, line.distance_m, color=colour, alpha=0.3, linewidth=1.1)
            label = f'{line.stage}: {line.label}'
            if line.states is None:
                axes.plot([], [], color=colour, alpha=0.3, label=f'{label} (not reached)')
                continue
            span_s = distances.time_s[line.states]
            axes.axvspan(span_s[0], span_s[-1], color=colour, alpha=0.08, linewidth=0)
            axes.plot(
                span_s, line.distance_m[line.states], color=colour, linewidth=2.2, label=label
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel('time, s')
        axes.set_ylabel('m')
        axes.set_title(title)
        figure.legend(fontsize=8, loc='outside lower center')
        reached = ', '.join(line.stage for line in distances.lines if line.states is not None)
        return inline_svg(figure, f'{title}: distances over time. Stages reached: {reached}.')


def _rates(
    axes: Axes, bars: Sequence[tuple[float, EvaluationSummary]], width: float, colour: str
) -> None:
    """Draw bars of rates at given places, with intervals and n."""
    for x, part in bars:
        axes.bar(x, part.success, width, color=colour)
        if part.wilson_low is None or part.wilson_high is None:
            continue
        low, high = part.success - part.wilson_low, part.wilson_high - part.success
        # A rate of 0 or 1 differs from the interval's end by rounding.
        ends = np.clip([[low], [high]], 0, None)
        axes.errorbar(x, part.success, ends, fmt='none', ecolor=INK, elinewidth=1.3, capsize=4)
        axes.annotate(
            f'{percent(part.success)}\nn {part.n}',
            (x, part.wilson_high),
            (0, 3),
            textcoords='offset points',
            ha='center',
            fontsize=8.5,
        )


def _curve(
    axes: Axes, r: Round, name: str, line: str, colour: str, label: str, name_round: bool
) -> None:
    points = [(m['step'], m[name]) for m in r.metrics if name in m and 'step' in m]
    if not points:
        return
    words = ' '.join(word for word in (f'round {r.number}' if name_round else '', label) if word)
    marker = '.' if len(points) <= 40 else None
    axes.plot(*zip(*points, strict=True), line, marker=marker, color=colour, label=words or None)
