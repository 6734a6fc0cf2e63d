"""An openpi-style server (pi0, Octo) behind the policy node's boundary.

It answers an observation with a chunk of actions, of which the first few are played before it is
asked again. It gives no tokens and no log-probabilities: its trials can be collected, watched,
evaluated and ranked by what happened, but R_self and preference training need likelihoods and
refuse them. How it samples is its own affair: temperature and seed do not reach it.

Source: Physical-Intelligence/openpi, examples/libero/main.py (keys, replan_steps).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from grape_policy_node.backend import BackendError, Decision, Health, Player, Seen, Start, Wanted
from grape_policy_node.remote import protocol
from grape_policy_node.remote.connection import Connection
from grape_policy_node.remote.options import RemoteOptions
from grape_policy_node.remote.session import Session


class OpenpiBackend:
    """Acts by asking an openpi server."""

    has_log_probs = False
    adapter_id = ''

    def __init__(self, options: RemoteOptions, adapter: str = '') -> None:
        """Connect.

        Raises:
            ValueError: options that cannot be used.
            BackendError: nobody there, a wrong token, or an adapter was asked for.
        """
        self.metadata: dict[str, Any] = {}
        self.needs_state = bool(options.state_key)
        self._options = options
        if adapter:
            self.load_adapter(adapter)
        self._session = Session(options, self._welcome)
        self._session.open()

    def describe(self) -> dict[str, object]:
        """Return what is known: the address and what the server says of itself."""
        options = self._options
        return {
            'policy': options.url,
            'policy_sha256': '',
            'adapter_id': '',
            'has_log_probs': False,
            'protocol': options.protocol,
            'replan_steps': options.replan_steps,
            'gripper': options.gripper,
            'sampling': "the server's own; temperature and seed do not reach it",
            'server': {str(key): repr(value)[:200] for key, value in self.metadata.items()},
        }

    def begin(self, start: Start, wanted: Wanted) -> Player:
        """Begin without a chunk; the server keeps nothing of an episode."""
        return _OpenpiPlayer(self, start)

    def load_adapter(self, path: str) -> str:
        """Refuse: such a server has no adapters."""
        raise BackendError(
            f'{self._options.url} is an openpi server, which knows no adapters (asked for '
            f"'{path or 'base'}'); only a GRAPE server takes them"
        )

    def health(self) -> Health:
        """Say whether the connection stands."""
        problem = self._session.problem
        values = {
            'remote_url': self._options.url,
            'connected': self._session.connected,
            'reconnects': self._session.reconnects,
        }
        return Health(not problem, problem, self._options.url, values)

    def close(self) -> None:
        """End the connection."""
        self._session.close()

    def chunk(self, start: Start, seen: Seen, wanted: Wanted) -> np.ndarray | None:
        """Ask for actions: (n, 7) float64 in policy units, gripper opening 0..1."""
        options = self._options
        observation: dict[str, Any] = {
            options.image_key: seen.image,
            options.prompt_key: start.instruction,
        }
        if options.state_key:
            observation[options.state_key] = seen.state
        answer = self._session.ask(observation, seen.deadline_s, wanted)
        if answer is None:
            return None
        actions = protocol.read_chunk(answer)[: options.replan_steps]
        actions[:, 6] = gripper_opening(actions[:, 6], options.gripper)
        return actions

    def _welcome(self, connection: Connection) -> None:
        self.metadata = connection.metadata


class _OpenpiPlayer:
    def __init__(self, backend: OpenpiBackend, start: Start) -> None:
        self._backend = backend
        self._start = start
        self._left: deque[np.ndarray] = deque()

    def act(self, seen: Seen, wanted: Wanted) -> Decision | None:
        if not self._left:
            chunk = self._backend.chunk(self._start, seen, wanted)
            if chunk is None:
                return None
            self._left.extend(chunk)
        return Decision.without_tokens(self._left.popleft())


def gripper_opening(values: np.ndarray, convention: str) -> np.ndarray:
    """Turn a server's gripper commands into openings, 0 closed .. 1 open.

    Args:
        values: (T,) as the server gives them.
        convention: one of options.GRIPPERS.
    """
    if convention == 'libero':  # -1 open .. 1 closed
        values = (1.0 - values) / 2.0
    elif convention == 'widowx':  # -1 closed .. 1 open
        values = (values + 1.0) / 2.0
    else:
        return values
    return np.clip(values, 0.0, 1.0)
