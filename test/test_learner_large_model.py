"""Gradient checkpointing leaves the gradient alone and keeps less; adapters stay float32."""

import copy

import learner_policy
import torch

from grape_policy_node.engine import Engine
from grape_trainer.large_model import checkpoint_blocks
from grape_trainer.preference_run import policy_log_probs


def adapted(dtype=torch.float32):
    """An engine whose adapter differs from the base, and a trial."""
    engine = learner_policy.fresh_engine()
    trial = learner_policy.made_up_trial(engine, 'a', 8, 0)
    engine.model.to(dtype)
    engine.adapters.new('trained', seed=1, rank=4, alpha=4)
    with torch.no_grad():
        for parameter in engine.adapters.parameters('trained'):
            parameter.add_(0.01)
    return engine, trial


def backward(engine: Engine, trial):
    """Return the gradients, and the bytes that the graph kept from the forward pass."""
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = policy_log_probs(engine)(trial, 0, trial.steps).sum()
    weights = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    own = {s.data_ptr(): s.nbytes() for s in kept if s.data_ptr() not in weights}
    total.backward()
    return [p.grad.clone() for p in engine.adapters.parameters('trained')], sum(own.values())


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradient_bit_for_bit():
    engine, trial = adapted()
    plain, plain_bytes = backward(copy.deepcopy(engine), trial)
    checkpoint_blocks(engine.model)
    checkpointed, checkpointed_bytes = backward(engine, trial)
    assert all(map(torch.equal, plain, checkpointed))
    assert max(g.abs().max() for g in plain) > 0
    assert checkpointed_bytes < 0.4 * plain_bytes


def test_checkpointed_blocks_run_once_where_no_gradient_is_asked_for():
    engine, trial = adapted()
    calls = []
    block = engine.model.language_model.model.layers[0]
    block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpoint_blocks(engine.model)
    with torch.no_grad():
        policy_log_probs(engine)(trial, 0, 4)
    assert len(calls) == 1
    policy_log_probs(engine)(trial, 0, 4).sum().backward()
    assert len(calls) == 3


def test_adapter_on_a_bfloat16_base_has_float32_weights_gradients_and_log_probs():
    engine, trial = adapted(torch.bfloat16)
    found = policy_log_probs(engine)(trial, 0, 4)
    found.sum().backward()
    parameters = engine.adapters.parameters('trained')
    assert engine.model.dtype == torch.bfloat16
    assert {found.dtype, *(p.dtype for p in parameters)} == {torch.float32}
    assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}
