"""`grape serve`: a policy for nodes on other machines, or in other Pythons."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from grape_bringup.cli_console import Adapter, Policy, UnnormKey, console

MIB = 2**20

Host = Annotated[
    str, typer.Option('--host', help='Address to listen on; all but loopback need a token.')
]
TokenFile = Annotated[
    str,
    typer.Option('--token-file', help='File with the token; default: GRAPE_POLICY_TOKEN, if set.'),
]


def serve(
    policy: Policy,
    adapter: Adapter = None,
    host: Host = '127.0.0.1',
    port: Annotated[int, typer.Option(min=0, max=65535, help='0: any free one.')] = 8000,
    token_file: TokenFile = '',
    device: Annotated[str, typer.Option(help='cpu, cuda, cuda:1 ...')] = 'cpu',
    unnorm_key: UnnormKey = '',
    max_batch: Annotated[
        int, typer.Option(min=1, help='Questions at once; 1: bit for bit as a local policy.')
    ] = 8,
    max_clients: Annotated[int, typer.Option(min=1, help='Connections at once.')] = 32,
    max_message_mb: Annotated[int, typer.Option(min=1, help='Of one request, MiB.')] = 16,
    torch_threads: Annotated[
        int, typer.Option(min=0, help="Threads of one operation; 0: torch's own choice.")
    ] = 1,
    runtime: Annotated[
        str, typer.Option(help='How a step runs: auto, eager, compile or cuda_graph.')
    ] = 'auto',
    quantize: Annotated[
        int, typer.Option(help="Bits of the language model's weights: 8 or 4; 0: as they are.")
    ] = 0,
) -> None:
    """Serve a policy by websocket: to policy nodes (backend remote) and to openpi clients."""
    import asyncio

    from grape_bringup.rollouts import check_policy
    from grape_policy_node.remote.bearer import read_token
    from grape_policy_node.remote.server import PolicyServer, ServerConfig, bind

    check_policy(policy, adapter)
    config = ServerConfig(
        host=host,
        port=port,
        token=read_token(token_file),
        max_message_bytes=max_message_mb * MIB,
        max_batch=max_batch,
        max_clients=max_clients,
    )
    listener = bind(config)
    import torch

    from grape_policy_node.engine import Engine

    if torch_threads:
        torch.set_num_threads(torch_threads)
    engine = Engine.load(
        policy, unnorm_key or None, adapter, device, runtime=runtime, quantize=quantize
    )
    logging.getLogger('websockets').setLevel(logging.ERROR)
    server = PolicyServer(engine, config, listener, _about(policy, adapter), _about_adapter)

    def on_listening(url: str) -> None:
        who = 'a token is needed' if config.token else 'no token: everybody on this machine may'
        console.print(
            f'{policy} (adapter {engine.adapter_id}, {device}) is served at {url}; {who}',
            soft_wrap=True,
        )

    asyncio.run(server.run(on_listening))
    console.print('the policy server was stopped')


def _about(policy: Path, adapter: Path | None) -> dict[str, Any]:
    """Return what a client hears of the folders: the contract and the states learned from."""
    from grape_episode.contract import BESIDE_POLICY, load_contract
    from grape_episode.version import code_version

    beside = policy / BESIDE_POLICY
    return {
        'contract': load_contract(beside).to_dict() if beside.is_file() else None,
        'training_states': _states(policy),
        'adapter_training_states': _states(adapter) if adapter else [],
        'code_version': code_version(),
    }


def _about_adapter(path: str) -> dict[str, Any]:
    return {'training_states': _states(Path(path)) if path else []}


def _states(folder: Path) -> list[list[object]] | None:
    """Return the initial states that a folder says it learned from, None where it says nothing."""
    from grape_trainer.evaluation import TRAINING_STATES, training_states

    if not (folder / TRAINING_STATES).is_file():
        return None
    return [[task, state] for task, state in sorted(training_states(folder))]
