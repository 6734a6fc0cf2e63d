"""The model that acts: for small frozen models, a copy with the active adapter merged.

LoRA layers run three small matrix products in Python where one would do, which is a third of a
step of a small model. A frozen float32 model of up to ``MERGE_LIMIT`` parameters therefore acts
through a copy without LoRA layers, which shares every unadapted weight. The copy is made again
whenever a weight or the active adapter changes. All others act as they are: a 7B model is never
held twice, bfloat16 never merges an adapter (merges in bf16 are known to lose success), and a
model in training is always seen as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.lora import LoraLayer

from grape_policy_node.openvla.action_step import Step, action_step, choose_runtime
from grape_policy_node.openvla.decoding import ActionDecoder
from grape_policy_node.openvla.model import OpenVLA

MERGE_LIMIT = 300_000_000
STEPS_KEPT = 4  # adapters


class ActingModel:
    """Gives the model to act with, and its decoder, up to date."""

    def __init__(
        self,
        model: OpenVLA,
        state: Callable[[], tuple[str, int]],
        merge: bool | None = None,
        runtime: str = 'auto',
    ) -> None:
        """Watch a model.

        Args:
            model: with or without LoRA layers.
            state: name of the active adapter, and a number that changes whenever adapters are
                made, loaded or switched.
            merge: allow the merged copy; None decides by size and dtype.
            runtime: one of action_step.RUNTIMES.
        """
        if merge is None:
            weights = list(model.parameters())
            small = sum(weight.numel() for weight in weights) <= MERGE_LIMIT
            merge = small and all(weight.dtype == torch.float32 for weight in weights)
        self._model = model
        self._state = state
        self._merge = merge
        self._stamp: tuple | None = None
        self._merged: Step | None = None
        self._unmerged: dict[str, Step] = {}
        self.runtime = choose_runtime(runtime, model.device)

    def current(self) -> Step:
        """Return the function that acts now."""
        active, revision = self._state()
        weights = list(self._model.parameters()) if self._merge else []
        if not weights or any(weight.requires_grad for weight in weights):
            # Recordings of several adapters are kept: switching back costs nothing.
            if active not in self._unmerged:
                if len(self._unmerged) >= STEPS_KEPT:
                    self._unmerged.pop(next(iter(self._unmerged)))
                self._unmerged[active] = self._step(self._model, fuse=False)
            return self._unmerged[active]
        # Versions count in-place changes; fused optimizers and .data do not count theirs, but
        # train only what requires gradients, and freezing by AdapterSet is a new revision.
        versions = ((id(weight), weight.data_ptr(), weight._version) for weight in weights)
        stamp = (revision, *versions)
        if stamp != self._stamp:
            self._merged, self._stamp = self._step(merged_copy(self._model), fuse=True), stamp
        return self._merged

    def _step(self, model: OpenVLA, fuse: bool) -> Step:
        return action_step(model, ActionDecoder(model.language_model, fuse), self.runtime)


@torch.no_grad()
def merged_copy(model: OpenVLA) -> OpenVLA:
    """Return a model without LoRA layers that computes the same; unadapted weights are shared."""
    adapted = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    with torch.device('meta'):
        copy = OpenVLA(model.spec)
    state = {}
    for name in copy.state_dict():
        owner, _, kind = name.rpartition('.')
        if owner not in adapted:
            state[name] = model.get_parameter(name).detach()
            continue
        module = adapted[owner]
        weight = getattr(module.get_base_layer(), kind).detach()
        if kind == 'weight' and not module.disable_adapters:
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    weight = weight + module.get_delta_weight(adapter)
        state[name] = weight
    copy.load_state_dict(state, strict=True, assign=True)
    # The rotary buffers are in no state dict.
    copy.language_model.model.rotary_emb = model.language_model.model.rotary_emb
    return copy.eval().requires_grad_(False)
