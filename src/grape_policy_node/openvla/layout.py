"""``config.json`` of a checkpoint -> what decides the model; other architectures are refused.

A checkpoint that is nearly an OpenVLA (another language model, another activation, OpenVLA-OFT's
continuous head) would load and act wrongly, so whatever this code does not compute is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from grape_policy_node.openvla.folder import CheckpointError
from grape_policy_node.openvla.model import EMPTY_TOKEN_ID, OpenVLAConfig
from grape_policy_node.openvla.processor import PROMPTS
from grape_policy_node.openvla.vision import PUBLISHED_TOWERS, VisionConfig

# What the model computes; any other value of these keys is another architecture.
LLAMA_ONLY = {
    'model_type': 'llama',
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
}


def check_architecture(raw: Mapping[str, object], where: str, folder: Path | None = None) -> None:
    """Refuse what is no OpenVLA.

    Args:
        raw: content of ``config.json``.
        where: the folder, for errors.
        folder: looked into for files of relatives of OpenVLA; None: the config only.

    Raises:
        CheckpointError: with what was found and what was expected.
    """
    if raw.get('model_type') != 'openvla':
        raise CheckpointError(
            f"{where}: config.json has model_type '{raw.get('model_type')}' (architectures "
            f"{raw.get('architectures')}); expected 'openvla'. Other policies are not loaded."
        )
    text = raw.get('text_config') or {}
    for key, known in LLAMA_ONLY.items():
        if text.get(key, known) != known:
            raise CheckpointError(
                f'{where}: config.json has text_config.{key} {text[key]!r}; expected {known!r} '
                '(a Llama-2 language model)'
            )
    layers = [name for name in raw.get('timm_override_act_layers') or [] if name is not None]
    if layers:
        raise CheckpointError(
            f'{where}: config.json has timm_override_act_layers {layers}; expected none: the '
            'vision towers are computed with exact GELU'
        )
    heads = sorted(path.name for path in folder.glob('action_head--*')) if folder else []
    if heads:
        raise CheckpointError(
            f'{where} holds {heads[0]}: an OpenVLA-OFT checkpoint, whose actions come from a '
            'head of its own. Expected an OpenVLA checkpoint, whose actions are tokens.'
        )


def parse_config(
    raw: Mapping[str, object],
    where: str,
    vision_configs: Sequence[Mapping[str, object]] | None = None,
) -> OpenVLAConfig:
    """Read the content of ``config.json``.

    Args:
        raw: the content.
        where: the folder, for errors.
        vision_configs: sizes of the towers; by default the config's own, else the published ones.
    """
    check_architecture(raw, where)
    ids = raw.get('timm_model_ids') or []
    sizes = raw.get('image_sizes') or []
    if len(ids) != len(sizes) or len(ids) not in (1, 2):
        raise CheckpointError(
            f'{where}: config.json names the vision towers {ids} with image sizes {sizes}; '
            'expected two (DINOv2 and SigLIP, the fused backbone) or one, with a size each'
        )
    fused = raw.get('use_fused_vision_backbone')
    if fused is not None and bool(fused) != (len(ids) == 2):
        raise CheckpointError(
            f'{where}: config.json has use_fused_vision_backbone {fused} and the vision towers '
            f'{ids}; expected true for two towers and false for one'
        )
    towers = vision_configs or raw.get('vision_configs')
    if not towers:
        towers = [PUBLISHED_TOWERS.get(name, {}) for name in ids]
    if len(towers) != len(ids) or not all(towers):
        raise CheckpointError(
            f'{where}: the sizes of vision towers {ids} are not known (vision_configs has '
            f'{len(towers)}); known are {sorted(PUBLISHED_TOWERS)}. Add a list '
            "'vision_configs' with embed_dim, depth, num_heads ... of each tower to config.json."
        )
    try:
        return OpenVLAConfig(
            towers=tuple(
                VisionConfig.from_dict(tower, int(size))
                for tower, size in zip(towers, sizes, strict=True)
            ),
            text=dict(raw.get('text_config') or {}),
            pad_to_multiple_of=int(raw.get('pad_to_multiple_of', 64)),
            action_bins=int(raw.get('n_action_bins', 256)),
            empty_token_id=int(raw.get('empty_token_id', EMPTY_TOKEN_ID)),
            prompt_template=_prompt_template(raw),
            raw=dict(raw),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{where}: config.json: {error}') from error


def _prompt_template(raw: Mapping[str, object]) -> str:
    """Return the template's name: as the config says, else by the language model's name."""
    vicuna = str(raw.get('llm_backbone_id', '')).startswith('vicuna')
    template = raw.get('prompt_template', 'vicuna' if vicuna else 'pure')
    if template not in PROMPTS:
        raise ValueError(f"prompt_template '{template}' is not one of: {', '.join(PROMPTS)}")
    return template
