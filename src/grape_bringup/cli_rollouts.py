"""`grape demos`, `grape collect` and `grape evaluate`: episodes through the ROS graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grape_bringup.cli_console import (
    Adapter,
    ContractName,
    EpisodeBar,
    InitStates,
    MaxSteps,
    Policy,
    Rendering,
    Resume,
    Seed,
    Tasks,
    UnnormKey,
    UsageError,
    Workers,
    console,
)
from grape_bringup.cli_data import require_new

if TYPE_CHECKING:
    from grape_bringup.manifest import EpisodeRecord

Out = Annotated[Path, typer.Option('--out', help='Folder for the bags.')]
HELD = 'it may hold episodes'


def demos(
    task: Tasks,
    init_states: InitStates,
    out: Out,
    noise: Annotated[
        float, typer.Option(min=0.0, help='Standard deviation added to the executed action.')
    ] = 0.25,
    trials: Annotated[int, typer.Option(min=1, help='Demonstrations an initial state.')] = 1,
    seed: Seed = 0,
    workers: Workers = 0,
    max_steps: MaxSteps = 0,
    rendering: Rendering = 'auto',
    contract: ContractName = 'libero',
    resume: Resume = True,
) -> None:
    """Record demonstrations of the scripted expert; up to four attempts for each.

    Failed attempts stay in the folder, marked as such; `grape train sft` leaves them out.
    """
    from grape_bringup.graph import GraphSetup
    from grape_bringup.pool import Pool
    from grape_bringup.rollouts import check_cells, demo_requests, next_attempt, played_by
    from grape_trainer.evaluation import parse_init_states

    require_new(out, resume, HELD)
    cells = check_cells(task, parse_init_states(init_states))
    requests = demo_requests(cells, seed, noise, max_steps, trials)
    setup = GraphSetup(None, contract=contract, rendering=rendering)
    with EpisodeBar('demos') as bar, Pool(setup, out / 'logs', workers) as pool:
        by = played_by(contract, rendering)
        records = pool.run(requests, out, by, None, bar.update, next_attempt(requests, seed))
    solved = [(r.task, r.init_state) for r in records if r.outcome == 'success']
    missing = sorted(set(cells) - set(solved))
    console.print(f'{out}: {len(solved)} demonstrations of {len(cells)} initial states')
    if missing:
        shown = ', '.join(f'{name} {state}' for name, state in missing[:10])
        console.print(f'without a success: {shown}', soft_wrap=True)
    _fail_on_errors(records)


def collect(
    policy: Policy,
    task: Tasks,
    init_states: InitStates,
    out: Out,
    adapter: Adapter = None,
    trials: Annotated[int, typer.Option(min=1, help='Of each initial state.')] = 5,
    temperature: Annotated[float, typer.Option(min=0.0, help='Of sampling; 0: greedy.')] = 1.0,
    seed: Seed = 0,
    workers: Workers = 0,
    max_steps: MaxSteps = 0,
    rendering: Rendering = 'auto',
    contract: ContractName = '',
    unnorm_key: UnnormKey = '',
    resume: Resume = True,
) -> None:
    """Sample trials of a policy, each recorded as a bag."""
    from grape_bringup.graph import GraphSetup
    from grape_bringup.pool import Pool
    from grape_bringup.rollouts import check_cells, check_policy, played_by, trial_requests
    from grape_episode.contract import contract_of_policy
    from grape_trainer.evaluation import parse_init_states

    require_new(out, resume, HELD)
    check_policy(policy, adapter)
    cells = check_cells(task, parse_init_states(init_states))
    requests = trial_requests(cells, trials, seed, temperature, max_steps)
    contract = contract or contract_of_policy(policy)
    setup = GraphSetup(policy, unnorm_key, contract, rendering)
    with EpisodeBar('collect') as bar, Pool(setup, out / 'logs', workers) as pool:
        by = played_by(contract, rendering, policy, adapter)
        records = pool.run(requests, out, by, adapter, bar.update)
        console.print(f'{out}: {len(records)} trials, {bar.summary()}')
    _fail_on_errors(records)


def evaluate(
    policy: Policy,
    task: Tasks,
    init_states: InitStates,
    json_path: Annotated[Path, typer.Option('--json', help='Where the statistics go.')],
    adapter: Adapter = None,
    out: Annotated[
        Path | None, typer.Option('--out', help='Folder for the bags; default: <json>_bags.')
    ] = None,
    seed: Seed = 0,
    workers: Workers = 0,
    max_steps: MaxSteps = 0,
    rendering: Rendering = 'auto',
    contract: ContractName = '',
    unnorm_key: UnnormKey = '',
    resume: Resume = True,
) -> None:
    """Evaluate a policy greedily: success with n and its 95 % Wilson interval."""
    from grape_bringup import rollouts
    from grape_bringup.graph import GraphSetup
    from grape_bringup.pool import Pool
    from grape_episode.contract import contract_of_policy
    from grape_trainer.evaluation import assert_disjoint, parse_init_states, training_states

    bags = out or json_path.with_name(f'{json_path.stem}_bags')
    require_new(bags, resume, HELD)
    rollouts.check_policy(policy, adapter)
    cells = rollouts.check_cells(task, parse_init_states(init_states))
    assert_disjoint(training_states(policy, adapter), cells)
    contract = contract or contract_of_policy(policy)
    setup = GraphSetup(policy, unnorm_key, contract, rendering)
    with EpisodeBar('evaluate') as bar, Pool(setup, bags / 'logs', workers) as pool:
        by = rollouts.played_by(contract, rendering, policy, adapter)
        found = rollouts.evaluate(
            pool, cells, bags, json_path, policy, adapter, by, seed, max_steps, bar.update
        )
    console.print(f'{json_path}: {summary_line(found)}')
    if found['n'] == 0:
        raise UsageError('No episode was decided: all ended in infrastructure errors.')


def summary_line(found: dict[str, object]) -> str:
    """Return such as `success 0.40 (n 10, 95 % 0.17-0.69), 0 errors`."""
    if not found['n']:
        return f'success unknown (n 0), {found["errors"]} errors'
    return (
        f'success {found["success"]:.2f} (n {found["n"]}, 95 % {found["wilson_low"]:.2f}-'
        f'{found["wilson_high"]:.2f}), {found["errors"]} errors'
    )


def _fail_on_errors(records: list[EpisodeRecord]) -> None:
    broken = [record for record in records if record.outcome == 'error']
    if broken:
        raise UsageError(
            f'{len(broken)} episodes ended in an infrastructure error, the last: '
            f'{broken[-1].detail}. The same command plays them again.'
        )
