"""Demonstrations as the model takes them: uint8 pixels, action token ids and prompt ids.

Micro-batches are made of rows of one prompt length, so that no padding is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grape_policy_node.action_tokens import ActionTokenizer
from grape_policy_node.openvla.checkpoint import Checkpoint
from grape_trainer.demonstrations import Demonstrations


@dataclass(frozen=True)
class TokenData:
    """Demonstrations as the model takes them; rows share `prompts[prompt_index]`."""

    images: torch.Tensor  # (N, S, S, 3) uint8
    token_ids: torch.Tensor  # (N, 7) int64
    prompt_index: np.ndarray  # (N,) int64
    prompts: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]  # (N,) of the row's episode

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def groups(self, rows: Sequence[int], limit: int) -> list[list[int]]:
        """Split rows into micro-batches of one prompt length, at most `limit` rows each."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_length[len(self.prompts[self.prompt_index[row]])].append(row)
        return [
            group[start : start + limit]
            for _, group in sorted(by_length.items())
            for start in range(0, len(group), limit)
        ]

    def input_ids(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the (B, L) prompts of rows of one prompt length."""
        return torch.tensor([self.prompts[self.prompt_index[row]] for row in rows])


def token_data(demos: Demonstrations, checkpoint: Checkpoint, unnorm_key: str) -> TokenData:
    """Normalise, bin and prompt demonstrations with a checkpoint's own statistics."""
    spec = checkpoint.model.spec
    _, stats = checkpoint.norm_stats(unnorm_key)
    tokenizer = ActionTokenizer(spec.vocab_size, spec.action_bins)
    names = [path.name for path in demos.episodes]
    return TokenData(
        images=torch.from_numpy(demos.images),
        token_ids=torch.from_numpy(tokenizer.encode(stats.normalise(demos.actions))),
        prompt_index=demos.instruction_index,
        prompts=tuple(tuple(checkpoint.processor.prompt_ids(text)) for text in demos.instructions),
        names=tuple(names[index] for index in demos.episode_index),
    )
