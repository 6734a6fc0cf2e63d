"""Algorithm 1 of GRAPE (arXiv 2411.19309) as a resumable sequence of phases.

    base/evaluate, then for k = 1..K: round_k/{collect, score, pair, train, evaluate}

How a phase is done is injected; this file knows their order, their folders and which of them are
complete (state.json). The policy that collects in round k acts with the adapter of round k - 1,
which is also where round k's training starts and its reference.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import yaml

from grape_trainer.evaluation import assert_disjoint, parse_init_states

STATE = 'state.json'
CONFIG = 'config.yaml'
# They do not change what a run gives, so a run may go on with others.
FREE_TO_CHANGE = ('out', 'workers')

log = logging.getLogger(__name__)


class IterationError(ValueError):
    """A configuration or run folder that cannot be used; the text says what to do."""


@dataclass(frozen=True, kw_only=True)
class IterateConfig:
    """`grape iterate --config FILE`. Initial states are given as '0-4,7'.

    trials, m, temperature: N_t, top and bottom m, and the sampling temperature of collection (the
    paper: 5 trials, m = 2 in its released code). tpo: YAML of TpoConfig. workers 0: as many
    as the machine carries. max_steps 0: the suites' official limits.
    """

    policy: str
    tasks: tuple[str, ...]
    train_init_states: str
    eval_init_states: str
    out: str
    rounds: int = 1
    trials: int = 5
    temperature: float = 1.0
    m: int = 2
    min_margin: float = 0.0
    objective: str = 'completion'
    tpo: str = 'config/train/tpo_tiny.yaml'
    seed: int = 0
    workers: int = 0
    contract: str = ''  # name or file; empty: the one beside the policy
    rendering: str = 'auto'
    unnorm_key: str = ''
    max_steps: int = 0
    step_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing is evaluated that was trained on."""
        for name, low in (('rounds', 1), ('trials', 2), ('m', 1), ('seed', 0), ('workers', 0)):
            if vars(self)[name] < low:
                raise IterationError(f'{name} is {vars(self)[name]}; expected {low} or more.')
        if not self.temperature > 0:
            raise IterationError(
                f'temperature is {self.temperature}; expected above 0: greedy trials are equal.'
            )
        if not self.tasks:
            raise IterationError("tasks is empty; expected names such as 'libero_object/0'.")
        assert_disjoint(self.train_cells, self.eval_cells)

    @property
    def train_cells(self) -> list[tuple[str, int]]:
        """(task, initial state) to collect trials of."""
        return [(t, s) for t in self.tasks for s in parse_init_states(self.train_init_states)]

    @property
    def eval_cells(self) -> list[tuple[str, int]]:
        """(task, initial state) to evaluate on."""
        return [(t, s) for t in self.tasks for s in parse_init_states(self.eval_init_states)]

    def to_dict(self) -> dict[str, object]:
        """Return the resolved values, ready for YAML."""
        return vars(self) | {'tasks': list(self.tasks)}

    @classmethod
    def load(cls, path: Path | str, **overrides: object) -> IterateConfig:
        """Read a YAML file; `overrides` win over it.

        Raises:
            IterationError: no such file, an unknown key, a missing one, a wrong type or range.

        """
        path = Path(path)
        if not path.is_file():
            raise IterationError(f"There is no configuration file '{path}'.")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise IterationError(f"'{path}' is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise IterationError(f"'{path}' holds {type(content).__name__}; expected key: value.")
        content |= overrides
        kinds = {entry.name: str(entry.type) for entry in fields(cls)}
        unknown = sorted(set(content) - set(kinds))
        if unknown:
            raise IterationError(
                f"'{path}' has the unknown keys {', '.join(unknown)}; it may have: "
                f'{", ".join(kinds)}.'
            )
        values = {name: _typed(name, v, kinds[name], path) for name, v in content.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise IterationError(f"'{path}': {error}") from error


class Steps(Protocol):
    """How each phase is done. Each goes on where an earlier call on the same paths was stopped."""

    def evaluate(self, folder: Path, out_json: Path, adapter: Path | None) -> None:
        """Play the held-out initial states greedily; bags into the folder."""

    def collect(self, folder: Path, adapter: Path | None, round_number: int) -> None:
        """Sample trials of the training initial states; bags into the folder."""

    def score(self, bags: Path, out_csv: Path) -> None:
        """Score the bags."""

    def pair(self, scores: Path, out_json: Path) -> None:
        """Rank and pair the scored trials."""

    def train(self, pairs: Path, out: Path, adapter: Path | None) -> None:
        """Train an adapter into `out`, from `adapter` on (None: from the base policy)."""


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

    def begin(self, phase: str) -> None:
        """Note that a phase begins, or goes on."""
        self.phases[phase] = {'started_at': _now()}
        self.write()

    def end(self, phase: str) -> None:
        """Note that a phase is complete."""
        self.phases[phase]['ended_at'] = _now()
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

    def phase(name: str, action: Callable[[], None]) -> None:
        done = state.is_done(name)
        on_phase(name, done)
        if not done:
            state.begin(name)
            action()
            state.end(name)

    base = run / 'base'
    adapter: Path | None = None
    phase('base/evaluate', lambda: steps.evaluate(base / 'bags', base / 'eval.json', None))
    for number in range(1, config.rounds + 1):
        adapter = _round(phase, steps, run / f'round_{number}', number, adapter)
    return adapter


def _round(
    phase: Callable[[str, Callable[[], None]], None],
    steps: Steps,
    folder: Path,
    number: int,
    adapter: Path | None,
) -> Path:
    """Do one iteration; return its adapter."""
    name, bags, trained = folder.name, folder / 'bags', folder / 'tpo'
    scores, pairs = folder / 'scores.csv', folder / 'pairs.json'
    phase(f'{name}/collect', lambda: steps.collect(bags, adapter, number))
    phase(f'{name}/score', lambda: steps.score(bags, scores))
    phase(f'{name}/pair', lambda: steps.pair(scores, pairs))
    phase(f'{name}/train', lambda: steps.train(pairs, trained, adapter))
    phase(
        f'{name}/evaluate',
        lambda: steps.evaluate(folder / 'eval_bags', folder / 'eval.json', trained),
    )
    return trained


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


def _typed(name: str, value: object, kind: str, path: Path) -> object:
    """Check a YAML value against the field's type."""
    if kind.startswith('tuple'):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise IterationError(f"'{path}': {name} is {value!r}; expected a list of names.")
        return tuple(value)
    if kind == 'str' and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # one initial state
    if kind == 'float' and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = {'str': str, 'int': int, 'float': float}[kind]
    if not isinstance(value, right) or isinstance(value, bool):
        raise IterationError(f"'{path}': {name} is {value!r}; expected {kind}.")
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='milliseconds')
