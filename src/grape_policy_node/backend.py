"""The boundary between the policy node and what decides: a model here, or a server elsewhere.

The node knows topics, the contract and the safety gate; a backend knows how an action is chosen.
Nothing here imports torch, so that a node whose policy is remote runs in a Python without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from grape_policy_node.action_tokens import ACTION_DIMS

BASE = 'base'  # the id of the policy without adapter, as in adapters.py

Wanted = Callable[[], bool]  # False: the caller has no use for the answer any more


class BackendError(RuntimeError):
    """The policy cannot go on; the text says why and what to do."""


class NoAnswerError(BackendError):
    """No action in time, where the world does not wait: the arm is to be held."""


@dataclass(frozen=True)
class Start:
    """What an episode is played with.

    Attributes:
        episode_id: names it.
        instruction: as the person gave it.
        temperature: of sampling; 0 is greedy.
        seed: the same seed and images give the same actions.
    """

    episode_id: str
    instruction: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class Seen:
    """One observation.

    Attributes:
        step: 0-based index of the control step.
        image: (H, W, 3) uint8 RGB after the contract transform.
        state: (8,) float64 of observed_state.py, None where the backend needs none.
        deadline_s: monotonic time at which an answer is too late; None: the world waits.
    """

    step: int
    image: np.ndarray
    state: np.ndarray | None = None
    deadline_s: float | None = None


@dataclass(frozen=True)
class Decision:
    """One action.

    Attributes:
        action: (7,) float64 policy units: six deltas and the gripper opening.
        token_ids: (7,) int64 as sampled; (0,) where the policy has none.
        log_probs: (7,) float32 at temperature 1, full vocabulary; (0,) where there are none.
        adapter_id: of the adapter that acted; '' where the policy knows no adapters.
    """

    action: np.ndarray
    token_ids: np.ndarray
    log_probs: np.ndarray
    adapter_id: str

    @classmethod
    def without_tokens(cls, action: np.ndarray, adapter_id: str = '') -> Decision:
        """Return an action that no token policy chose."""
        empty = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(np.asarray(action, np.float64), *empty, adapter_id)

    @classmethod
    def none(cls, adapter_id: str) -> Decision:
        """Return what stands for an answer that did not come; the gate's hold replaces it."""
        return cls.without_tokens(np.zeros(ACTION_DIMS), adapter_id)


@dataclass(frozen=True)
class Health:
    """How the backend is; `message` is empty where it is well, `values` go to /diagnostics."""

    is_well: bool = True
    message: str = ''
    hardware: str = ''
    values: dict[str, object] = field(default_factory=dict)


class Player(Protocol):
    """Plays one episode; used by one thread."""

    def act(self, seen: Seen, wanted: Wanted) -> Decision | None:
        """Choose an action; None where it is not wanted any more.

        Raises:
            NoAnswerError: `seen.deadline_s` has passed, or will without an answer.
            BackendError: the episode cannot go on.
            ValueError: the image is not what the policy takes.
        """


class Backend(Protocol):
    """A policy. `begin` and its players are used by one thread, the rest by any."""

    has_log_probs: bool
    needs_state: bool

    @property
    def adapter_id(self) -> str:
        """Id of the acting adapter, 'base', or '' where the policy knows no adapters."""

    def describe(self) -> dict[str, object]:
        """Return what a recording says about the policy (EpisodeEvent READY's config_json)."""

    def begin(self, start: Start, wanted: Wanted) -> Player | None:
        """Prepare an episode; None where it is not wanted any more.

        Raises:
            ValueError: the instruction cannot be used.
            BackendError: the policy cannot act.
        """

    def load_adapter(self, path: str) -> str:
        """Switch to an adapter folder ('': the base) between two steps; return its id.

        Raises:
            ValueError, OSError, RuntimeError: it cannot be loaded; the old one goes on.
        """

    def health(self) -> Health:
        """Say how it is, without waiting."""

    def close(self) -> None:
        """Let go of what it holds; a call in progress ends."""
