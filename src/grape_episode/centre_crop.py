"""The centre crop of OpenVLA's evaluation, bit for bit.

Checkpoints that were fine-tuned with random crops (area 0.9) are played on the centre crop of the
same area, resized back to the picture's size. The published evaluation does it with
``tf.image.crop_and_resize``: the crop's side is sqrt(area) of the picture's, its corners lie
between pixels, every new pixel is interpolated between four old ones, and the result is truncated
(not rounded) to whole values. All of it in float32 and in this order of operations.

Source: openvla/openvla, experiments/robot/openvla_utils.py (crop_and_resize, get_vla_action).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

ONE = np.float32(1.0)
# tf.image.convert_image_dtype: / 255 on the way in, * 255.5 and truncation on the way out.
TO_FLOAT = np.float32(1.0 / 255.0)
TO_UINT8 = np.float32(255.5)


def centre_crop(image: np.ndarray, area: float) -> np.ndarray:
    """Crop the centre and resize it back.

    Args:
        image: (H, W, 3) uint8.
        area: of the crop, as a fraction of the picture's; OpenVLA's recipe is 0.9.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    above, below, down = _neighbours(height, area)
    left, right, across = _neighbours(width, area)
    down, across = down[:, None, None], across[None, :, None]
    values = image.astype(np.float32) * TO_FLOAT
    columns = values[:, left]
    columns += (values[:, right] - columns) * across
    top = columns[above]
    top += (columns[below] - top) * down
    return (np.clip(top, 0.0, 1.0) * TO_UINT8).astype(np.uint8)


@lru_cache(maxsize=16)
def _neighbours(size: int, area: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, along one axis, the two old pixels of each new one and the second one's weight."""
    side = np.sqrt(np.float32(area))
    begin = (ONE - side) / np.float32(2.0)
    last = np.float32(size - 1)
    step = ((begin + side) - begin) * last / last if size > 1 else ONE
    position = begin * last + np.arange(size, dtype=np.float32) * step
    first, second = np.floor(position), np.ceil(position)
    return first.astype(np.intp), second.astype(np.intp), position - first
