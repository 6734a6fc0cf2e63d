"""The value head of PPO: V(s) from h0, the hidden state that predicts the first action token.

Three layers, as in RL4VLA (arXiv 2505.19789; repository gen-robot/RL4VLA): text_dim -> 512 -> 128
-> 1 with exact GELU between, no bias in the last. Kaiming-normal weights (fan_out) and zero biases
in the first two, N(0, 0.02) in the last, so that a fresh head says about 0. It shares the policy's
backbone: the value loss reaches the adapter through h0.

It lies in value_head.safetensors beside the adapter with which it was trained.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

VALUE_HEAD = 'value_head.safetensors'
WIDTHS = (512, 128)
LAST_STD = 0.02


class ValueHeadError(ValueError):
    """A file that is no value head of this policy."""


class ValueHead(nn.Module):
    """(B, text_dim) float32 -> (B,) values."""

    def __init__(self, text_dim: int) -> None:
        """Make the layers, uninitialised; see `new_value_head`."""
        super().__init__()
        self.fc1 = nn.Linear(text_dim, WIDTHS[0])
        self.fc2 = nn.Linear(WIDTHS[0], WIDTHS[1])
        self.fc3 = nn.Linear(WIDTHS[1], 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the values of states."""
        hidden = nn.functional.gelu(self.fc1(hidden))
        return self.fc3(nn.functional.gelu(self.fc2(hidden)))[..., 0]


def new_value_head(text_dim: int, generator: torch.Generator) -> ValueHead:
    """Make a fresh head, drawn from a generator alone."""
    head = ValueHead(text_dim)
    for layer in (head.fc1, head.fc2):
        nn.init.kaiming_normal_(
            layer.weight, mode='fan_out', nonlinearity='relu', generator=generator
        )
        nn.init.zeros_(layer.bias)
    nn.init.normal_(head.fc3.weight, std=LAST_STD, generator=generator)
    return head


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the head beside an adapter."""
    state = {n: t.detach().cpu().contiguous() for n, t in head.state_dict().items()}
    save_file(state, str(folder / VALUE_HEAD))


def load_value_head(folder: Path, text_dim: int) -> ValueHead:
    """Read the head of an adapter folder.

    Raises:
        ValueHeadError: no such file, or one of another policy.

    """
    path = folder / VALUE_HEAD
    if not path.is_file():
        raise ValueHeadError(f"'{folder}' has no {VALUE_HEAD}; only 'grape train ppo' writes one.")
    head, state = ValueHead(text_dim), load_file(str(path))
    found = {name: tuple(t.shape) for name, t in state.items()}
    wanted = {name: tuple(t.shape) for name, t in head.state_dict().items()}
    if found != wanted:
        raise ValueHeadError(f"'{path}' holds {found}; expected {wanted} for this policy.")
    head.load_state_dict(state)
    return head


def value_head_id(head: ValueHead) -> str:
    """Return the first 8 hex of the sha256 of the weights."""
    digest = hashlib.sha256()
    for _, tensor in sorted(head.state_dict().items()):
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]
