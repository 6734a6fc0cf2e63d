"""8- and 4-bit weights for the language model, by bitsandbytes.

They make a 7B model fit a small GPU; they seldom make it faster: a step reads fewer bytes and pays
for unpacking them (bench/bench_engine.py measures it). The towers, the projector and the head, a
tenth of a 7B model, stay as they are: their errors reach every token.

Source: Dettmers et al. 2022 (arXiv 2208.07339, LLM.int8) and 2023 (arXiv 2305.14314, NF4).
"""

from __future__ import annotations

import torch
from torch import nn

from grape_policy_node.openvla.model import OpenVLA

BITS = (8, 4)


def quantize_language_model(model: OpenVLA, bits: int, device: torch.device | str) -> None:
    """Replace the linear layers of the decoder blocks, one after the other, on the device.

    Args:
        model: with its weights in memory, without adapters.
        bits: 8 or 4.
        device: where the quantised weights go; move the rest of the model yourself.

    Raises:
        ValueError: another number of bits.
        ImportError: bitsandbytes is not installed; says how to install it.
    """
    if bits not in BITS:
        raise ValueError(f'quantize is {bits} bits; expected 8 or 4, or 0 for none')
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            f'{bits}-bit loading needs bitsandbytes ({error}). Run: pip install bitsandbytes'
        ) from error
    for layer in model.language_model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(block, name, _quantized(bitsandbytes.nn, linear, bits).to(device))


def _quantized(kinds: object, linear: nn.Linear, bits: int) -> nn.Linear:
    """Return a bitsandbytes layer that packs the weight when it is moved to its device."""
    shape, weight = (linear.in_features, linear.out_features), linear.weight.data
    if bits == 8:
        layer = kinds.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
        layer.weight = kinds.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer
    layer = kinds.Linear4bit(*shape, bias=False, compute_dtype=weight.dtype, quant_type='nf4')
    layer.weight = kinds.Params4bit(weight, requires_grad=False, quant_type='nf4', module=layer)
    return layer
