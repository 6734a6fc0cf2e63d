"""Each cost over its stage, successes against failures: what a person approves by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grape_trainer.scoring.cost_review import CostReview, Trial

COLUMNS = 3
COLOURS = {True: '#1b7f4b', False: '#b3470b'}
SHOWN = 30  # trials of either kind in a plot


def plot_review(reviews: Sequence[CostReview], trials: Sequence[Trial], path: Path) -> None:
    """Write a PNG with one panel a cost; the time axis is the share of the stage."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows = -(-len(reviews) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(4.2 * COLUMNS, 3.0 * rows), squeeze=False, layout='constrained'
    )
    for axis, found in zip(axes.flat, reviews, strict=False):
        for success in (False, True):
            chosen = [
                trial.costs[found.function.name]
                for trial in trials
                if trial.success is success and found.function.name in trial.costs
            ][:SHOWN]
            for index, curve in enumerate(chosen):
                label = {True: 'success', False: 'failure'}[success] if index == 0 else None
                at = np.linspace(0.0, 1.0, len(curve))
                axis.plot(at, curve, color=COLOURS[success], alpha=0.4, lw=1, label=label)
        axis.set_title(_title(found), fontsize=8)
        axis.set_xlabel('share of the stage', fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(reviews) :]:
        axis.set_axis_off()
    handles, labels = [], []
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc='outside lower right', ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _title(found: CostReview) -> str:
    auc = '' if found.auc is None else f', AUC {found.auc:.2f}'
    flags = f'\n{", ".join(found.flags)}' if found.flags else ''
    return f'{found.function.name}\nn {found.trials}{auc}{flags}'
