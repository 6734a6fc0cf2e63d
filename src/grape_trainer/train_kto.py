"""Train a LoRA adapter by KTO on trials that need not share initial states (`grape train kto`).

scores.csv or bags + policy [+ start adapter]  ->  adapter folder
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from grape_trainer.dataset import DataError, LabelledBag, require_likelihoods
from grape_trainer.learner import ProgressCallback
from grape_trainer.objective.kto import KtoOptions, balanced_weights
from grape_trainer.preference_run import PreferenceResult, PreferenceRun
from grape_trainer.scoring.desirability import label_bags, label_scores
from grape_trainer.training_config import KtoConfig

log = logging.getLogger(__name__)


def train_kto(
    config: KtoConfig,
    policy_dir: Path | str,
    trials: Sequence[LabelledBag],
    out_dir: Path | str,
    start_adapter: Path | str | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> PreferenceResult:
    """Train an adapter on the trials of `labelled_trials`; all else is as in `train_tpo`."""
    objective = objective_for(config, trials)
    run = PreferenceRun('kto', config, objective, trials, policy_dir, out_dir, start_adapter)
    return run.train(progress, resume)


def labelled_trials(
    config: KtoConfig,
    scores: Path | str | None = None,
    bags: Sequence[Path] = (),
) -> list[LabelledBag]:
    """Return the trials of a score table by the configuration's rule, or of bags by outcome.

    Raises:
        DesirabilityError: one kind of trial only.
        DataError: neither or both are given, bags with another rule than success, a bag that is
            not there, or whose policy gives no likelihoods.

    """
    if (scores is None) == (not bags):
        raise DataError('Give either a score table or folders of bags, not both or none.')
    if scores is None and config.desirable != 'success':
        raise DataError(
            f"desirable is '{config.desirable}', which needs R_GCPG: give a score table "
            "('grape score') instead of bags, or set desirable: success."
        )
    if scores is None:
        labels = label_bags(bags)
    else:
        labels = label_scores(scores, config.desirable, config.threshold)
    absent = [bag for bag in labels if not bag.exists()]
    if absent:
        raise DataError(
            f"'{scores}' names {len(absent)} bags that are not there, first '{absent[0]}'. Move "
            "the bags back beside it, or make it again with 'grape score'."
        )
    for bag in labels:
        require_likelihoods(bag)
    return [LabelledBag(f'trial {bag.name}', bag, good) for bag, good in labels.items()]


def objective_for(config: KtoConfig, trials: Sequence[LabelledBag]) -> KtoOptions:
    """Return the options; weights that are not given balance the classes of all trials."""
    good = sum(trial.desirable for trial in trials)
    bad = len(trials) - good
    options = config.options
    if config.desirable_weight is None:
        desirable, undesirable = balanced_weights(good, bad)
        options = replace(options, desirable_weight=desirable, undesirable_weight=undesirable)
    log.info(
        '%d desirable trials weigh %.3g each, %d undesirable ones %.3g',
        good, options.desirable_weight, bad, options.undesirable_weight,
    )  # fmt: skip
    return options
