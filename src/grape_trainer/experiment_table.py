"""An experiment's results as a table that people open, and as pictures.

OUT/results.csv   a row for each (run, round, suite): rates with n and interval, beside the base
OUT/table.md      the last rounds, as Markdown
OUT/curves.png    success over environment steps
OUT/rates.png     success, collisions and steps of the last rounds
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from grape_trainer.experiment import BASE, IN_DOMAIN, Cell

COLUMNS = (
    'run', 'round', 'suite', 'seeds', 'n', 'successes', 'success', 'wilson_low', 'wilson_high',
    'success_by_seed', 'difference', 'difference_low', 'difference_high', 'mcnemar_p',
    'grasp_rate', 'continuous_grasp_rate', 'collision_rate', 'mean_steps_success', 'mean_steps',
    'errors', 'env_steps',
)  # fmt: skip


def write_results(cells: Sequence[Cell], titles: Mapping[str, str], out: Path) -> list[Path]:
    """Write the table and the pictures; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / name for name in ('results.csv', 'table.md', 'curves.png', 'rates.png')]
    with files[0].open('w', newline='') as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(_row(cell) for cell in cells)
    files[1].write_text(markdown(cells, titles))
    _plot_curves(cells, titles, files[2])
    _plot_rates(cells, titles, files[3])
    return files


def markdown(cells: Sequence[Cell], titles: Mapping[str, str]) -> str:
    """Return a table for each suite: base first, then every run's rounds."""
    lines = []
    for suite in dict.fromkeys(cell.suite for cell in cells):
        lines += [
            f'**{suite.replace("_", " ")}**',
            '',
            '| method | K | n (seeds) | success | 95 % Wilson | by seed | against the base |'
            ' McNemar p | grasp | held 1 s | collided | steps of a success |',
            '|---' * 12 + '|',
        ]
        lines += [_line(cell, titles) for cell in cells if cell.suite == suite]
        lines.append('')
    return '\n'.join(lines)


def _line(cell: Cell, titles: Mapping[str, str]) -> str:
    found = cell.summary
    name = 'SFT (the base policy)' if cell.run == BASE else titles.get(cell.run, cell.run)
    difference, p_value = '', ''
    if cell.difference is not None:
        mean, low, high = cell.difference
        difference = f'{mean:+.2f} ({low:+.2f} to {high:+.2f})'
        p_value = f'{cell.against_base.p_value:.2g}'
    interval = '-'
    if found.success is not None:
        interval = f'{found.wilson_low:.2f} - {found.wilson_high:.2f}'
    columns = (
        name,
        str(cell.round) if cell.round else '',
        f'{found.n} ({cell.seeds})',
        f'{found.successes}/{found.n} = {_rate(found.success)}',
        interval,
        ', '.join(f'{rate:.2f}' for rate in cell.by_seed),
        difference,
        p_value,
        _rate(found.grasp_rate),
        _rate(found.continuous_grasp_rate),
        _rate(found.collision_rate),
        '-' if found.mean_steps_success is None else f'{found.mean_steps_success:.0f}',
    )
    return '| ' + ' | '.join(columns) + ' |'


def _row(cell: Cell) -> dict[str, object]:
    found = cell.summary
    difference = cell.difference or ('', '', '')
    return {
        **{name: vars(found)[name] for name in COLUMNS if name in vars(found)},
        'run': cell.run,
        'round': cell.round,
        'suite': cell.suite,
        'seeds': cell.seeds,
        'success_by_seed': ' '.join(f'{rate:.4f}' for rate in cell.by_seed),
        'difference': difference[0],
        'difference_low': difference[1],
        'difference_high': difference[2],
        'mcnemar_p': '' if cell.against_base is None else cell.against_base.p_value,
        'env_steps': round(cell.env_steps),
    }


def _plot_curves(cells: Sequence[Cell], titles: Mapping[str, str], path: Path) -> None:
    plt = _pyplot()
    suites = list(dict.fromkeys(cell.suite for cell in cells))
    figure, axes = plt.subplots(1, len(suites), figsize=(6.5 * len(suites), 4.5), squeeze=False)
    for axis, suite in zip(axes[0], suites, strict=True):
        base = next((c for c in cells if c.run == BASE and c.suite == suite), None)
        for run in dict.fromkeys(c.run for c in cells if c.run != BASE):
            rounds = [c for c in cells if c.run == run and c.suite == suite]
            points = ([base] if base else []) + sorted(rounds, key=lambda c: c.round)
            points = [c for c in points if c.summary.success is not None]
            if len(points) < 2:
                continue
            steps = [c.env_steps / 1000 for c in points]
            rates = [c.summary.success for c in points]
            (line,) = axis.plot(steps, rates, marker='o', label=titles.get(run, run))
            for cell, x in zip(points, steps, strict=True):
                low, high = cell.summary.wilson_low, cell.summary.wilson_high
                axis.plot([x, x], [low, high], color=line.get_color(), alpha=0.25)
        axis.set(
            title=suite.replace('_', ' '),
            xlabel='environment steps, thousands',
            ylabel='success (95 % Wilson)',
            ylim=(0, 1),
        )
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_rates(cells: Sequence[Cell], titles: Mapping[str, str], path: Path) -> None:
    """Draw the last round of each run: success, collisions, steps of a success."""
    plt = _pyplot()
    suites = list(dict.fromkeys(c.suite for c in cells))
    last = [cell for suite in suites for cell in last_rounds(cells, suite)]
    figure, axes = plt.subplots(
        len(suites), 3, figsize=(13, 0.42 * len(last) + 1.6 * len(suites)), squeeze=False
    )
    for row, suite in zip(axes, suites, strict=True):
        shown = [c for c in last if c.suite == suite]
        names = ['SFT (base)' if c.run == BASE else titles.get(c.run, c.run) for c in shown]
        places = np.arange(len(shown))[::-1]
        for axis, title, value in (
            (row[0], 'success', lambda c: c.summary.success),
            (row[1], 'episodes with a collision', lambda c: c.summary.collision_rate),
            (row[2], 'steps of a success', lambda c: c.summary.mean_steps_success),
        ):
            numbers = [value(c) if value(c) is not None else np.nan for c in shown]
            colours = ['0.6' if c.run == BASE else 'C0' for c in shown]
            axis.barh(places, numbers, color=colours)
            axis.set_title(f'{suite.replace("_", " ")}: {title}', fontsize=10)
            axis.set_yticks(places, names if axis is row[0] else [''] * len(names), fontsize=8)
            axis.grid(axis='x', alpha=0.3)
        for place, cell in zip(places, shown, strict=True):
            if cell.summary.n:
                low, high = cell.summary.wilson_low, cell.summary.wilson_high
                row[0].plot([low, high], [place, place], color='k', linewidth=1)
        row[0].set_xlim(0, 1)
        row[1].set_xlim(0, 1)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def last_rounds(cells: Sequence[Cell], suite: str = IN_DOMAIN) -> list[Cell]:
    """Return the base policy's cell and each run's last one of a suite."""
    runs = dict.fromkeys(cell.run for cell in cells if cell.suite == suite)
    return [
        max((c for c in cells if c.run == run and c.suite == suite), key=lambda c: c.round)
        for run in runs
    ]


def _rate(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def _pyplot():  # noqa: ANN202 - matplotlib.pyplot
    import matplotlib as mpl

    mpl.use('Agg')
    import matplotlib.pyplot as plt

    return plt
