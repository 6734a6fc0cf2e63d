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
    Rendering,
    Resume,
    Seed,
    Tasks,
    UnnormKey,
    UsageError,
    Workers,
    console,
    policy_folder,
)
from grape_bringup.cli_data import require_new

if TYPE_CHECKING:
    from grape_bringup.graph import GraphSetup
    from grape_bringup.manifest import EpisodeRecord
    from grape_bringup.remote_policy import RemotePolicy

PolicyOrServer = Annotated[
    str,
    typer.Option(
        '--policy', help='Policy folder (OpenVLA layout), or a policy server: ws://HOST:PORT.'
    ),
]
RemoteSettings = Annotated[
    list[str] | None,
    typer.Option(
        '--remote',
        metavar='NAME=VALUE',
        help='Of a policy server: token_file=F, protocol=openpi, gripper=libero ...; repeatable.',
    ),
]
EngineChoice = Annotated[
    str,
    typer.Option(
        '--engine',
        help='own: one a worker; shared: one for all, which batches; auto: shared on a GPU, or '
        'where the weights are large.',
    ),
]
Device = Annotated[str, typer.Option('--device', help='Of a policy folder: cpu, cuda, cuda:1 ...')]
Ray = Annotated[
    str,
    typer.Option(
        '--ray',
        metavar='WHERE',
        help='Workers on a Ray cluster: local, auto (the one running here) or HOST:PORT.',
    ),
]
Out = Annotated[Path, typer.Option('--out', help='Folder for the bags.')]
Perturb = Annotated[
    list[str] | None,
    typer.Option(
        '--perturb',
        metavar='NAME[:KEY=VALUE,...]',
        help='Such as obstacle or layout_shift:min_m=0.1,seed=1; repeatable.',
    ),
]
HELD = 'it may hold episodes'


def demos(
    task: Tasks,
    init_states: InitStates,
    out: Out,
    noise: Annotated[
        float, typer.Option(min=0.0, help='Standard deviation added to the executed action.')
    ] = 0.25,
    trials: Annotated[int, typer.Option(min=1, help='Demonstrations an initial state.')] = 1,
    operator: Annotated[
        bool,
        typer.Option(
            '--operator',
            help='As a person at a keyboard: in steps, with fumbles, at times low or slow.',
        ),
    ] = False,
    seed: Seed = 0,
    workers: Workers = 0,
    max_steps: MaxSteps = 0,
    rendering: Rendering = 'auto',
    contract: ContractName = 'libero',
    ray: Ray = '',
    perturb: Perturb = None,
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
    cells = check_cells(task, parse_init_states(init_states), perturb or [])
    controller = 'operator' if operator else 'expert'
    requests = demo_requests(cells, seed, noise, max_steps, trials, controller)
    setup = GraphSetup(None, contract=contract, rendering=rendering)
    with EpisodeBar('demos') as bar, Pool(setup, out / 'logs', workers, ray) as pool:
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
    policy: PolicyOrServer,
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
    remote: RemoteSettings = None,
    engine: EngineChoice = 'auto',
    device: Device = 'cpu',
    ray: Ray = '',
    perturb: Perturb = None,
    resume: Resume = True,
) -> None:
    """Sample trials of a policy, each recorded as a bag."""
    from grape_bringup.pool import Pool
    from grape_bringup.rollouts import check_cells, played_by, trial_requests
    from grape_trainer.evaluation import parse_init_states

    require_new(out, resume, HELD)
    source = _find_policy(policy, adapter, unnorm_key, remote or [])
    cells = check_cells(task, parse_init_states(init_states), perturb or [])
    requests = trial_requests(cells, trials, seed, temperature, max_steps)
    setup = _setup(source, unnorm_key, contract, rendering, out / 'logs', engine, device)
    with EpisodeBar('collect') as bar, Pool(setup, out / 'logs', workers, ray) as pool:
        by = played_by(setup.contract, rendering, source, adapter, device)
        records = pool.run(requests, out, by, adapter, bar.update)
        console.print(f'{out}: {len(records)} trials, {bar.summary()}')
    _fail_on_errors(records)


def evaluate(
    policy: PolicyOrServer,
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
    remote: RemoteSettings = None,
    engine: EngineChoice = 'auto',
    device: Device = 'cpu',
    ray: Ray = '',
    perturb: Perturb = None,
    resume: Resume = True,
) -> None:
    """Evaluate a policy greedily: success with n and its 95 % Wilson interval."""
    from grape_bringup import rollouts
    from grape_bringup.pool import Pool
    from grape_trainer.evaluation import assert_disjoint, parse_init_states

    bags = out or json_path.with_name(f'{json_path.stem}_bags')
    require_new(bags, resume, HELD)
    source = _find_policy(policy, adapter, unnorm_key, remote or [])
    cells = rollouts.check_cells(task, parse_init_states(init_states), perturb or [])
    assert_disjoint(rollouts.learned_from(source, adapter), cells)
    setup = _setup(source, unnorm_key, contract, rendering, bags / 'logs', engine, device)
    with EpisodeBar('evaluate') as bar, Pool(setup, bags / 'logs', workers, ray) as pool:
        by = rollouts.played_by(setup.contract, rendering, source, adapter, device)
        found = rollouts.evaluate(
            pool, cells, bags, json_path, source, adapter, by, seed, max_steps, bar.update
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


def _find_policy(
    policy: str, adapter: Path | None, unnorm_key: str, remote: list[str]
) -> Path | RemotePolicy:
    """Check the policy's folder, or ask its server, before anything is started."""
    from grape_bringup.remote_policy import ask_server
    from grape_bringup.rollouts import check_policy
    from grape_policy_node.remote.options import is_url

    if not is_url(policy):
        if remote:
            raise UsageError(
                f"--remote {remote[0]} is of a policy server, and --policy '{policy}' is a "
                'folder; give --policy ws://HOST:PORT'
            )
        folder = policy_folder(Path(policy))
        check_policy(folder, adapter)
        return folder
    found = ask_server(policy, remote, adapter, unnorm_key)
    if not found.has_log_probs:
        console.print(
            f'note: {policy} gives no log-probabilities and samples as it likes. Its trials can '
            'be evaluated, and ranked with lambda_self: 0; they have no R_self, and TPO refuses '
            'them.',
            soft_wrap=True,
        )
    if found.silent_about:
        console.print(
            f'note: {policy} does not say which initial states its '
            f'{" and its ".join(found.silent_about)} learned from: whether the ones asked for '
            'are among them is not known.',
            soft_wrap=True,
        )
    return found


def _setup(
    source: Path | RemotePolicy,
    unnorm_key: str,
    contract: str,
    rendering: str,
    logs: Path,
    engine: str,
    device: str,
) -> GraphSetup:
    """Return the graph of a policy, under its own contract where none is asked for."""
    from grape_bringup.graph import GraphSetup
    from grape_bringup.shared_engine import choose_engine
    from grape_episode.contract import contract_of_policy

    if isinstance(source, Path):
        return GraphSetup(
            source,
            unnorm_key,
            contract or contract_of_policy(source),
            rendering,
            engine=choose_engine(engine, source, device),
            device=device,
        )
    if (engine, device) != ('auto', 'cpu'):
        raise UsageError(
            "--engine and --device are of a policy folder; a server's own were given to it"
        )
    contract = contract or source.contract_in(logs)
    return GraphSetup(None, unnorm_key, contract, rendering, remote=source.options)


def _fail_on_errors(records: list[EpisodeRecord]) -> None:
    broken = [record for record in records if record.outcome == 'error']
    if broken:
        raise UsageError(
            f'{len(broken)} episodes ended in an infrastructure error, the last: '
            f'{broken[-1].detail}. The same command plays them again.'
        )
