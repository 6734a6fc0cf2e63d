"""What goes into the model: pixels and prompt, the same in rollouts and in training.

Pixels: PIL's bicubic (antialiased) resize straight to the model's square, / 255, then the two
towers' normalisations stacked as six channels, DINOv2 first (three for a single tower). Prompt:
OpenVLA's question about the lower-cased instruction, and after ``Out:`` the empty token, which
stands before the first action token in training.

Source: openvla/openvla, prismatic/extern/hf/processing_prismatic.py ('resize-naive'); the prompts
are experiments/robot/openvla_utils.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

# By the language model that a checkpoint was trained from: Llama-2, or Vicuna (version 0.1).
PROMPTS = {
    'pure': 'In: What action should the robot take to {instruction}?\nOut:',
    'vicuna': (
        'A chat between a curious user and an artificial intelligence assistant. The assistant '
        "gives helpful, detailed, and polite answers to the user's questions. "
        'USER: What action should the robot take to {instruction}? ASSISTANT:'
    ),
}


def prompt_text(instruction: str, template: str = 'pure') -> str:
    """Return OpenVLA's prompt for an instruction (lower-cased)."""
    return PROMPTS[template].format(instruction=instruction.lower())


@dataclass(frozen=True)
class PixelTransform:
    """RGB image -> normalised channels, three a tower.

    Attributes:
        image_size: side of the square, px.
        means, stds: (towers, 3) one row a tower, DINOv2 first.
    """

    image_size: int
    means: tuple[tuple[float, ...], ...]
    stds: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, content: Mapping[str, object], where: str) -> PixelTransform:
        """Read ``preprocessor_config.json``.

        Raises:
            ValueError: a pipeline other than bicubic resize-naive, or towers of several sizes.
        """
        strategy = content.get('image_resize_strategy')
        if strategy != 'resize-naive' or content.get('tvf_do_letterbox', False):
            raise ValueError(
                f"{where}: image_resize_strategy '{strategy}' (letterbox: "
                f"{content.get('tvf_do_letterbox', False)}); only 'resize-naive' is supported"
            )
        sizes, means, stds = (content.get(k) for k in ('input_sizes', 'means', 'stds'))
        rows = {len(entry) if entry else 0 for entry in (sizes, means, stds)}
        if rows not in ({1}, {2}):
            raise ValueError(
                f'{where}: expected input_sizes, means and stds for one or two vision towers; '
                f'found {sizes}, {means}, {stds}'
            )
        if len({(height, width) for _, height, width in sizes} | {tuple(sizes[0][1:])}) != 1:
            raise ValueError(f'{where}: the towers have different input sizes {sizes}')
        if sizes[0][1] != sizes[0][2]:
            raise ValueError(f'{where}: input size {sizes[0]} is not square')
        interpolations = set(content.get('interpolations', ['bicubic']))
        if interpolations != {'bicubic'}:
            raise ValueError(f"{where}: interpolations {interpolations}; only 'bicubic' is known")
        return cls(
            image_size=int(sizes[0][1]),
            means=tuple(tuple(float(x) for x in row) for row in means),
            stds=tuple(tuple(float(x) for x in row) for row in stds),
        )

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 RGB -> (6, S, S) float32; (3, S, S) for a single tower."""
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f'image is {image.dtype} {image.shape}; expected uint8 (H, W, 3) RGB, '
                'after the contract transform'
            )
        size = (self.image_size, self.image_size)
        picture = Image.fromarray(np.ascontiguousarray(image)).resize(
            size, Image.Resampling.BICUBIC
        )
        channels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255.0)
        mean, std = _statistics(self.means, self.stds)
        return ((channels.unsqueeze(0) - mean) / std).reshape(-1, *size)


@lru_cache(maxsize=8)
def _statistics(means: tuple, stds: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor(means, dtype=torch.float32).view(-1, 3, 1, 1),
        torch.tensor(stds, dtype=torch.float32).view(-1, 3, 1, 1),
    )


@dataclass(frozen=True)
class Processor:
    """Images and instructions -> model inputs.

    Attributes:
        pixels: the image pipeline.
        tokenizer: of ``tokenizer.json``, or None for a folder without one (no prompt then).
        bos_token_id, pad_token_id, empty_token_id: as the checkpoint says.
        folder: for errors.
        template: of the prompt, a key of PROMPTS.
    """

    pixels: PixelTransform
    tokenizer: Tokenizer | None
    bos_token_id: int
    pad_token_id: int
    empty_token_id: int
    folder: str
    template: str = 'pure'

    def pixel_values(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8, or a list of such images -> (B, 6, S, S) float32."""
        return torch.stack([self.pixels(image) for image in images])

    def prompt_ids(self, instruction: str) -> list[int]:
        """Token ids of the prompt: BOS first, the empty token last.

        Raises:
            ValueError: an empty instruction, or a checkpoint folder without tokenizer.
        """
        if not instruction.strip():
            raise ValueError('the instruction is empty; expected what the robot should do')
        if self.tokenizer is None:
            raise ValueError(
                f'{self.folder} has no tokenizer.json, so no prompt can be encoded. '
                "Copy the base model's tokenizer files into it."
            )
        ids = list(self.tokenizer.encode(prompt_text(instruction, self.template)).ids)
        if not ids or ids[0] != self.bos_token_id:
            ids.insert(0, self.bos_token_id)
        if ids[-1] != self.empty_token_id:
            ids.append(self.empty_token_id)
        return ids

    def prompts(self, instructions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (B, L) padded on the right, and the mask (B, L) int64 or None if none is."""
        rows = [self.prompt_ids(instruction) for instruction in instructions]
        longest = max(len(row) for row in rows)
        if all(len(row) == longest for row in rows):
            return torch.tensor(rows, dtype=torch.int64), None
        ids = torch.full((len(rows), longest), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids, mask
