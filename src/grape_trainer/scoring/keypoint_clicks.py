"""A person's clicks on the first picture, and the masks that they mean.

A click file is JSON, name -> [u, v] in pixels of the picture as a person sees it (turned as the
contract says, not cropped), u to the right and v down:

    {"alphabet_soup_1": [167, 108], "basket_1": [47, 118]}

Every trial from the same initial state begins with the same picture, so that one file serves
them all. A click means the smallest proposed thing under it; where nothing was proposed, or two
names are on one proposal (a bowl in a drawer), it means what stands out there by its colour, and
where nothing does, the surface around it of its colour.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_lifting import SURFACE_GAP_M, point_map, surface_labels
from grape_trainer.scoring.keypoint_proposal import ColourContour, Proposal

Clicks = Mapping[str, Sequence[float]]  # name -> u, v

BESIDE_PX = 3  # a click may miss its mask by this, at 224 px
GROW_COLOUR = 28.0  # 8-bit CIELAB, from the colour under the click
GROW_RADIUS_M = 0.12


def load_clicks(path: Path | str) -> dict[str, tuple[float, float]]:
    """Read a click file.

    Raises:
        KeypointError: no such file, no JSON, or something else than name -> [u, v].

    """
    path = Path(path)
    if not path.is_file():
        raise KeypointError(f"There is no click file '{path}'.")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise KeypointError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise KeypointError(
            f"'{path}' holds {content!r:.60}; expected an object of name -> [u, v]."
        )
    for name, click in content.items():
        is_pair = isinstance(click, list) and len(click) == 2
        if not is_pair or not all(isinstance(x, int | float) and np.isfinite(x) for x in click):
            raise KeypointError(
                f"'{path}': '{name}' is {click!r:.60}; expected [u, v] in pixels of the first "
                'picture.'
            )
    return {name: (float(u), float(v)) for name, (u, v) in content.items()}


def clicks_of_numbers(
    proposals: Sequence[Proposal], numbers: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Turn the answer to a numbered picture, name -> number from 1, into clicks.

    Raises:
        KeypointError: a number that is not in the picture.

    """
    wrong = {name: n for name, n in numbers.items() if not 1 <= n <= len(proposals)}
    if wrong:
        raise KeypointError(
            f'{wrong} are not in the picture; it has the numbers 1 .. {len(proposals)}.'
        )
    centres = {name: proposals[n - 1].centre for name, n in numbers.items()}
    return {name: (float(u), float(v)) for name, (u, v) in centres.items()}


def masks_of_clicks(
    clicks: Clicks,
    proposals: Sequence[Proposal],
    image: np.ndarray,
    depth_m: np.ndarray,
    camera: CameraGeometry,
) -> dict[str, np.ndarray]:
    """Return name -> mask (H, W) bool, what each click means.

    Args:
        clicks: name -> u, v in the first picture.
        proposals: of the first picture; may be none.
        image: (H, W, 3) uint8 RGB, the first picture.
        depth_m: (H, W) float32.
        camera: of the picture.

    Raises:
        KeypointError: a click outside of the picture, or where there is no depth.

    """
    height, width = image.shape[:2]
    for name, (u, v) in clicks.items():
        if not (0 <= u <= width - 1 and 0 <= v <= height - 1):
            raise KeypointError(
                f"the click on '{name}' is at [{u}, {v}]; the picture has {width} x {height} "
                'pixels. Clicks are on the whole picture, turned as the contract says.'
            )
    masks = _unshared(clicks, proposals, width)
    unclear = {name: click for name, click in clicks.items() if name not in masks}
    if unclear:
        masks |= _unshared(unclear, ColourContour().propose(image, depth_m, camera), width)
    return {
        name: masks[name] if name in masks else _grown(name, click, image, depth_m, camera)
        for name, click in clicks.items()
    }


def _unshared(clicks: Clicks, proposals: Sequence[Proposal], width: int) -> dict[str, np.ndarray]:
    """Return name -> mask of the clicks that have a proposal for themselves."""
    chosen = {name: _under(click, proposals, width) for name, click in clicks.items()}
    numbers = list(chosen.values())
    return {
        name: proposals[number].mask
        for name, number in chosen.items()
        if number is not None and numbers.count(number) == 1
    }


def _under(click: Sequence[float], proposals: Sequence[Proposal], width: int) -> int | None:
    """Return the number of the smallest proposal under, else closest beside, a click."""
    reach = BESIDE_PX * width / 224
    best, best_key = None, (reach, np.inf)
    for number, proposal in enumerate(proposals):
        rows, columns = np.nonzero(proposal.mask)
        away = float(np.hypot(columns - click[0], rows - click[1]).min())
        key = (0.0 if away <= 0.75 else away, len(rows))
        if key < best_key:
            best, best_key = number, key
    return best


def _grown(
    name: str,
    click: Sequence[float],
    image: np.ndarray,
    depth_m: np.ndarray,
    camera: CameraGeometry,
) -> np.ndarray:
    """Return the connected surface around a click that has its colour."""
    import cv2

    u, v = round(click[0]), round(click[1])
    points_m = point_map(camera, depth_m)
    if not np.isfinite(points_m[v, u, 2]):
        raise KeypointError(
            f"there is no depth under the click on '{name}' at [{u}, {v}]; click beside it, on "
            'the same thing.'
        )
    lab = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = cv2.GaussianBlur(lab, (5, 5), 0)
    near = np.linalg.norm(points_m - points_m[v, u], axis=-1) < GROW_RADIUS_M
    mask = near & (np.linalg.norm(lab - lab[v, u], axis=-1) < GROW_COLOUR)
    mask[v, u] = True
    labels = surface_labels(points_m, mask, SURFACE_GAP_M)
    return labels == labels[v, u]
