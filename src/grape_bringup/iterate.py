"""`grape iterate`: Algorithm 1 through the ROS graph.

The graphs stay up from phase to phase; a new adapter is switched into the running policy nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from grape_bringup.cli_console import EpisodeBar, ProgressBar, console
from grape_bringup.cli_rollouts import summary_line
from grape_bringup.graph import GraphSetup
from grape_bringup.methods import method_config, train_round
from grape_bringup.pool import Pool, PoolError
from grape_bringup.rollouts import (
    check_cells,
    check_policy,
    evaluate,
    played_by,
    round_seed,
    trial_requests,
)
from grape_episode.contract import contract_of_policy
from grape_policy_node.openvla.hub import resolve_folder
from grape_trainer.evaluation import parse_init_states
from grape_trainer.iteration import RoundFolder, round_folder, run_iterations
from grape_trainer.iteration_config import IterateConfig

SOURCE_TREE = Path(__file__).resolve().parents[2]

log = logging.getLogger(__name__)


def run_experiment(config: IterateConfig, run: Path) -> Path:
    """Do what is left of a run; return the last adapter's folder.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.
        IterationError and the errors of each phase: one readable text each.

    """
    policy = find_policy(config)
    with ExitStack() as stack:
        graphs = LazyPool(config, policy, run / 'logs', stack)
        steps = GraphSteps(config, run, policy, graphs)
        adapter = run_iterations(config, run, steps, _announce)
    console.print(f'last adapter: {adapter}', soft_wrap=True)
    return adapter


def find_policy(config: IterateConfig) -> Path:
    """Return the checkpoint folder of a configuration: a path, or a hub id's local copy."""
    policy = find_path(config.policy)
    policy = policy if policy.exists() else resolve_folder(config.policy)
    check_policy(policy)
    return policy


def find_path(text: str) -> Path:
    """Return a path of a configuration: from the working directory, else from the source tree."""
    path = Path(text)
    return path if path.exists() or path.is_absolute() else SOURCE_TREE / path


class LazyPool:
    """The graphs of a run; none is started before it is needed."""

    def __init__(self, config: IterateConfig, policy: Path, logs: Path, stack: ExitStack) -> None:
        """Prepare; `stack` closes the graphs."""
        self._config, self._policy, self._logs, self._stack = config, policy, logs, stack
        self._pool: Pool | None = None
        self.contract = config.contract or contract_of_policy(policy)

    def get(self) -> Pool:
        """Return the pool."""
        if self._pool is None:
            config = self._config
            setup = GraphSetup(
                self._policy,
                config.unnorm_key,
                self.contract,
                config.rendering,
                config.step_timeout_s,
            )
            self._pool = self._stack.enter_context(Pool(setup, self._logs, config.workers))
        return self._pool


class GraphSteps:
    """The phases of a run (grape_trainer.iteration.Steps)."""

    def __init__(self, config: IterateConfig, run: Path, policy: Path, graphs: LazyPool) -> None:
        """Check what can be checked before anything is started.

        Args:
            config: of the run.
            run: its folder.
            policy: checkpoint folder.
            graphs: that play the episodes.

        """
        from grape_trainer.scoring.objective import load_objective
        from grape_trainer.scoring.score_setup import prepare

        self._config = config
        self._run = run
        self._policy = policy
        self._graphs = graphs
        objective = load_objective(config.objective).with_reward(**config.reward)
        self._objective = prepare(objective)
        train = str(find_path(config.train)) if config.train else ''
        self._settings = method_config(config.method, train, policy, config.seed)
        check_cells(config.tasks, parse_init_states(config.train_init_states))
        check_cells(config.tasks, parse_init_states(config.eval_init_states))
        for more in config.evaluations.values():
            check_cells(more.tasks, parse_init_states(more.init_states))

    def evaluate(
        self,
        cells: Sequence[tuple[str, int]],
        folder: Path,
        out_json: Path,
        adapter: Path | None,
    ) -> None:
        """Play held-out cells greedily."""
        config = self._config
        with EpisodeBar('evaluate') as bar:
            found = evaluate(
                self._graphs.get(),
                cells,
                folder,
                out_json,
                self._policy,
                adapter,
                self._by(adapter),
                0,  # a greedy policy draws nothing: runs that share a policy share its episodes
                config.max_steps,
                bar.update,
            )
        console.print(f'  {summary_line(found)}')
        if not found['n']:
            raise PoolError('No evaluation episode was decided: all ended in errors.')

    def collect(self, round_: RoundFolder, adapter: Path | None) -> None:
        """Sample trials; each round has seeds of its own."""
        config = self._config
        requests = trial_requests(
            self._cells(round_),
            config.trials,
            round_seed(config.seed, round_.number),
            config.temperature,
            config.max_steps,
        )
        with EpisodeBar('collect') as bar:
            self._graphs.get().run(requests, round_.bags, self._by(adapter), adapter, bar.update)

    def score(self, round_: RoundFolder) -> None:
        """Score the trials; those that cannot be scored are named in the table."""
        from grape_episode.bag import find_bags
        from grape_trainer.scoring.scorer import score_bags

        with ProgressBar('score') as bar:
            report = score_bags(
                find_bags(round_.bags),
                self._objective,
                round_.scores,
                lambda done, total, row: bar.update(done, total, row.status),
            )
        for warning in report.spread.warnings:
            log.info('%s', warning)

    def pair(self, round_: RoundFolder) -> None:
        """Pair them."""
        from grape_trainer.scoring.preference import PairSettings, pair_scores

        config = self._config
        settings = PairSettings(
            config.m, config.min_margin, ranking=config.ranking, seed=config.seed
        )
        made = pair_scores(round_.scores, settings, round_.pairs)
        console.print(f'  {len(made.pairs)} pairs, {len(made.skipped)} groups without one')

    def train(self, round_: RoundFolder, adapter: Path | None) -> None:
        """Train the next adapter, in this process; the idle graphs stay up."""
        earlier = range(1, round_.number)
        rounds = [*(round_folder(self._config, self._run, n) for n in earlier), round_]
        said = train_round(self._settings, self._policy, rounds, adapter)
        console.print(f'  {said}', soft_wrap=True)

    def _cells(self, round_: RoundFolder) -> list[tuple[str, int]]:
        return check_cells(self._config.tasks, self._config.states_of_round(round_.number))

    def _by(self, adapter: Path | None) -> dict[str, object]:
        return played_by(self._graphs.contract, self._config.rendering, self._policy, adapter)


def _announce(phase: str, done: bool) -> None:
    console.print(f'{phase}: complete already' if done else f'[bold]{phase}[/bold]')
