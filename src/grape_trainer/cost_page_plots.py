"""The figures of the page about a cost program: each cost over its stage, each trial over time."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from grape_trainer.report_figure import INK, OUTCOME_COLOURS, STYLE, inline_svg, make_panels
from grape_trainer.scoring.cost_program import CostFunction
from grape_trainer.scoring.cost_review import CostReview, Trial
from grape_trainer.scoring.objective_sections import TermSettings
from grape_trainer.scoring.stage import StageSpan

SHARES = np.linspace(0.0, 1.0, 41)  # of a stage, at which trials of other lengths are compared
SHOWN = 30  # trials of either kind in a plot; the median is over all
STAGE_COLOURS = ('#0072B2', '#E69F00', '#CC79A7', '#56B4E9', '#8a94a6')


def curves_plot(
    found: CostReview, trials: Sequence[Trial], term: TermSettings | None = None
) -> str:
    """Return a cost over its stage: every trial thin, the median of either outcome bold.

    Where it is known how the cost counts in a score, lines say from where to where it does, as far
    as the trials come near them.
    """
    name = found.function.name
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = make_panels(1, 1, 5.4, 2.9)
        for outcome in ('failure', 'success'):
            curves = [
                _over_shares(trial.costs[name])
                for trial in trials
                if name in trial.costs and trial.success is (outcome == 'success')
            ]
            for curve in curves[:SHOWN]:
                axes.plot(SHARES, curve, color=OUTCOME_COLOURS[outcome], alpha=0.25, linewidth=0.9)
            if curves:
                axes.plot(
                    SHARES,
                    np.median(curves, axis=0),
                    color=OUTCOME_COLOURS[outcome],
                    linestyle='-' if outcome == 'success' else '--',
                    linewidth=2.4,
                    label=f'{outcome}, median of {len(curves)}',
                )
        _satisfied(axes, 'satisfied: 0 or less')
        limits = {'threshold': term.threshold, 'worst': term.worst} if term else {}
        for (label, value), line in zip(limits.items(), ('--', '-.'), strict=False):
            if 0.0 < value < axes.get_ylim()[1]:
                axes.axhline(value, color=INK, linewidth=1, linestyle=line, label=label)
        axes.set_xlabel(f'share of stage {found.function.stage}')
        figure.legend(fontsize=8, loc='outside lower center', ncols=3)
        return inline_svg(
            figure, f'{name} over the stage, {found.trials} trials. The numbers are in the table.'
        )


def timeline_plot(trial: Trial, functions: Sequence[CostFunction], rate_hz: float) -> str:
    """Return a trial over time: a bar of its stages, and every cost during its stage."""
    spans = [span for span in trial.spans if span.reached]
    shown = [function for function in functions if function.name in trial.costs]
    end_s = max(span.states.stop - 1 for span in spans) / rate_hz
    with matplotlib.rc_context(STYLE):
        figure, rows = make_panels(1 + len(shown), 1, 11.0, 0.55 + 0.62 * len(shown))
        _stage_bar(rows[0], spans, rate_hz)
        for axes, function in zip(rows[1:], shown, strict=True):
            number = next(i for i, s in enumerate(spans) if s.stage.number == function.stage)
            _cost_row(axes, function, trial, spans[number], _colour(number), rate_hz)
        for axes in rows:
            axes.set_xlim(0, end_s)
            axes.tick_params(labelbottom=axes is rows[-1], labelsize=8)
        rows[-1].set_xlabel('time, s')
        return inline_svg(figure, f'{trial.name}: its stages and their costs over time.')


def _stage_bar(axes: Axes, spans: Sequence[StageSpan], rate_hz: float) -> None:
    for number, span in enumerate(spans):
        start_s, stop_s = span.start / rate_hz, span.stop / rate_hz
        axes.barh(0, stop_s - start_s, left=start_s, height=1, color=_colour(number), alpha=0.55)
        ends = '' if span.completed else ', not completed'
        axes.text(
            start_s + 0.03, 0, f'{span.stage.number} {span.stage.name}{ends}', va='center',
            fontsize=9, fontweight='bold', clip_on=True,
        )  # fmt: skip
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _cost_row(
    axes: Axes, function: CostFunction, trial: Trial, span: StageSpan, colour: str, rate_hz: float
) -> None:
    costs = trial.costs[function.name]
    time_s = np.arange(span.states.start, span.states.stop) / rate_hz
    axes.axvspan(time_s[0], time_s[-1], color=colour, alpha=0.12, linewidth=0)
    axes.plot(time_s, costs, color=colour, linewidth=2)
    _satisfied(axes)
    axes.yaxis.get_major_locator().set_params(nbins=2)
    axes.set_ylabel(function.name, rotation=0, ha='right', va='center', fontsize=8)


def _satisfied(axes: Axes, label: str | None = None) -> None:
    """Draw the line up to which a cost is satisfied, and leave room around it."""
    axes.axhline(0.0, color=INK, linewidth=1, linestyle=':', label=label)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.05 * (high - low)), high)


def _over_shares(costs: np.ndarray) -> np.ndarray:
    return np.interp(SHARES, np.linspace(0.0, 1.0, len(costs)), costs)


def _colour(number: int) -> str:
    return STAGE_COLOURS[number % len(STAGE_COLOURS)]
