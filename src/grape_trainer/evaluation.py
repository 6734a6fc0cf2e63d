"""What a set of evaluation episodes says: success with n and a 95 % Wilson interval.

Outcomes are counted apart: success and failure are the policy's, error is the infrastructure's
and interrupted is a person's; neither of the last two is in n. A collision is contact with
something that is neither the target nor its support (SceneState.collisions). A grasp is a state in
which both fingers touch the target; a continuous one lasts for a second (SimplerEnv's
consecutive grasp: five steps at 5 Hz).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import comb, sqrt
from pathlib import Path

from grape_episode.bag import read_episode
from grape_episode.label import effective_outcome
from grape_episode.outcome import Outcome
from grape_episode.task_name import base_task
from grape_trainer.scoring.stage_definition import declared_roles

CONTINUOUS_GRASP_S = 1.0
TRAINING_STATES = 'training_states.json'
# Two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054


class InitStateError(ValueError):
    """Initial states that cannot be read or that training has already seen."""


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode; the flags are None where the bag has no SceneState or no target."""

    task: str
    init_state: int
    outcome: Outcome
    steps: int
    collided: bool | None = None
    grasped: bool | None = None
    grasped_continuously: bool | None = None

    @classmethod
    def from_dict(cls, entry: Mapping[str, object]) -> EpisodeResult:
        """Read an episode of `evaluation_dict`; keys that it does not know are left out.

        Raises:
            KeyError, TypeError, ValueError: it is none.

        """
        return cls(
            task=str(entry['task']),
            init_state=int(entry['init_state']),
            outcome=Outcome(entry['outcome']),
            steps=int(entry['steps']),
            collided=entry.get('collided'),
            grasped=entry.get('grasped'),
            grasped_continuously=entry.get('grasped_continuously'),
        )


@dataclass(frozen=True)
class EvaluationSummary:
    """Statistics of the episodes that the policy decided.

    `success` is a rate with its Wilson interval over `n` = successes + failures; `mean_steps` is
    over these n episodes, `mean_steps_success` over the successes. `grasp_rate`,
    `continuous_grasp_rate` and `collision_rate` are shares of the episodes that recorded the
    scene. A statistic of no episodes is None.
    """

    success: float | None
    n: int
    wilson_low: float | None
    wilson_high: float | None
    successes: int
    errors: int
    interrupted: int
    mean_steps: float | None
    mean_steps_success: float | None
    collision_rate: float | None
    grasp_rate: float | None = None
    continuous_grasp_rate: float | None = None

    def __str__(self) -> str:
        """Read as `success 0.45 (n 20, 95 % 0.26-0.66), 0 errors`."""
        if self.success is None:
            return f'success unknown (n 0), {self.errors} errors'
        return (
            f'success {self.success:.2f} (n {self.n}, 95 % {self.wilson_low:.2f}-'
            f'{self.wilson_high:.2f}), {self.errors} errors'
        )


@dataclass(frozen=True)
class PairedComparison:
    """Two policies on the same (task, initial state) cells, McNemar's exact test.

    `p_value` is two-sided; `only_first` counts cells that the first policy alone solved.
    """

    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a binomial rate.

    Args:
        successes: count of successes, 0..n.
        n: trials, at least 1.
        z: normal quantile; the default gives 95 %.

    Returns:
        The lower and upper bound, within [0, 1].

    Raises:
        ValueError: n < 1 or successes outside 0..n.

    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f'{successes} successes of {n} trials; expected 0 <= successes <= n >= 1.'
        )
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(results: Iterable[EpisodeResult]) -> EvaluationSummary:
    """Summarise evaluated episodes; errors and interruptions are counted apart from failures."""
    results = list(results)
    decided = [r for r in results if r.outcome in (Outcome.SUCCESS, Outcome.FAILURE)]
    won = [r for r in decided if r.outcome == Outcome.SUCCESS]
    low, high = wilson_interval(len(won), len(decided)) if decided else (None, None)
    return EvaluationSummary(
        success=_mean([float(r.outcome == Outcome.SUCCESS) for r in decided]),
        n=len(decided),
        wilson_low=low,
        wilson_high=high,
        successes=len(won),
        errors=sum(r.outcome == Outcome.ERROR for r in results),
        interrupted=sum(r.outcome == Outcome.INTERRUPTED for r in results),
        mean_steps=_mean([r.steps for r in decided]),
        mean_steps_success=_mean([r.steps for r in won]),
        collision_rate=_share(r.collided for r in decided),
        grasp_rate=_share(r.grasped for r in decided),
        continuous_grasp_rate=_share(r.grasped_continuously for r in decided),
    )


def evaluation_dict(
    results: Sequence[EpisodeResult], policy: str, adapter_id: str
) -> dict[str, object]:
    """Return the JSON form of `grape evaluate`: the summary, the same per task, every episode.

    The summary's fields (success, n, wilson_low, wilson_high, errors, mean_steps,
    collision_rate, ...) are at the top level.
    """
    tasks = sorted({r.task for r in results})
    return {
        'policy': policy,
        'adapter_id': adapter_id,
        **vars(summarise(results)),
        'tasks': {t: vars(summarise(r for r in results if r.task == t)) for t in tasks},
        'episodes': [{**vars(r), 'outcome': str(r.outcome)} for r in results],
    }


def read_result(bag: Path) -> EpisodeResult:
    """Read one recorded episode's result (a person's label wins) without its images."""
    episode = read_episode(bag, images=False)
    info, scene = episode.info, episode.scene
    target = declared_roles(info.environment).get('target')
    longest = None
    if scene is not None and target:
        longest = _longest_run([target in names for names in scene.grasped])
    rate_hz = float(info.contract.get('control_rate_hz', 0.0))
    return EpisodeResult(
        task=info.task,
        init_state=info.init_state,
        outcome=Outcome(effective_outcome(bag)),
        steps=info.steps,
        collided=None if scene is None else any(len(c) > 0 for c in scene.collisions),
        grasped=None if longest is None else longest > 0,
        grasped_continuously=(
            None if longest is None else longest >= max(1.0, CONTINUOUS_GRASP_S * rate_hz)
        ),
    )


def compare(first: Sequence[EpisodeResult], second: Sequence[EpisodeResult]) -> PairedComparison:
    """Compare two policies on the cells (task, initial state) that both decided.

    Raises:
        ValueError: a policy has two results for one cell, or no cell is common.

    """
    one, two = success_by_cell(first, 'first'), success_by_cell(second, 'second')
    cells = one.keys() & two.keys()
    if not cells:
        raise ValueError(
            f'The policies share no decided (task, init_state): the first has {len(one)} and the '
            f'second {len(two)}. Evaluate both on the same tasks and --init-states.'
        )
    both = sum(one[c] and two[c] for c in cells)
    only_first = sum(one[c] and not two[c] for c in cells)
    only_second = sum(two[c] and not one[c] for c in cells)
    return PairedComparison(
        n=len(cells),
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=len(cells) - both - only_first - only_second,
        p_value=mcnemar_exact(only_first, only_second),
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: discordant cells split like fair coin tosses."""
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)


def parse_init_states(text: str) -> tuple[int, ...]:
    """Read '0-4,7' as (0, 1, 2, 3, 4, 7): sorted, each once.

    Raises:
        InitStateError: an empty text, not a number, or a range that runs backwards.

    """
    states: set[int] = set()
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InitStateError(
                f"'{part}' in the initial states '{text}' is not a number or a range; "
                "expected a form like '0-4,7'."
            )
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise InitStateError(f"The range '{part}' runs backwards; write '{high}-{low}'.")
        states.update(range(low, high + 1))
    return tuple(sorted(states))


def assert_disjoint(
    train: Iterable[tuple[str, int]], evaluation: Iterable[tuple[str, int]]
) -> None:
    """Refuse an evaluation on initial states that training has seen, perturbed or not.

    Args:
        train: (task, init_state) of the training episodes.
        evaluation: (task, init_state) to be evaluated.

    Raises:
        InitStateError: names the shared cells.

    """
    seen = {(base_task(task), state) for task, state in train}
    shared = sorted({cell for cell in evaluation if (base_task(cell[0]), cell[1]) in seen})
    if shared:
        cells = ', '.join(f'{task} state {state}' for task, state in shared[:8])
        more = f' and {len(shared) - 8} more' if len(shared) > 8 else ''
        raise InitStateError(
            f'Training and evaluation share {len(shared)} initial states: {cells}{more}. '
            'Expected none in common. Choose other --init-states for the evaluation.'
        )


def training_states(*folders: Path | None) -> set[tuple[str, int]]:
    """Return the (task, initial state) that policy and adapter folders say they learned from."""
    states: set[tuple[str, int]] = set()
    for folder in folders:
        if folder is not None and (folder / TRAINING_STATES).is_file():
            content = json.loads((folder / TRAINING_STATES).read_text())
            states |= {(str(task), int(state)) for task, state in content['states']}
    return states


def write_training_states(folder: Path, states: set[tuple[str, int]]) -> None:
    """Keep in a policy or adapter folder what it learned from; `grape evaluate` refuses these."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {'states': sorted([task, state] for task, state in states)}
    (folder / TRAINING_STATES).write_text(json.dumps(content) + '\n')


def success_by_cell(results: Sequence[EpisodeResult], which: str) -> dict[tuple[str, int], bool]:
    """Return (task, initial state) -> success, of the decided episodes.

    Args:
        results: of a greedy policy.
        which: how errors call the policy.

    Raises:
        ValueError: two results for one cell.

    """
    cells: dict[tuple[str, int], bool] = {}
    for result in results:
        if result.outcome not in (Outcome.SUCCESS, Outcome.FAILURE):
            continue
        cell = (result.task, result.init_state)
        if cell in cells:
            raise ValueError(
                f'The {which} policy has two results for {cell[0]} state {cell[1]}; expected one '
                'a cell (greedy evaluation).'
            )
        cells[cell] = result.outcome == Outcome.SUCCESS
    return cells


def _longest_run(flags: Sequence[bool]) -> int:
    return max((sum(1 for _ in run) for flag, run in groupby(flags) if flag), default=0)


def _share(flags: Iterable[bool | None]) -> float | None:
    return _mean([float(flag) for flag in flags if flag is not None])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
