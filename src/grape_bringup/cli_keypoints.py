"""`grape keypoints show`: what is seen in a trial's first picture, numbered, to be named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grape_bringup.cli_console import console


def show(
    bag: Annotated[Path, typer.Argument(help='Bag folder, recorded with depth.')],
    out: Annotated[Path, typer.Option(help='The numbered picture (PNG).')],
    proposer: Annotated[str, typer.Option(help='height, colour or segment_anything.')] = 'height',
    weights: Annotated[Path | None, typer.Option(help='Of segment_anything.')] = None,
) -> None:
    """Write the first picture with a number on each thing that a proposer finds in it."""
    import numpy as np
    from PIL import Image

    from grape_episode.bag import read_info
    from grape_episode.rgbd import read_rgbd
    from grape_trainer.scoring.keypoint_names import names_key
    from grape_trainer.scoring.keypoint_proposal import draw_numbered
    from grape_trainer.scoring.keypoint_source import make_proposer

    seen, info = read_rgbd(bag), read_info(bag)
    found = make_proposer(proposer, weights).propose(seen.images[0], seen.depths_m[0], seen.camera)
    centres = np.array([proposal.centre for proposal in found]).reshape(-1, 2)
    Image.fromarray(draw_numbered(seen.images[0], centres)).save(out, format='PNG')
    for number, (u, v) in enumerate(centres.tolist(), start=1):
        console.print(f'{number}: [{u}, {v}]', markup=False)
    key = names_key(info.task, info.init_state)
    console.print(
        f'{out}: say which is which in a file {key}.json: name -> number, or name -> [u, v] in '
        f'pixels of the {seen.images.shape[2]} x {seen.images.shape[1]} picture',
        soft_wrap=True,
        markup=False,
    )
