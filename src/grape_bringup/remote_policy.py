"""A policy on a server, as `grape collect` and `grape evaluate` need to know it.

The server is asked once, before anything is started, by the same code as the policy node's: what
is wrong with the address, the token or the adapter shows here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grape_episode.contract import BESIDE_POLICY, DEFAULT, Contract
from grape_policy_node.node_config import REMOTE, PolicyNodeConfig, make_backend
from grape_policy_node.remote.options import GRAPE, RemoteOptions

# What a recorded episode is a function of; the address is not.
PLAYED_BY = ('policy_sha256', 'adapter_id', 'unnorm_key', 'dtype', 'device')


class RemotePolicyError(ValueError):
    """A remote policy that cannot be used as asked; the text says what to give."""


@dataclass(frozen=True)
class RemotePolicy:
    """A policy that answered.

    Attributes:
        options: how to reach it.
        description: what a recording says about it (Backend.describe).
        has_log_probs: whether its trials have an R_self and can be trained on.
        learned_from: (task, initial state) that the server says the policy learned from.
        silent_about: of what ('policy', 'adapter') it does not say that.
        contract: under which it was trained; None where the server does not say.
    """

    options: RemoteOptions
    description: dict[str, Any]
    has_log_probs: bool
    learned_from: frozenset[tuple[str, int]]
    silent_about: tuple[str, ...]
    contract: Contract | None

    @property
    def name(self) -> str:
        """What a report calls it."""
        return str(self.description['policy'])

    def played_by(self) -> dict[str, object]:
        """Return what an episode is a function of, beside its request and the contract."""
        about = self.description
        if self.has_log_probs:
            about = {name: about.get(name, '') for name in PLAYED_BY}
        return {'backend': REMOTE, **about}

    def contract_in(self, folder: Path) -> str:
        """Return what `load_contract` takes: the server's contract, kept here, or the default."""
        if self.contract is None:
            return DEFAULT
        folder.mkdir(parents=True, exist_ok=True)
        self.contract.save(folder)
        return str(folder / BESIDE_POLICY)


def ask_server(
    url: str, settings: Sequence[str], adapter: Path | None = None, unnorm_key: str = ''
) -> RemotePolicy:
    """Connect, hear what is served, and leave.

    Args:
        url: ws://HOST:PORT.
        settings: NAME=VALUE of RemoteOptions.
        adapter: folder on the server's machine.
        unnorm_key: that the server has to use; '' for any.

    Raises:
        OptionsError, TokenError, RemotePolicyError: what was given cannot be used.
        BackendError: nobody there, a wrong token, no such adapter.
    """
    options = RemoteOptions(url=url).with_settings(settings)
    if options.token_file:
        options = replace(options, token_file=str(Path(options.token_file).expanduser().resolve()))
    if adapter is not None and not adapter.is_absolute():
        raise RemotePolicyError(
            f"--adapter '{adapter}' of a remote policy is a folder on the server's machine; "
            'give its absolute path there'
        )
    config = PolicyNodeConfig(
        backend=REMOTE,
        adapter=str(adapter or ''),
        unnorm_key=unnorm_key,
        **options.parameters(),
    )
    backend = make_backend(config)
    try:
        description = backend.describe()
        if options.protocol != GRAPE:
            return RemotePolicy(options, description, False, frozenset(), ('policy',), None)
        said = backend.metadata
        of_adapter = said.get('adapter_training_states')
        if adapter is not None:
            of_adapter = backend.adapter_about.get('training_states')
        states = {'policy': said.get('training_states'), 'adapter': of_adapter}
    finally:
        backend.close()
    known = {(str(t), int(s)) for found in states.values() for t, s in found or ()}
    contract = said.get('contract')
    return RemotePolicy(
        options=options,
        description=description,
        has_log_probs=True,
        learned_from=frozenset(known),
        silent_about=tuple(name for name, found in states.items() if found is None),
        contract=Contract.from_dict(contract, url) if contract else None,
    )
