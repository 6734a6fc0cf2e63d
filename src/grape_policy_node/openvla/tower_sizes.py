"""The sizes of a vision tower, measured from its weights.

``config.json`` of a published checkpoint names timm models and no sizes. All but the number of
attention heads can be read off the shapes of the weights, so a folder whose towers are none of
the published ones needs to say only that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from grape_policy_node.openvla.folder import CheckpointError
from grape_policy_node.openvla.vision import PUBLISHED_TOWERS
from grape_policy_node.openvla.weights import StoredTensor

PREFIXES = ('vision_backbone.featurizer.', 'vision_backbone.fused_featurizer.')


def tower_sizes(
    config: Mapping[str, object],
    stored: Mapping[str, StoredTensor],
    where: str,
    declared: Sequence[Mapping[str, object]] | None = None,
) -> list[dict[str, object]]:
    """Return the sizes of each tower: as declared, else as published, else as measured.

    Args:
        config: content of ``config.json``.
        stored: headers of the weights.
        where: the folder, for errors.
        declared: sizes from elsewhere; they count before the config's ``vision_configs``.

    Raises:
        CheckpointError: the number of heads is nowhere, or the weights hold no such tower.
    """
    ids = list(config.get('timm_model_ids') or [])
    declared = declared or config.get('vision_configs') or [{}] * len(ids)
    if len(declared) != len(ids) or not 1 <= len(ids) <= len(PREFIXES):
        raise CheckpointError(
            f'{where}: config.json names the vision towers {ids}, and sizes are given for '
            f'{len(declared)}; expected as many, one tower or two (DINOv2 and SigLIP)'
        )
    pixels = list(config.get('image_sizes') or [])
    if len(pixels) != len(ids):
        raise CheckpointError(
            f'{where}: config.json has image_sizes {pixels} for the towers {ids}; expected as many'
        )
    sizes = []
    for name, given, prefix, size in zip(ids, declared, PREFIXES, pixels, strict=False):
        known = given if 'num_heads' in given else {**PUBLISHED_TOWERS.get(name, {}), **given}
        if 'num_heads' not in known:
            raise CheckpointError(
                f"{where}: the number of attention heads of vision tower '{name}' is not known, "
                f'and weights do not show it; known are {sorted(PUBLISHED_TOWERS)}. Add a list '
                '\'vision_configs\' to config.json, one entry a tower: {"num_heads": ...}.'
            )
        sizes.append({**measured(stored, prefix, int(size), where), **known})
    return sizes


def measured(
    stored: Mapping[str, StoredTensor], prefix: str, image_size: int, where: str
) -> dict[str, object]:
    """Read a tower's sizes off its weights: all but ``num_heads``.

    Args:
        stored: headers of the weights.
        prefix: of the tower's parameter names.
        image_size: side of the picture, px; it tells how many positions are patches.
        where: the folder, for errors.
    """
    shapes = {
        name.removeprefix(prefix): tensor.shape
        for name, tensor in stored.items()
        if name.startswith(prefix)
    }
    try:
        dim, _, patch, _ = shapes['patch_embed.proj.weight']
        hidden = shapes['blocks.0.mlp.fc1.weight'][0]
        positions = shapes['pos_embed'][1]
    except (KeyError, ValueError, IndexError):
        raise CheckpointError(
            f"{where}: the weights hold no vision tower '{prefix}*' (patch_embed.proj.weight, "
            f'pos_embed, blocks.N ...); found {len(shapes)} of its names. Expected the OpenVLA '
            'layout.'
        ) from None
    class_token = 'cls_token' in shapes
    registers = shapes['reg_token'][1] if 'reg_token' in shapes else 0
    only_patches = positions == (image_size // patch) ** 2
    return {
        'embed_dim': dim,
        'depth': 1 + max(int(n.split('.')[1]) for n in shapes if n.startswith('blocks.')),
        'patch': patch,
        'mlp_ratio': _ratio(hidden, dim),
        'class_token': class_token,
        'reg_tokens': registers,
        'init_values': 1e-5 if 'blocks.0.ls1.scale_factor' in shapes else None,
        'no_embed_class': only_patches and (class_token or registers > 0),
        'attention_pool': 'attn_pool.latent' in shapes,
    }


def _ratio(hidden: int, dim: int) -> float:
    """Return the ratio that timm's ``int(dim * ratio)`` turns into ``hidden``."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
