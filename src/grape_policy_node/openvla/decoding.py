"""Generate the seven action tokens: one prefill, then one short pass for each further token.

A hand-written loop over the Llama's own weights. It equals ``LlamaForCausalLM`` (a test holds it
to that) and skips what costs most at these sizes: mask building and Python around each small
operation, and the last layer's work at positions whose output nobody reads. With ``fuse`` it runs
on joined copies of the matrices (q/k/v, gate/up); without, module by module, LoRA included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import LlamaForCausalLM

from grape_policy_node.action_tokens import ACTION_DIMS


@dataclass(frozen=True)
class Generated:
    """Seven tokens for each row.

    Attributes:
        token_ids: (B, 7) int64.
        log_probs: (B, 7) float32, full-vocabulary log-softmax at temperature 1.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor


@dataclass(frozen=True)
class TokenChoice:
    """Chooses the next token among the action ids, without asking the host.

    Sampling is `argmax(p / noise)` with exponential noise (the Gumbel-max trick, which is also
    what torch.multinomial does): the noise is drawn before the loop, on the CPU and from each
    row's own generator, so that a row's tokens hang on neither its neighbours nor the device.

    Attributes:
        first_id, stop_id: the action ids are first_id .. stop_id - 1.
        noise: (B, 7, ids) float32, exponentially distributed; None: greedy.
        temperature: () float32, more than 0; None: greedy.
    """

    first_id: int
    stop_id: int
    noise: torch.Tensor | None = None
    temperature: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """(B, padded vocabulary) float32 logits of the position 0..6 -> (B,) int64 ids."""
        allowed = logits[:, self.first_id : self.stop_id]
        if self.noise is None:
            return allowed.argmax(dim=-1) + self.first_id
        probabilities = torch.softmax(allowed / self.temperature, dim=-1)
        return (probabilities / self.noise[:, position]).argmax(dim=-1) + self.first_id


def exponential_noise(
    generators: Sequence[torch.Generator], ids: int, device: torch.device
) -> torch.Tensor:
    """Draw the noise of one step: (B, 7, ids) float32 from one CPU generator a row."""
    rows = [
        torch.stack([torch.empty(ids).exponential_(generator=g) for _ in range(ACTION_DIMS)])
        for g in generators
    ]
    return torch.stack(rows).to(device)


class ActionDecoder:
    """Decodes the action tokens with a KV cache."""

    def __init__(self, language_model: LlamaForCausalLM, fuse: bool) -> None:
        """Prepare for a Llama.

        Args:
            language_model: without LoRA layers where ``fuse`` is set.
            fuse: run on joined copies of the weights, which later changes do not reach.
        """
        config = language_model.config
        if config.attention_bias or config.mlp_bias or config.hidden_act != 'silu':
            raise ValueError(
                f'the decoder knows Llama-2 layers (no biases, silu); found attention_bias '
                f'{config.attention_bias}, mlp_bias {config.mlp_bias}, {config.hidden_act}'
            )
        self._llama = language_model
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        kind = _FusedLayer if fuse else _ModuleLayer
        self._layers = [kind(layer) for layer in language_model.model.layers]
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def generate(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor | None,
        choose: Callable[[torch.Tensor, int], torch.Tensor],
    ) -> Generated:
        """Continue each row by seven tokens.

        Args:
            embeds: (B, S, D) of the prompt with its patches, padded on the right.
            mask: (B, S), 1 for a real position; None where all are.
            choose: (B, padded vocabulary) float32 logits, position 0..6 -> (B,) int64 ids.
        """
        batch, prompt, _ = embeds.shape
        room = prompt + ACTION_DIMS - 1
        cos, sin = self._rotary_table(room, embeds)
        lengths = None if mask is None else mask.long().sum(1)
        caches = []
        hidden = self._prefill(embeds, lengths, cos[:prompt], sin[:prompt], caches)
        visible = None
        if lengths is not None:
            slots = torch.arange(room, device=embeds.device)
            visible = (slots < lengths[:, None]) | (slots >= prompt)
            visible = visible[:, None, None, :]
        ids, log_probs = [], []
        embedding = self._llama.get_input_embeddings()
        for step in range(ACTION_DIMS):
            logits = self._llama.lm_head(hidden).float()
            chosen = choose(logits, step)
            ids.append(chosen)
            log_probs.append(F.log_softmax(logits, dim=-1).gather(1, chosen[:, None])[:, 0])
            if step == ACTION_DIMS - 1:
                break
            slot = prompt + step
            if lengths is None:
                here = cos[slot : slot + 1], sin[slot : slot + 1]
            else:
                here = cos[lengths + step][:, None], sin[lengths + step][:, None]
            seen = None if visible is None else visible[..., : slot + 1]
            hidden = self._advance(embedding(chosen)[:, None], slot, here, seen, caches)
        return Generated(torch.stack(ids, 1), torch.stack(log_probs, 1))

    @torch.no_grad()
    def prefill(self, embeds: torch.Tensor) -> torch.Tensor:
        """Run the prompt alone; return its last hidden state (B, D). For measurements."""
        cos, sin = self._rotary_table(embeds.shape[1], embeds)
        return self._prefill(embeds, None, cos, sin, [])

    def _prefill(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        caches: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Fill the caches; return the final hidden state of each row's last word (B, D).

        Padding stands on the right, so the causal mask alone hides it from real positions.
        """
        batch, prompt, _ = x.shape
        for layer in self._layers[:-1]:
            q, k, v = self._split(layer.qkv(x), cos, sin)
            caches.append(_cache(k, v))
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self._heads != self._kv_heads
            )
            x = layer.finish(x, mixed.transpose(1, 2).reshape(batch, prompt, -1))
        layer = self._layers[-1]
        q, k, v = self._split(layer.qkv(x), cos, sin)
        caches.append(_cache(k, v))
        if lengths is None:
            q, x, seen = q[:, :, -1:], x[:, -1:], None
        else:
            rows = torch.arange(batch, device=x.device)
            q = q[rows, :, lengths - 1][:, :, None]
            x = x[rows, lengths - 1][:, None]
            slots = torch.arange(prompt, device=x.device)
            seen = (slots < lengths[:, None])[:, None, None, :]
        return self._last(layer, x, q, k, v, seen)

    def _advance(
        self,
        x: torch.Tensor,
        slot: int,
        rotary: tuple[torch.Tensor, torch.Tensor],
        seen: torch.Tensor | None,
        caches: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """One further token (B, 1, D) -> its final hidden state (B, D)."""
        for layer, (keys, values) in zip(self._layers, caches, strict=True):
            q, k, v = self._split(layer.qkv(x), *rotary)
            keys[:, :, slot : slot + 1] = k
            values[:, :, slot : slot + 1] = v
            past = keys[:, :, : slot + 1], values[:, :, : slot + 1]
            x = self._attend(layer, x, q, *past, seen)
        return self._norm(x)[:, -1]

    def _last(self, layer, x, q, k, v, seen) -> torch.Tensor:
        return self._norm(self._attend(layer, x, q, k, v, seen))[:, -1]

    def _attend(self, layer, x, q, k, v, seen) -> torch.Tensor:
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, enable_gqa=self._heads != self._kv_heads
        )
        return layer.finish(x, mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def _split(
        self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, S, joined) -> rotated q, rotated k, v, each (B, heads, S, head dim)."""
        batch, count, _ = qkv.shape
        heads, kv_heads = self._heads, self._kv_heads
        qkv = qkv.view(batch, count, heads + 2 * kv_heads, -1)
        turned = qkv[:, :, : heads + kv_heads]
        half = turned.shape[-1] // 2
        swapped = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
        turned = (turned * cos.unsqueeze(-2) + swapped * sin.unsqueeze(-2)).transpose(1, 2)
        return turned[:, :heads], turned[:, heads:], qkv[:, :, heads + kv_heads :].transpose(1, 2)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return _rms(self._llama.model.norm, x)

    def _rotary_table(self, count: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (count, head dim) of the Llama's rotary embedding."""
        table = self._rotary
        if (
            table is None
            or table[0].shape[0] < count
            or table[0].dtype != like.dtype
            or table[0].device != like.device
        ):
            positions = torch.arange(max(count, 512), device=like.device)[None]
            cos, sin = self._llama.model.rotary_emb(like, positions)
            table = self._rotary = cos[0], sin[0]
        return table[0][:count], table[1][:count]


class _FusedLayer:
    """A decoder layer with joined weights."""

    def __init__(self, layer: nn.Module) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = torch.cat([module.weight.detach() for module in projections])
        self._out = attention.o_proj.weight.detach()
        self._gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        self._down = mlp.down_proj.weight.detach()
        self._norm1, self._norm2 = layer.input_layernorm, layer.post_attention_layernorm

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(_rms(self._norm1, x), self._qkv)

    def finish(self, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + F.linear(mixed, self._out)
        gate, up = F.linear(_rms(self._norm2, x), self._gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self._down)


class _ModuleLayer:
    """A decoder layer by its own modules, LoRA included."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        attention = self._layer.self_attn
        x = _rms(self._layer.input_layernorm, x)
        return torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], dim=-1)

    def finish(self, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + self._layer.self_attn.o_proj(mixed)
        return x + self._layer.mlp(_rms(self._layer.post_attention_layernorm, x))


def _rms(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Llama's norm by one fused kernel, in float32 inside whatever x is; the module has six."""
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _cache(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of k and v with room for the action tokens."""
    batch, heads, count, size = k.shape
    keys = k.new_empty(batch, heads, count + ACTION_DIMS - 1, size)
    values = torch.empty_like(keys)
    keys[:, :, :count], values[:, :, :count] = k, v
    return keys, values
