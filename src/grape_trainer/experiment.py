"""An experiment: several methods, several seeds, one budget; what each run is and what they gave.

    OUT/<run>/seed_<s>/   a run folder of `grape iterate`
    OUT/shared/           the base policy's evaluation and first trials, common to all runs

All runs start from the same policy and, with the same seed, from the same first trials. A result
is one evaluation of one policy: (run, seed, round, suite); round 0 is the base policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from grape_trainer.evaluation import (
    EpisodeResult,
    EvaluationSummary,
    PairedComparison,
    compare,
    mcnemar_exact,
    success_by_cell,
    summarise,
)
from grape_trainer.iteration_config import IterateConfig, IterationError

IN_DOMAIN = 'in_domain'
BASE = 'base'
OWN_KEYS = ('out', 'seed', 'shared')  # the experiment's, not a run's
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Experiment:
    """What experiments/*.yaml asks for; `runs` are complete configurations of `grape iterate`."""

    name: str
    out: Path
    shared: Path
    seeds: tuple[int, ...]
    runs: Mapping[str, Mapping[int, IterateConfig]]  # run -> seed -> configuration
    titles: Mapping[str, str]

    @classmethod
    def load(cls, path: Path | str, out: Path | None = None) -> Experiment:
        """Read a YAML file with name, out, seeds, common and runs.

        `common` and each of `runs` have the keys of `grape iterate`; a run may have a `title`.

        Raises:
            IterationError: no such file, an unknown or missing key, or a value of the wrong kind.

        """
        path = Path(path)
        if not path.is_file():
            raise IterationError(f"There is no experiment '{path}'.")
        content = yaml.safe_load(path.read_text())
        wanted = {'name', 'out', 'seeds', 'common', 'runs'}
        if not isinstance(content, dict) or not wanted <= set(content) <= wanted | {'shared'}:
            raise IterationError(
                f"'{path}' has the keys {', '.join(content or ())}; expected "
                f'{", ".join(sorted(wanted))}, and shared if it is not OUT/shared.'
            )
        folder = out or Path(content['out'])
        shared = Path(content.get('shared', folder / 'shared'))
        seeds = tuple(content['seeds'])
        if not seeds or not content['runs']:
            raise IterationError(
                f"'{path}' has no seeds or no runs; expected one or more of each."
            )
        runs, titles = {}, {}
        for name, own in content['runs'].items():
            settings = {**content['common'], **(own or {})}
            titles[name] = str(settings.pop('title', name))
            given = [key for key in OWN_KEYS if key in settings]
            if given:
                raise IterationError(
                    f"'{path}': run {name} sets {given[0]}, which the experiment does itself."
                )
            runs[name] = {
                seed: IterateConfig.from_dict(
                    settings
                    | {
                        'out': str(folder / name / f'seed_{seed}'),
                        'seed': seed,
                        'shared': str(shared),
                    },
                    f"'{path}' run {name}",
                )
                for seed in seeds
            }
        return cls(str(content['name']), folder, shared, seeds, runs, titles)


@dataclass(frozen=True)
class Result:
    """One evaluation of one policy."""

    run: str
    seed: int
    round: int  # 0: the base policy
    suite: str  # in_domain, or a name in the configuration's evaluations
    env_steps: int  # control steps of all trials that the policy has learned from
    episodes: tuple[EpisodeResult, ...]


@dataclass(frozen=True)
class Cell:
    """What one run gave after a round, over all seeds, against the base policy."""

    run: str
    round: int
    suite: str
    seeds: int
    summary: EvaluationSummary  # of the episodes of all seeds together
    by_seed: tuple[float, ...]  # success rates
    env_steps: float  # mean over seeds
    against_base: PairedComparison | None  # same initial states, of all seeds together
    difference: tuple[float, float, float] | None  # success minus base's: mean, 95 % bootstrap


def cells(results: Sequence[Result]) -> list[Cell]:
    """Pool the seeds of each (run, round, suite); the base policy's rows first."""
    base = {
        suite: next(r for r in results if r.round == 0 and r.suite == suite)
        for suite in dict.fromkeys(r.suite for r in results if r.round == 0)
    }
    found = [
        _cell(BASE, [Result(BASE, 0, 0, suite, 0, one.episodes)], None)
        for suite, one in base.items()
    ]
    keys = dict.fromkeys((r.run, r.round, r.suite) for r in results if r.round > 0)
    for key in keys:
        same = [r for r in results if (r.run, r.round, r.suite) == key]
        found.append(_cell(key[0], same, base.get(key[2])))
    return found


def _cell(run: str, same: Sequence[Result], base: Result | None) -> Cell:
    episodes = [episode for result in same for episode in result.episodes]
    rates = [summarise(result.episodes).success for result in same]
    comparison = difference = None
    if base is not None:
        comparison = _together(compare(base.episodes, r.episodes) for r in same)
        difference = bootstrap_difference(base.episodes, [r.episodes for r in same])
    return Cell(
        run=run,
        round=same[0].round,
        suite=same[0].suite,
        seeds=len(same),
        summary=summarise(episodes),
        by_seed=tuple(rate for rate in rates if rate is not None),
        env_steps=float(np.mean([result.env_steps for result in same])),
        against_base=comparison,
        difference=difference,
    )


def _together(comparisons: Iterable[PairedComparison]) -> PairedComparison:
    """Add up the seeds' tables; the test takes (seed, initial state) as independent."""
    parts = list(comparisons)
    first = sum(part.only_first for part in parts)
    second = sum(part.only_second for part in parts)
    return PairedComparison(
        n=sum(part.n for part in parts),
        both=sum(part.both for part in parts),
        only_first=first,
        only_second=second,
        neither=sum(part.neither for part in parts),
        p_value=mcnemar_exact(first, second),
    )


def bootstrap_difference(
    base: Sequence[EpisodeResult], seeds: Sequence[Sequence[EpisodeResult]]
) -> tuple[float, float, float]:
    """Return success minus the base policy's: mean and 95 % interval.

    The bootstrap draws initial states, with all seeds' episodes of each: those of one state are
    not independent.
    """
    before = success_by_cell(base, 'base')
    after = [success_by_cell(results, 'compared') for results in seeds]
    common = sorted(set(before).intersection(*after))
    if not common:
        raise ValueError('The policies share no decided initial state.')
    differences = np.array(
        [np.mean([one[state] for one in after]) - before[state] for state in common]
    )
    draws = np.random.default_rng(0).integers(0, len(common), (BOOTSTRAP, len(common)))
    means = differences[draws].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)
