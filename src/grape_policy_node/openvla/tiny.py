"""A fresh, small OpenVLA: random weights, a tokenizer of its own, the published layout.

For demos and tests on machines without a GPU. Sizes come from a YAML (config/policy/), which says
why each is what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from grape_policy_node.action_tokens import ACTION_BINS
from grape_policy_node.openvla.checkpoint import Checkpoint, build_processor, parse_config
from grape_policy_node.openvla.model import OpenVLA
from grape_policy_node.openvla.processor import prompt_text

UNKNOWN, BOS, EOS, EMPTY = '<unk>', '<s>', '</s>', '▁'
SPECIAL = [UNKNOWN, BOS, EOS, EMPTY]
BYTES = 256
INIT_STD = 0.02


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a fresh model; see config/policy/grape_tiny.yaml."""

    name: str
    image_size: int
    towers: list[dict[str, object]]
    text_config: dict[str, object]
    text_tokens: int
    pad_to_multiple_of: int
    means: list[list[float]]
    stds: list[list[float]]
    corpus: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.text_tokens < BYTES + len(SPECIAL):
            raise ValueError(
                f'text_tokens is {self.text_tokens}; expected at least {BYTES + len(SPECIAL)} '
                '(all bytes and the special tokens)'
            )
        if len(self.towers) != 2:
            raise ValueError(f'found {len(self.towers)} towers; expected 2')


def load_tiny_config(path: str | Path) -> TinyConfig:
    """Read the YAML; an unknown or missing key is an error."""
    content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    known = TinyConfig.__dataclass_fields__
    if not isinstance(content, Mapping) or set(content) - set(known):
        raise ValueError(
            f'{path}: unknown keys {sorted(set(content or {}) - set(known))}; '
            f'known are {sorted(known)}'
        )
    try:
        return TinyConfig(**content)
    except TypeError as error:
        raise ValueError(f'{path}: {error}') from error


def build_tiny(
    config: TinyConfig | str | Path,
    instructions: Iterable[str],
    statistics: Mapping[str, dict],
    seed: int,
) -> Checkpoint:
    """Create a fresh model with random weights, ready to be trained and saved.

    Args:
        config: sizes, or the YAML with them.
        instructions: of the data; the tokenizer learns their words.
        statistics: by unnorm_key: ``{'action': {'q01': [7], 'q99': [7], 'mask': [7], ...}}``.
        seed: decides all weights.
    """
    if not isinstance(config, TinyConfig):
        config = load_tiny_config(config)
    tokenizer = train_tokenizer([*config.corpus, *instructions], config.text_tokens)
    vocab_size = config.text_tokens + ACTION_BINS
    raw = {
        'model_type': 'openvla',
        'architectures': ['OpenVLAForActionPrediction'],
        'timm_model_ids': [f'{config.name}_dinov2', f'{config.name}_siglip'],
        'image_sizes': [config.image_size] * 2,
        'image_resize_strategy': 'resize-naive',
        'use_fused_vision_backbone': True,
        'n_action_bins': ACTION_BINS,
        'pad_to_multiple_of': config.pad_to_multiple_of,
        'pad_token_id': vocab_size,
        'vision_configs': config.towers,
        'empty_token_id': tokenizer.token_to_id(EMPTY),
        'text_config': {
            'model_type': 'llama',
            **config.text_config,
            'vocab_size': vocab_size + config.pad_to_multiple_of,
            'bos_token_id': tokenizer.token_to_id(BOS),
            'eos_token_id': tokenizer.token_to_id(EOS),
            'pad_token_id': vocab_size,
        },
        'norm_stats': dict(statistics),
    }
    spec = parse_config(raw, config.name)
    raw['vision_configs'] = [asdict(tower) for tower in spec.towers]
    preprocessor = {
        'image_processor_type': 'PrismaticImageProcessor',
        'image_resize_strategy': 'resize-naive',
        'input_sizes': [[3, config.image_size, config.image_size]] * 2,
        'interpolations': ['bicubic'] * 2,
        'means': config.means,
        'stds': config.stds,
        'tvf_do_letterbox': False,
        'use_fused_vision_backbone': True,
    }
    processor = build_processor(spec, preprocessor, tokenizer, config.name)
    model = OpenVLA(spec)
    initialise(model, torch.Generator().manual_seed(seed))
    return Checkpoint(model.eval(), processor, dict(statistics), preprocessor, config.name)


def train_tokenizer(sentences: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE on the prompts of these sentences; at most ``size`` words."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt_text(s) for s in sentences), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{BOS} $A', special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


@torch.no_grad()
def initialise(model: OpenVLA, generator: torch.Generator) -> None:
    """Draw all weights: normal with std 0.02 (Xavier in the towers), biases and tokens zero."""
    towers = set(model.vision_backbone.modules()) | set(model.projector.modules())
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if module in towers:
                matrix = module.weight.flatten(1)
                bound = (6.0 / sum(matrix.shape)) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
            else:
                module.weight.normal_(0.0, INIT_STD, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, INIT_STD, generator=generator)
    for name, parameter in model.vision_backbone.named_parameters():
        if name.endswith(('pos_embed', 'cls_token', 'reg_token', 'latent')):
            parameter.normal_(0.0, INIT_STD, generator=generator)
