"""Algorithm 1 of GRAPE (arXiv 2411.19309) as a resumable sequence of phases.

    base/evaluate, then for k = 1..K: round_k/{collect, score, pair, train, evaluate}

The method that trains is TPO, or one that it is compared with; only pairwise ones have a phase
`pair`. How a phase is done is injected; this file knows their order, their folders and which of
them are complete (state.json). The policy that collects in round k acts with the adapter of round
k - 1, which is also where round k's training starts and its reference.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import yaml

from grape_trainer.iteration_config import IterateConfig, IterationError

STATE = 'state.json'
CONFIG = 'config.yaml'
# They do not change what a run gives, so a run may go on with others.
FREE_TO_CHANGE = ('out', 'workers')

Phase = Callable[[str, Callable[[], None]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundFolder:
    """Where a round's files are."""

    path: Path
    number: int  # from 1
    method: str
    bags: Path

    @property
    def scores(self) -> Path:
        """The score table."""
        return self.path / 'scores.csv'

    @property
    def pairs(self) -> Path:
        """The pairs, of a pairwise method."""
        return self.path / 'pairs.json'

    @property
    def adapter(self) -> Path:
        """What the round trains."""
        return self.path / self.method


class Steps(Protocol):
    """How each phase is done. Each goes on where an earlier call on the same paths was stopped."""

    def evaluate(
        self,
        cells: Sequence[tuple[str, int]],
        folder: Path,
        out_json: Path,
        adapter: Path | None,
    ) -> None:
        """Play held-out cells greedily; bags into the folder."""

    def collect(self, round_: RoundFolder, adapter: Path | None) -> None:
        """Sample trials of the round's initial states."""

    def score(self, round_: RoundFolder) -> None:
        """Score the trials."""

    def pair(self, round_: RoundFolder) -> None:
        """Rank and pair the scored trials."""

    def train(self, round_: RoundFolder, adapter: Path | None) -> None:
        """Train an adapter, from `adapter` on (None: from the base policy)."""


@dataclass
class RunState:
    """state.json: the phases that were begun, in order."""

    path: Path
    config: dict[str, object]
    phases: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Path, config: IterateConfig) -> RunState:
        """Create or take up a run folder.

        Raises:
            IterationError: it holds a run with another configuration.

        """
        resolved = config.to_dict()
        state = cls(run / STATE, resolved)
        if state.path.is_file():
            content = json.loads(state.path.read_text())
            _require_same(run, content['config'], resolved)
            state.phases = content['phases']
        run.mkdir(parents=True, exist_ok=True)
        (run / CONFIG).write_text(yaml.safe_dump(resolved, sort_keys=False))
        state.write()
        return state

    def is_done(self, phase: str) -> bool:
        """Say whether a phase is complete."""
        return 'ended_at' in self.phases.get(phase, {})

    def phase(
        self,
        name: str,
        action: Callable[[], None],
        on_phase: Callable[[str, bool], None] = lambda name, done: None,
    ) -> None:
        """Do a phase, unless it is complete; an exception leaves it incomplete."""
        done = self.is_done(name)
        on_phase(name, done)
        if not done:
            self.phases[name] = {'started_at': _now()}
            self.write()
            action()
            self.phases[name]['ended_at'] = _now()
            self.write()

    def write(self) -> None:
        """Write the file by renaming over the old one."""
        partial = self.path.with_suffix('.partial')
        content = {'config': self.config, 'phases': self.phases}
        partial.write_text(json.dumps(content, indent=1) + '\n')
        os.replace(partial, self.path)


def run_iterations(
    config: IterateConfig,
    run: Path,
    steps: Steps,
    on_phase: Callable[[str, bool], None] = lambda phase, done: None,
) -> Path:
    """Do what is left of the K rounds.

    Args:
        config: of the run.
        run: folder; docs/reference/command-line.md says what is in it.
        steps: how each phase is done. An exception leaves its phase incomplete.
        on_phase: called with (name, whether it was complete already) before each phase.

    Returns:
        The last round's adapter folder.

    Raises:
        IterationError: the folder holds a run with another configuration.

    """
    state = RunState.open(run, config)
    phase = partial(state.phase, on_phase=on_phase)
    base = (Path(config.shared) if config.shared else run) / 'base'
    evaluate_policy(phase, steps, config, run / 'base', base, None)
    adapter: Path | None = None
    for number in range(1, config.rounds + 1):
        round_ = round_folder(config, run, number)
        _learn(phase, steps, config, round_, adapter)
        adapter, folder = round_.adapter, round_.path
        evaluate_policy(phase, steps, config, folder, folder, adapter, number == config.rounds)
    return adapter


def round_folder(config: IterateConfig, run: Path, number: int) -> RoundFolder:
    """Return where the files of round 1, 2, ... are; every method's first trials are the same."""
    folder = run / f'round_{number}'
    is_shared = config.shared and number == 1
    bags = Path(config.shared) / f'trials_s{config.seed}' if is_shared else folder / 'bags'
    return RoundFolder(folder, number, config.method, bags)


def _learn(
    phase: Phase,
    steps: Steps,
    config: IterateConfig,
    round_: RoundFolder,
    adapter: Path | None,
) -> None:
    """Do one iteration up to its adapter."""
    name = round_.path.name
    phase(f'{name}/collect', lambda: steps.collect(round_, adapter))
    phase(f'{name}/score', lambda: steps.score(round_))
    if config.pairs_trials:
        phase(f'{name}/pair', lambda: steps.pair(round_))
    phase(f'{name}/train', lambda: steps.train(round_, adapter))


def evaluate_policy(
    phase: Phase,
    steps: Steps,
    config: IterateConfig,
    folder: Path,
    bags: Path,
    adapter: Path | None,
    last: bool = True,
) -> None:
    """Evaluate one policy: statistics into `folder`, bags below `bags`."""
    for suite in config.suites:
        if last or suite.every_round:
            # The base policy's own bags have no trials beside them.
            own = suite.bags if adapter or suite.name else 'bags'
            phase(
                f'{folder.name}/{suite.phase}',
                partial(steps.evaluate, suite.cells, bags / own, folder / suite.file, adapter),
            )


def _require_same(run: Path, found: Mapping[str, object], now: Mapping[str, object]) -> None:
    names = sorted((set(found) | set(now)) - set(FREE_TO_CHANGE))
    changes = '; '.join(
        f'{name}: {found.get(name)} there, {now.get(name)} now'
        for name in names
        if found.get(name) != now.get(name)
    )
    if changes:
        raise IterationError(
            f"'{run}' holds a run with another configuration ({changes}). Use another `out`, or "
            'delete that folder to start anew.'
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='milliseconds')
