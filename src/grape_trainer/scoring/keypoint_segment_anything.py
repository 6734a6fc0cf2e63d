"""Masks from Segment Anything (Kirillov et al. 2023), for scenes that no rule covers.

Needs `pip install segment-anything` with a torchvision that fits the installed torch, and weights
that the user names: sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth, from the
authors' page. A grid of points is asked for masks, the good ones are kept, doubles are dropped;
the package's own automatic generator does the same, with torchvision's compiled operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_proposal import Proposal, ordered

MODELS = ('vit_b', 'vit_l', 'vit_h')
BATCH = 64  # points asked at once


@dataclass(frozen=True)
class SegmentAnything:
    """Proposes masks with Segment Anything.

    Attributes:
        weights: path of the checkpoint.
        model: which one it is: vit_b, vit_l or vit_h.
        device: of torch.
        points_per_side: of the grid of points.
        least_quality: the model's own estimate of a mask's IoU.
        least_stability: IoU of the mask's logits cut at -1 and at 1.
        largest_overlap: IoU of two masks; above it the worse one is a double.
        least_area: of the picture.
        largest_area: of the picture.

    """

    weights: Path
    model: str = 'vit_b'
    device: str = 'cpu'
    points_per_side: int = 24
    least_quality: float = 0.88
    least_stability: float = 0.92
    largest_overlap: float = 0.7
    least_area: float = 0.0008
    largest_area: float = 0.2

    def propose(
        self,
        image: np.ndarray,
        depth_m: np.ndarray | None = None,
        camera: CameraGeometry | None = None,
    ) -> tuple[Proposal, ...]:
        """Return masks without doubles, from the top of the picture down.

        Raises:
            KeypointError: no package, no weights, or weights of another model.

        """
        predictor = self._predictor
        predictor.set_image(np.ascontiguousarray(image))
        height, width = image.shape[:2]
        side = (np.arange(self.points_per_side) + 0.5) / self.points_per_side
        grid = np.stack(np.meshgrid(side * width, side * height), axis=-1).reshape(-1, 2)
        found: list[tuple[float, np.ndarray]] = []
        for start in range(0, len(grid), BATCH):
            for quality, mask in self._ask(predictor, grid[start : start + BATCH]):
                if self.least_area <= mask.mean() <= self.largest_area:
                    found.append((quality, mask))
        return ordered(_without_doubles(found, self.largest_overlap))

    @cached_property
    def _predictor(self) -> Any:
        """Load the package and the weights, once."""
        try:
            from segment_anything import SamPredictor, sam_model_registry
        except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
            raise KeypointError(
                f'segment_anything cannot be imported ({error}). Run: pip install '
                'segment-anything, with the torchvision of the installed torch; or take the '
                "proposer 'height' or 'colour', which need no weights."
            ) from error
        if self.model not in sam_model_registry:
            raise KeypointError(
                f"Segment Anything has no model '{self.model}'; expected one of: "
                f'{", ".join(MODELS)}.'
            )
        if not Path(self.weights).is_file():
            raise KeypointError(
                f"There are no Segment Anything weights at '{self.weights}'. Download a "
                'checkpoint from the authors and give its path.'
            )
        try:
            sam = sam_model_registry[self.model](checkpoint=str(self.weights))
        except (RuntimeError, OSError, KeyError) as error:
            raise KeypointError(
                f"'{self.weights}' does not hold the weights of {self.model}: "
                f'{str(error).splitlines()[0]}'
            ) from error
        return SamPredictor(sam.to(self.device).eval())

    def _ask(self, predictor: Any, points: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Yield quality and mask (H, W) bool of the good answers to points (N, 2) u, v."""
        import torch

        coords = predictor.transform.apply_coords(points, predictor.original_size)
        coords = torch.as_tensor(coords, dtype=torch.float32, device=predictor.device)
        labels = torch.ones(len(coords), 1, dtype=torch.int, device=predictor.device)
        logits, quality, _ = predictor.predict_torch(
            coords[:, None], labels, multimask_output=True, return_logits=True
        )
        logits, quality = logits.flatten(0, 1), quality.flatten()
        limit = predictor.model.mask_threshold
        strict = (logits > limit + 1).sum(dim=(1, 2))
        loose = (logits > limit - 1).sum(dim=(1, 2)).clamp(min=1)
        good = (quality >= self.least_quality) & (strict / loose >= self.least_stability)
        for index in torch.nonzero(good).flatten().tolist():
            yield float(quality[index]), (logits[index] > limit).cpu().numpy()


def _without_doubles(
    found: list[tuple[float, np.ndarray]], largest_overlap: float
) -> list[np.ndarray]:
    """Keep the best of masks that overlap (non-maximum suppression on whole masks)."""
    kept: list[np.ndarray] = []
    for _, mask in sorted(found, key=lambda pair: -pair[0]):
        overlaps = ((mask & other).sum() / (mask | other).sum() for other in kept)
        if all(overlap <= largest_overlap for overlap in overlaps):
            kept.append(mask)
    return kept
