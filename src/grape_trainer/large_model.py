"""What makes a model fit that does not: blocks run again in the backward pass, shards of weights.

A block is a layer of a vision tower or of the language model. Both are options of a run and leave
its numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from grape_policy_node.openvla.model import OpenVLA
from grape_trainer.distributed import Ranks
from grape_trainer.training_config import LearnerConfig


def fit_into_memory(model: OpenVLA, config: LearnerConfig, ranks: Ranks) -> None:
    """Apply `gradient_checkpointing` and `parallel: fsdp`; call it once the adapter is there."""
    if config.gradient_checkpointing:
        checkpoint_blocks(model)
    if ranks.in_step:
        shard_frozen(model, ranks)


def checkpoint_blocks(model: OpenVLA) -> None:
    """Keep only each block's input for the backward pass, which runs the block again."""
    for block in _blocks(model):
        block.forward = partial(_checkpointed, block.forward)


def shard_frozen(model: OpenVLA, ranks: Ranks) -> None:
    """Keep 1 / n of the frozen weights in each of n processes; each block is gathered as it runs.

    The trained ones stay whole everywhere: an adapter is 1 to 2 % of the model, and its gradients
    and checkpoints are those of any other run. (torch's FSDP2; it gathers in the stored dtypes.)
    """
    kind = next(model.parameters()).device.type
    options = {
        'mesh': init_device_mesh(kind, (ranks.count,)),
        'ignored_params': {p for p in model.parameters() if p.requires_grad},
    }
    for block in _blocks(model):
        fully_shard(block, **options)
    # lm_head is also called outside of the forward methods (Engine.score_steps).
    fully_shard(model, **options, reshard_after_forward=False)
    for name in ('action_logits', 'action_hidden'):
        register_fsdp_forward_method(model, name)


def _blocks(model: OpenVLA) -> list[torch.nn.Module]:
    vision = model.vision_backbone
    towers = [t for t in (vision.featurizer, vision.fused_featurizer) if t is not None]
    blocks = [block for tower in towers for block in tower.blocks]
    return [*blocks, *model.language_model.model.layers]


def _checkpointed(forward: Callable, *args: object, **kwargs: object) -> object:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing is drawn in a block: there is no dropout.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
