"""What `grape iterate` is asked for: one YAML an experiment.

An unknown key, a wrong type and an initial state that is both trained on and evaluated are errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from grape_episode.task_name import base_task
from grape_trainer.evaluation import assert_disjoint, parse_init_states

PAIRED = ('tpo', 'dpo')
METHODS = (*PAIRED, 'kto', 'sft', 'ppo', 'grpo', 'tgrpo')
RANKINGS = ('gcpg', 'random')


class IterationError(ValueError):
    """A configuration or run folder that cannot be used; the text says what to do."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a policy is evaluated on besides the tasks that it trains on."""

    tasks: tuple[str, ...]
    init_states: str
    every_round: bool = True  # false: the base policy and the last round only

    @property
    def cells(self) -> list[tuple[str, int]]:
        """(task, initial state)."""
        return _cells(self.tasks, self.init_states)


@dataclass(frozen=True)
class Suite:
    """One evaluation of a policy; `name` is '' for the one on the tasks that are trained on."""

    name: str
    cells: Sequence[tuple[str, int]]
    every_round: bool = True

    @property
    def phase(self) -> str:
        """Its phase of a round."""
        return f'evaluate_{self.name}' if self.name else 'evaluate'

    @property
    def file(self) -> str:
        """Where its statistics go, in a round's folder."""
        return f'eval_{self.name}.json' if self.name else 'eval.json'

    @property
    def bags(self) -> str:
        """Where its bags go, in a round's folder."""
        return f'eval_{self.name}_bags' if self.name else 'eval_bags'


@dataclass(frozen=True, kw_only=True)
class IterateConfig:
    """`grape iterate --config FILE`. Initial states are given as '0-4,7'.

    Attributes:
        method: in METHODS; sft imitates the round's successes.
        train: YAML of the method; empty: config/train/<method>_tiny.yaml.
        states_a_round: round k takes the next so many of train_init_states, and begins again after
            the last; 0: all of them in every round.
        trials, m, temperature: N_t, top and bottom m, and the sampling temperature of collection
            (the paper: 5 trials, m = 2 in its released code).
        ranking: gcpg, or random: pairs of any two trials (an ablation).
        reward: what differs from the objective's section of that name: lambda_self ...
        evaluations: name -> more to evaluate on, beside `tasks` on eval_init_states.
        shared: folder of what runs of other methods have in common, the base policy's evaluation
            and trials; a run plays there what is missing.
        workers: 0: as many as the machine carries. max_steps: 0: the suites' official limits.

    """

    policy: str
    tasks: tuple[str, ...]
    train_init_states: str
    eval_init_states: str
    out: str
    method: str = 'tpo'
    train: str = ''
    rounds: int = 1
    states_a_round: int = 0
    trials: int = 5
    temperature: float = 1.0
    m: int = 2
    min_margin: float = 0.0
    ranking: str = 'gcpg'
    objective: str = 'completion'
    reward: Mapping[str, object] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluated] = field(default_factory=dict)
    shared: str = ''
    seed: int = 0
    workers: int = 0
    contract: str = ''  # name or file; empty: the one beside the policy
    rendering: str = 'auto'
    unnorm_key: str = ''
    max_steps: int = 0
    step_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing is evaluated that was trained on."""
        for name, low in (
            ('rounds', 1),
            ('states_a_round', 0),
            ('trials', 2),
            ('m', 1),
            ('seed', 0),
            ('workers', 0),
        ):
            if vars(self)[name] < low:
                raise IterationError(f'{name} is {vars(self)[name]}; expected {low} or more.')
        if not self.temperature > 0:
            raise IterationError(
                f'temperature is {self.temperature}; expected above 0: greedy trials are equal.'
            )
        if not self.tasks:
            raise IterationError("tasks is empty; expected names such as 'libero_object/0'.")
        _one_of('method', self.method, METHODS)
        _one_of('ranking', self.ranking, RANKINGS)
        for suite in self.suites:
            assert_disjoint(_bases(self.train_cells), _bases(suite.cells))

    @property
    def train_cells(self) -> list[tuple[str, int]]:
        """(task, initial state) to collect trials of, in all rounds."""
        return _cells(self.tasks, self.train_init_states)

    def states_of_round(self, number: int) -> tuple[int, ...]:
        """Return the initial states of round 1, 2, ..."""
        states = parse_init_states(self.train_init_states)
        count = self.states_a_round or len(states)
        first = (number - 1) * count
        return tuple(sorted({states[(first + i) % len(states)] for i in range(count)}))

    @property
    def suites(self) -> tuple[Suite, ...]:
        """All that a policy is evaluated on."""
        more = (Suite(n, one.cells, one.every_round) for n, one in self.evaluations.items())
        return Suite('', _cells(self.tasks, self.eval_init_states)), *more

    @property
    def pairs_trials(self) -> bool:
        """Say whether the method learns from pairs."""
        return self.method in PAIRED

    def to_dict(self) -> dict[str, object]:
        """Return the resolved values, ready for YAML."""
        evaluations = {
            name: vars(one) | {'tasks': list(one.tasks)} for name, one in self.evaluations.items()
        }
        return vars(self) | {
            'tasks': list(self.tasks),
            'reward': dict(self.reward),
            'evaluations': evaluations,
        }

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
        return cls.from_dict(content | overrides, f"'{path}'")

    @classmethod
    def from_dict(cls, content: Mapping[str, object], where: str) -> IterateConfig:
        """Build from plain values; `where` names them in errors."""
        values = _checked(cls, content, where)
        more = values.pop('evaluations', {})
        if not isinstance(more, dict) or not all(isinstance(v, dict) for v in more.values()):
            raise IterationError(
                f'{where}: evaluations is {more!r}; expected name: {{tasks: ...}}'
            )
        evaluations = {
            name: Evaluated(**_checked(Evaluated, one, f'{where}: evaluations.{name}'))
            for name, one in more.items()
        }
        try:
            return cls(**values, evaluations=evaluations)
        except TypeError as error:
            raise IterationError(f'{where}: {error}') from error


def _cells(tasks: Sequence[str], init_states: str) -> list[tuple[str, int]]:
    return [(task, state) for task in tasks for state in parse_init_states(init_states)]


def _bases(cells: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the cells of the unperturbed tasks: a perturbed one is no other initial state."""
    return [(base_task(task), state) for task, state in cells]


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise IterationError(f"{name} is '{value}'; expected one of: {', '.join(choices)}.")


def _checked(kind: type, content: Mapping[str, object], where: str) -> dict[str, object]:
    """Check a mapping's keys and the types of its values."""
    kinds = {entry.name: str(entry.type) for entry in fields(kind)}
    unknown = sorted(set(content) - set(kinds))
    if unknown:
        raise IterationError(
            f'{where} has the unknown keys {", ".join(unknown)}; it may have: {", ".join(kinds)}.'
        )
    return {name: _typed(name, value, kinds[name], where) for name, value in content.items()}


def _typed(name: str, value: object, kind: str, where: str) -> object:
    """Check a YAML value against the field's type."""
    if kind.startswith('Mapping'):
        if not isinstance(value, dict):
            raise IterationError(f'{where}: {name} is {value!r}; expected a mapping.')
        return value
    if kind.startswith('tuple'):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise IterationError(f'{where}: {name} is {value!r}; expected a list of names.')
        return tuple(value)
    if kind == 'str' and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # one initial state
    if kind == 'float' and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = {'str': str, 'int': int, 'float': float, 'bool': bool}[kind]
    if not isinstance(value, right) or (isinstance(value, bool) and kind != 'bool'):
        raise IterationError(f'{where}: {name} is {value!r}; expected {kind}.')
    return value
