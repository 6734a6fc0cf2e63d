"""Image augmentation of a training batch, at the model's size, with an explicit generator.

Shifts leave size and scale alone, so that the policy needs no matching crop when it acts.
"""

from __future__ import annotations

import torch

# Weights of luma, ITU-R BT.601: contrast is changed about the image's mean grey.
LUMA = (0.299, 0.587, 0.114)


def augment(
    images: torch.Tensor,
    shift_px: int,
    brightness: float,
    contrast: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Shift and recolour every image on its own.

    Args:
        images: (B, S, S, 3) uint8 RGB.
        shift_px: up to this many pixels along each axis; the edge is repeated.
        brightness: factor drawn from 1 +- this.
        contrast: factor about the mean grey, drawn from 1 +- this.
        generator: of this batch, on the CPU.

    Returns:
        (B, S, S, 3) uint8 if nothing recolours, else float32 in 0..255.

    """
    if shift_px > 0:
        images = _shift(images, shift_px, generator)
    if brightness == 0 and contrast == 0:
        return images
    count = len(images)
    bright = 1 + brightness * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    contrasts = 1 + contrast * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    values = images.float() * bright.to(images.device)
    grey = (values * torch.tensor(LUMA, device=values.device)).sum(-1, keepdim=True)
    grey = grey.mean((1, 2), keepdim=True)
    return (grey + (values - grey) * contrasts.to(values.device)).clamp(0, 255)


def _shift(images: torch.Tensor, shift_px: int, generator: torch.Generator) -> torch.Tensor:
    count, height, width, _ = images.shape
    offsets = torch.randint(-shift_px, shift_px + 1, (count, 2), generator=generator)
    rows = (torch.arange(height) + offsets[:, :1]).clamp(0, height - 1).to(images.device)
    columns = (torch.arange(width) + offsets[:, 1:]).clamp(0, width - 1).to(images.device)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]]
