"""What the runs of an experiment gave, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from grape_bringup.manifest import read_manifest
from grape_trainer.evaluation import EpisodeResult
from grape_trainer.experiment import BASE, IN_DOMAIN, Experiment, Result
from grape_trainer.iteration import round_folder
from grape_trainer.iteration_config import IterateConfig


def read_results(experiment: Experiment) -> list[Result]:
    """Return every evaluation that is there."""
    results = []
    for run, by_seed in experiment.runs.items():
        for seed, config in by_seed.items():
            folder, steps = Path(config.out), 0
            for number in range(config.rounds + 1):
                where = folder / BASE
                if number:
                    round_ = round_folder(config, folder, number)
                    where, steps = round_.path, steps + _control_steps(round_.bags)
                results += [
                    Result(run, seed, number, suite, steps, episodes)
                    for suite, episodes in _evaluations(where, config)
                ]
    return results


def _evaluations(
    folder: Path, config: IterateConfig
) -> Iterator[tuple[str, tuple[EpisodeResult, ...]]]:
    for suite in config.suites:
        file = folder / suite.file
        if file.is_file():
            episodes = json.loads(file.read_text())['episodes']
            yield suite.name or IN_DOMAIN, tuple(map(EpisodeResult.from_dict, episodes))


def _control_steps(folder: Path) -> int:
    """Return the control steps of a folder's trials; 0 where there are none yet."""
    return sum({record.episode_id: record.steps for record in read_manifest(folder)}.values())
