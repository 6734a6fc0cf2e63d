"""The two vision transformers of OpenVLA in plain torch.

Parameter names are those of timm (``patch_embed.proj``, ``blocks.N.attn.qkv`` ...), because the
published checkpoints use them; the one exception is LayerScale's ``scale_factor``, which the
reference renames from timm's ``gamma``. DINOv2 has a class token, four registers and a position
embedding for the patches only; SigLIP has none of these and an attention-pool tail. The features
are the output of the second-to-last block, so the last block, the final norm and the tail are
held (their weights are in the file) and never run.

Source: openvla/openvla, prismatic/extern/hf/modeling_prismatic.py; Dosovitskiy et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of one tower.

    Attributes:
        embed_dim, depth, num_heads, mlp_ratio: as in timm; ``depth`` counts the never-run block.
        patch: side of a patch, px.
        image_size: side of the square image, px.
        class_token: whether one class token leads the sequence.
        reg_tokens: number of register tokens after it.
        init_values: LayerScale's initial value, or None for a tower without LayerScale.
        no_embed_class: the position embedding covers the patches only.
        attention_pool: whether the file holds an ``attn_pool`` tail.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch: int = 14
    image_size: int = 224
    mlp_ratio: float = 4.0
    class_token: bool = True
    reg_tokens: int = 0
    init_values: float | None = None
    no_embed_class: bool = False
    attention_pool: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f'vision tower: embed_dim {self.embed_dim} is not a multiple of num_heads '
                f'{self.num_heads}'
            )
        if self.image_size % self.patch:
            raise ValueError(
                f'vision tower: image_size {self.image_size} px is not a multiple of patch '
                f'{self.patch} px'
            )
        if self.depth < 2:
            raise ValueError(
                f'vision tower: depth {self.depth}; features come from the second-to-last block, '
                'so at least 2 are needed'
            )

    @classmethod
    def from_dict(cls, sizes: Mapping[str, object], image_size: int) -> VisionConfig:
        """Read the sizes written in ``config.json``; a tower without class token has the tail."""
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(sizes) - known)
        if unknown:
            raise ValueError(f'vision_configs: unknown keys {unknown}; known are {sorted(known)}')
        values = dict(sizes)
        if values.setdefault('image_size', image_size) != image_size:
            raise ValueError(
                f'vision_configs has image_size {values["image_size"]} px, image_sizes says '
                f'{image_size} px; they must agree'
            )
        values.setdefault('attention_pool', not values.get('class_token', True))
        return cls(**values)

    @property
    def patches(self) -> int:
        """Number of patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens before the patches."""
        return int(self.class_token) + self.reg_tokens


# The towers of the published 7B models (timm's model registry).
PUBLISHED_TOWERS: dict[str, dict[str, object]] = {
    'vit_large_patch14_reg4_dinov2.lvd142m': {
        'embed_dim': 1024,
        'depth': 24,
        'num_heads': 16,
        'patch': 14,
        'reg_tokens': 4,
        'init_values': 1e-5,
        'no_embed_class': True,
    },
    'vit_so400m_patch14_siglip_224': {
        'embed_dim': 1152,
        'depth': 27,
        'num_heads': 16,
        'patch': 14,
        'mlp_ratio': 3.7362,
        'class_token': False,
    },
}


class VisionTransformer(nn.Module):
    """One tower: pixels (B, 3, H, W) -> patch features (B, P, embed_dim)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.sizes = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(dim, config.patch)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, dim))
        positions = config.patches + (0 if config.no_embed_class else config.prefix_tokens)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        if config.attention_pool:
            self.attn_pool = AttentionPool(config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the second-to-last block's output for the patches only."""
        x = self.patch_embed(pixels)
        if self.sizes.no_embed_class:
            x = self._with_prefix(x + self.pos_embed)
        else:
            x = self._with_prefix(x) + self.pos_embed
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.sizes.prefix_tokens :]

    def _with_prefix(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        prefix = []
        if self.sizes.class_token:
            prefix.append(self.cls_token.expand(batch, -1, -1))
        if self.sizes.reg_tokens:
            prefix.append(self.reg_token.expand(batch, -1, -1))
        return torch.cat([*prefix, x], dim=1) if prefix else x


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each: a convolution whose stride is its kernel."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, P, dim), row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        scaled = config.init_values is not None
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = LayerScale(dim, config.init_values) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.ls2 = LayerScale(dim, config.init_values) if scaled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the last axis."""
        return x * self.scale_factor


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        batch, count, dim = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, count, dim))


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling tail. It holds the file's weights; OpenVLA never runs it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
