"""`grape iterate`: Algorithm 1 through the ROS graph.

The graphs stay up from phase to phase; a new adapter is switched into the running policy nodes.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from grape_bringup.cli_console import EpisodeBar, ProgressBar, console
from grape_bringup.cli_rollouts import summary_line
from grape_bringup.cli_train import train_adapter
from grape_bringup.graph import GraphSetup
from grape_bringup.pool import Pool, PoolError
from grape_bringup.rollouts import check_cells, check_policy, evaluate, played_by, trial_requests
from grape_episode.contract import contract_of_policy
from grape_policy_node.openvla.hub import resolve_folder
from grape_trainer.iteration import IterateConfig, run_iterations

SOURCE_TREE = Path(__file__).resolve().parents[2]

log = logging.getLogger(__name__)


def run_experiment(config: IterateConfig, run: Path) -> Path:
    """Do what is left of a run; return the last adapter's folder.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.
        IterationError and the errors of each phase: one readable text each.

    """
    policy = find_path(config.policy)
    policy = policy if policy.exists() else resolve_folder(config.policy)
    check_policy(policy)
    with ExitStack() as stack:
        steps = GraphSteps(config, run, policy, stack)
        adapter = run_iterations(config, run, steps, _announce)
    console.print(f'last adapter: {adapter}', soft_wrap=True)
    return adapter


def find_path(text: str) -> Path:
    """Return a path of a configuration: from the working directory, else from the source tree."""
    path = Path(text)
    return path if path.exists() or path.is_absolute() else SOURCE_TREE / path


class GraphSteps:
    """The phases of a run (grape_trainer.iteration.Steps); graphs are started when needed."""

    def __init__(self, config: IterateConfig, run: Path, policy: Path, stack: ExitStack) -> None:
        """Check what can be checked before anything is started.

        Args:
            config: of the run.
            run: its folder.
            policy: checkpoint folder.
            stack: closes the graphs.

        """
        from grape_trainer.scoring.objective import load_objective
        from grape_trainer.training_config import TpoConfig

        self._config = config
        self._run = run
        self._policy = policy
        self._stack = stack
        self._contract = config.contract or contract_of_policy(policy)
        self._pool: Pool | None = None
        self._objective = load_objective(config.objective)
        self._tpo = TpoConfig.load(find_path(config.tpo), {'seed': config.seed})
        self._train_cells = check_cells(config.tasks, _states(config.train_init_states))
        self._eval_cells = check_cells(config.tasks, _states(config.eval_init_states))

    def evaluate(self, folder: Path, out_json: Path, adapter: Path | None) -> None:
        """Play the held-out initial states greedily."""
        config = self._config
        with EpisodeBar('evaluate') as bar:
            found = evaluate(
                self._graphs(),
                self._eval_cells,
                folder,
                out_json,
                self._policy,
                adapter,
                self._by(adapter),
                config.seed,
                config.max_steps,
                bar.update,
            )
        console.print(f'  {summary_line(found)}')
        if not found['n']:
            raise PoolError('No evaluation episode was decided: all ended in errors.')

    def collect(self, folder: Path, adapter: Path | None, round_number: int) -> None:
        """Sample trials; each round has seeds of its own."""
        config = self._config
        requests = trial_requests(
            self._train_cells,
            config.trials,
            config.seed * 1000 + round_number,
            config.temperature,
            config.max_steps,
        )
        with EpisodeBar('collect') as bar:
            self._graphs().run(requests, folder, self._by(adapter), adapter, bar.update)

    def score(self, bags: Path, out_csv: Path) -> None:
        """Score the trials; those that cannot be scored are named in the table."""
        from grape_episode.bag import find_bags
        from grape_trainer.scoring.scorer import score_bags

        with ProgressBar('score') as bar:
            report = score_bags(
                find_bags(bags),
                self._objective,
                out_csv,
                lambda done, total, row: bar.update(done, total, row.status),
            )
        for warning in report.spread.warnings:
            log.info('%s', warning)

    def pair(self, scores: Path, out_json: Path) -> None:
        """Pair them."""
        from grape_trainer.scoring.preference import PairSettings, pair_scores

        settings = PairSettings(self._config.m, self._config.min_margin)
        made = pair_scores(scores, settings, out_json)
        console.print(f'  {len(made.pairs)} pairs, {len(made.skipped)} groups without one')

    def train(self, pairs: Path, out: Path, adapter: Path | None) -> None:
        """Train the next adapter, in this process; the idle graphs stay up."""
        with ProgressBar('tpo') as bar:
            result = train_adapter(self._tpo, self._policy, pairs, out, adapter, bar)
        console.print(f'  adapter {result.adapter_id} after {result.steps} steps')
        if result.stopped:
            console.print(f'  stopped early: {result.stopped}', soft_wrap=True)

    def _graphs(self) -> Pool:
        if self._pool is None:
            config = self._config
            setup = GraphSetup(
                self._policy,
                config.unnorm_key,
                self._contract,
                config.rendering,
                config.step_timeout_s,
            )
            pool = Pool(setup, self._run / 'logs', config.workers)
            self._pool = self._stack.enter_context(pool)
        return self._pool

    def _by(self, adapter: Path | None) -> dict[str, object]:
        return played_by(self._contract, self._config.rendering, self._policy, adapter)


def _announce(phase: str, done: bool) -> None:
    console.print(f'{phase}: complete already' if done else f'[bold]{phase}[/bold]')


def _states(text: str) -> tuple[int, ...]:
    from grape_trainer.evaluation import parse_init_states

    return parse_init_states(text)
