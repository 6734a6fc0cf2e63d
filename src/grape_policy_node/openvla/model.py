"""OpenVLA: vision towers, a projector and a Llama, under the published parameter names.

The published 7B has two towers (DINOv2 and SigLIP) and three projector layers; checkpoints of
version 0.1 have SigLIP alone and two layers.

The sequence that the language model sees is BOS, the projected patches, the rest of the prompt
(which ends with the empty token), then the action tokens.

Source: Kim et al. 2024 (arXiv 2406.09246), section 3; openvla/openvla,
prismatic/extern/hf/{configuration,modeling}_prismatic.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from grape_policy_node.action_tokens import ACTION_BINS, ACTION_DIMS
from grape_policy_node.openvla.vision import VisionConfig, VisionTransformer

EMPTY_TOKEN_ID = 29871  # Llama-2's lone space

# What a ``text_config`` leaves out: the defaults of the reference's transformers 4.40.1, written
# down so that no other version changes a checkpoint's numbers.
LLAMA_DEFAULTS: dict[str, object] = {
    'vocab_size': 32000,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'hidden_act': 'silu',
    'max_position_embeddings': 2048,
    'rms_norm_eps': 1e-6,
    'rope_theta': 10000.0,
    'attention_bias': False,
    'tie_word_embeddings': False,
    'bos_token_id': 1,
    'eos_token_id': 2,
}


@dataclass(frozen=True)
class OpenVLAConfig:
    """What decides the shape of the model and the meaning of its token ids.

    Attributes:
        towers: DINOv2's and SigLIP's sizes, in this order; or one tower's.
        text: differences from ``LLAMA_DEFAULTS``.
        pad_to_multiple_of: rows at the end of the vocabulary that are no token (64).
        action_bins: number of action ids, the last ones before the padding.
        empty_token_id: the token that stands between the prompt and the first action token.
        prompt_template: which question is asked, a key of processor.PROMPTS.
        raw: the file's own content; unknown entries are kept when it is saved.
    """

    towers: tuple[VisionConfig, ...]
    text: dict[str, object]
    pad_to_multiple_of: int = 64
    action_bins: int = ACTION_BINS
    empty_token_id: int = EMPTY_TOKEN_ID
    prompt_template: str = 'pure'
    raw: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.towers) not in (1, 2):
            raise ValueError(f'found {len(self.towers)} vision towers; expected one or two')
        first, second = self.towers[0], self.towers[-1]
        if first.image_size != second.image_size or first.patches != second.patches:
            raise ValueError(
                f'the towers cut the image differently: {first.image_size} px into '
                f'{first.patches} patches and {second.image_size} px into {second.patches}; '
                'their features are concatenated patch by patch, so both must agree'
            )

    @property
    def image_size(self) -> int:
        """Side of the square input image, px."""
        return self.towers[0].image_size

    @property
    def channels(self) -> int:
        """Of the pixel tensor: three a tower."""
        return 3 * len(self.towers)

    @property
    def llama(self) -> LlamaConfig:
        """The language model's full configuration."""
        text = {k: v for k, v in self.text.items() if k not in ('model_type', 'torch_dtype')}
        return LlamaConfig(**{**LLAMA_DEFAULTS, **text})

    @property
    def vocab_size(self) -> int:
        """V: the vocabulary without its padding; the action ids end at V - 1."""
        return self.llama.vocab_size - self.pad_to_multiple_of


class VisionBackbone(nn.Module):
    """The towers; their patch features side by side on the channel axis."""

    def __init__(self, towers: tuple[VisionConfig, ...]) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(towers[0])
        self.fused_featurizer = VisionTransformer(towers[1]) if len(towers) == 2 else None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3 a tower, H, W), DINOv2's channels first -> (B, P, dim of all)."""
        if self.fused_featurizer is None:
            return self.featurizer(pixel_values)
        first, second = pixel_values.split(3, dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class Projector(nn.Module):
    """Patch features -> word embeddings: three layers with exact GELU between; two unfused."""

    def __init__(self, vision_dim: int, text_dim: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_dim if fused else text_dim
        self.fc1 = nn.Linear(vision_dim, hidden)
        self.fc2 = nn.Linear(hidden, text_dim)
        self.fc3 = nn.Linear(text_dim, text_dim) if fused else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, P, vision_dim) -> (B, P, text_dim)."""
        features = self.fc2(F.gelu(self.fc1(features)))
        return features if self.fc3 is None else self.fc3(F.gelu(features))


class OpenVLA(nn.Module):
    """The policy network.

    Token ids are padded on the right; the mask says which are real. All prompts start with BOS.
    """

    def __init__(self, spec: OpenVLAConfig) -> None:
        super().__init__()
        self.spec = spec
        llama = spec.llama
        self.vision_backbone = VisionBackbone(spec.towers)
        vision_dim = sum(tower.embed_dim for tower in spec.towers)
        self.projector = Projector(vision_dim, llama.hidden_size, fused=len(spec.towers) == 2)
        self.language_model = LlamaForCausalLM(llama)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.projector.fc1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.projector.fc1.weight.device

    def projected_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 6, H, W) -> (B, P, text_dim); three channels for a single tower."""
        channels, size = self.spec.channels, self.spec.image_size
        if pixel_values.shape[1:] != (channels, size, size):
            raise ValueError(
                f'pixel_values are {tuple(pixel_values.shape)}; expected '
                f'(B, {channels}, {size}, {size})'
            )
        return self.projector(self.vision_backbone(pixel_values.to(self.dtype)))

    def embed(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Word embeddings with the patches inserted after BOS.

        Args:
            pixel_values: (B, 6, H, W).
            input_ids: (B, L) int64, starting with BOS.
            attention_mask: (B, L), 1 for a real token; None where all are.

        Returns:
            Embeddings (B, P + L, text_dim) and the mask (B, P + L) or None.
        """
        words = self.language_model.get_input_embeddings()(input_ids)
        patches = self.projected_patches(pixel_values)
        embeds = torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)
        if attention_mask is None:
            return embeds, None
        seen = attention_mask.new_ones(patches.shape[:2])
        return embeds, torch.cat([attention_mask[:, :1], seen, attention_mask[:, 1:]], dim=1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        action_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits at every position (B, P + L (+ 7), padded vocabulary); for tests and inspection.

        With ``action_ids`` (B, 7) these follow the prompt.
        """
        hidden = self._hidden(pixel_values, input_ids, attention_mask, action_ids)
        return self.language_model.lm_head(hidden)

    def action_logits(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        action_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Teacher-forced logits at the seven positions that predict the action tokens.

        Args:
            pixel_values: (B, 6, H, W).
            input_ids: (B, L) prompt, ending with the empty token (then padding, if masked).
            action_ids: (B, 7) token ids; the last one is predicted and never read.
            attention_mask: (B, L) or None.

        Returns:
            (B, 7, padded vocabulary), in the dtype of the weights, differentiable.
        """
        hidden = self.action_hidden(pixel_values, input_ids, action_ids, attention_mask)
        return self.language_model.lm_head(hidden)

    def action_hidden(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        action_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states (B, 7, text_dim) from which `action_logits` predicts the tokens.

        The first is that of the empty token: it has seen the image and the prompt and no action.
        """
        if action_ids.shape != (input_ids.shape[0], ACTION_DIMS):
            raise ValueError(
                f'action_ids are {tuple(action_ids.shape)}; expected '
                f'({input_ids.shape[0]}, {ACTION_DIMS})'
            )
        hidden = self._hidden(pixel_values, input_ids, attention_mask, action_ids[:, :-1])
        tail = hidden[:, -(ACTION_DIMS - 1) :]
        first = hidden[:, -ACTION_DIMS : -(ACTION_DIMS - 1)]
        if attention_mask is not None:
            last_word = self.spec.towers[0].patches + attention_mask.sum(1) - 1
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            first = hidden[rows, last_word].unsqueeze(1)
        return torch.cat([first, tail], dim=1)

    def _hidden(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        action_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Final hidden states of the prompt and the given action tokens."""
        if action_ids is not None:
            if attention_mask is not None:
                seen = attention_mask.new_ones(action_ids.shape)
                attention_mask = torch.cat([attention_mask, seen], dim=1)
            input_ids = torch.cat([input_ids, action_ids], dim=1)
        embeds, mask = self.embed(pixel_values, input_ids, attention_mask)
        positions = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)
        output = self.language_model.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        )
        return output.last_hidden_state
