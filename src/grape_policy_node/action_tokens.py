"""Robot actions as the last 256 words of the vocabulary, and their units.

A normalised action in [-1, 1] is put between 256 edges; the token id is the vocabulary size
(without the padding) minus the digitised index, so the highest id is the lowest action. There are
255 centres between 256 edges, hence the two ids at one end mean the same action and
``encode(decode(id))`` is not always ``id``: training uses the recorded ids, never re-encoded ones.

Source: openvla/openvla, prismatic/vla/action_tokenizer.py and
prismatic/extern/hf/modeling_prismatic.py (predict_action).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ACTION_BINS = 256
ACTION_DIMS = 7


@dataclass(frozen=True)
class ActionTokenizer:
    """Token ids <-> normalised actions.

    Attributes:
        vocab_size: V, the vocabulary without its padding (32000 for the published model).
        bins: number of edges, and of action ids.
    """

    vocab_size: int
    bins: int = ACTION_BINS

    @property
    def edges(self) -> np.ndarray:
        """The (bins,) edges on [-1, 1]."""
        return np.linspace(-1.0, 1.0, self.bins)

    @property
    def centres(self) -> np.ndarray:
        """The (bins - 1,) centres between the edges."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2.0

    @property
    def first_id(self) -> int:
        """The lowest action id; ids run to ``vocab_size - 1``."""
        return self.vocab_size - self.bins

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions (..., 7), clipped to [-1, 1], -> token ids (..., 7) int64."""
        actions = np.asarray(actions, dtype=np.float64)
        if not np.isfinite(actions).all():
            raise ValueError('an action to encode holds NaN or infinity; expected finite numbers')
        index = np.digitize(np.clip(actions, -1.0, 1.0), self.edges)
        return (self.vocab_size - index).astype(np.int64)

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        """Token ids (..., 7) -> normalised actions (..., 7) float64.

        Raises:
            ValueError: an id that is no action token.
        """
        token_ids = np.asarray(token_ids, dtype=np.int64)
        outside = (token_ids < self.first_id) | (token_ids >= self.vocab_size)
        if outside.any():
            raise ValueError(
                f'token ids {sorted(set(token_ids[outside].tolist()))[:8]} are no action tokens; '
                f'expected {self.first_id}..{self.vocab_size - 1}'
            )
        index = np.clip(self.vocab_size - token_ids - 1, 0, self.bins - 2)
        return self.centres[index]


@dataclass(frozen=True)
class NormStats:
    """A policy's own action statistics: [q01, q99] is mapped to [-1, 1] where the mask is set.

    Attributes:
        q01, q99: (7,) 1st and 99th percentile of the training actions, policy units.
        mask: (7,) False where the action is used as it is (the gripper, 0..1).
    """

    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray

    @classmethod
    def from_dict(cls, action: Mapping[str, object], where: str) -> NormStats:
        """Read the ``action`` entry of a statistics file.

        Args:
            action: with ``q01``, ``q99`` and (optional: all True) ``mask``.
            where: how to name the entry in an error.
        """
        missing = [key for key in ('q01', 'q99') if key not in action]
        if missing:
            raise ValueError(
                f'{where}: action statistics lack {missing}; found {sorted(action)}. '
                'OpenVLA needs the 1st and 99th percentiles.'
            )
        q01 = np.asarray(action['q01'], dtype=np.float64)
        q99 = np.asarray(action['q99'], dtype=np.float64)
        mask = np.asarray(action.get('mask', np.ones_like(q01)), dtype=bool)
        if not q01.shape == q99.shape == mask.shape == (ACTION_DIMS,):
            raise ValueError(
                f'{where}: q01 {q01.shape}, q99 {q99.shape}, mask {mask.shape}; '
                f'expected ({ACTION_DIMS},) each'
            )
        for array in (q01, q99, mask):
            array.setflags(write=False)
        return cls(q01, q99, mask)

    def unnormalise(self, actions: np.ndarray) -> np.ndarray:
        """Normalised (..., 7) -> policy units (..., 7): 0.5 (a + 1)(q99 - q01) + q01."""
        actions = np.asarray(actions, dtype=np.float64)
        scaled = 0.5 * (actions + 1.0) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, scaled, actions)

    def normalise(self, actions: np.ndarray) -> np.ndarray:
        """Policy units (..., 7) -> normalised and clipped; a constant dimension gives 0."""
        actions = np.asarray(actions, dtype=np.float64)
        span = self.q99 - self.q01
        safe = np.where(span > 0, span, 1.0)
        scaled = np.where(span > 0, 2.0 * (actions - self.q01) / safe - 1.0, 0.0)
        return np.clip(np.where(self.mask, scaled, actions), -1.0, 1.0)
