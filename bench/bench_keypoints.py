"""How far perceived keypoints are from the simulator's truth, on episodes of the expert.

    .venv/bin/python bench/bench_keypoints.py [--tasks libero_object/0 ...] [--init-states 30 31]
        [--proposer height|colour] [--depth-noise 0.0] [--rendering fast|stock] [--json out.json]
        [--overlays DIR]

The tracker was tuned on libero_object/0 (initial states 0, 1), /3 (0), /8 (0, 1), libero_spatial/0
(0, 1), /2, /5, /9 (0), /4 (0, 1) and libero_goal/2, /8 (0): report on others. A click stands for a
person; see keypoint_episodes.TruthEpisode.clicks.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from keypoint_episodes import TruthEpisode, episodes
from rich.console import Console
from rich.table import Table

from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_clicks import masks_of_clicks
from grape_trainer.scoring.keypoint_proposal import draw_numbered
from grape_trainer.scoring.keypoint_source import make_proposer
from grape_trainer.scoring.keypoint_tracking import track_objects

TASKS = ['libero_object/0', 'libero_object/3', 'libero_spatial/0', 'libero_spatial/2']
INIT_STATES = [30, 31, 32]
CHI2_95 = 7.815  # of 3 degrees of freedom
GOAL_M = 0.02
MOVED_M = 0.02


@dataclass(frozen=True)
class ObjectErrors:
    """One object of one episode."""

    task: str
    init_state: int
    name: str
    is_target: bool
    is_fixture: bool
    success: bool
    mask_iou: float
    error_m: list[float]  # every picture
    visible: list[bool]  # in truth
    moved: list[bool]  # in truth, farther than MOVED_M from where it was first
    claimed: list[bool]
    within: list[bool]  # the error is within the 95 % of the covariance
    ms_per_frame: float  # of the whole scene


def main() -> None:
    """Play, track, compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--tasks', nargs='+', default=TASKS)
    parser.add_argument('--init-states', nargs='+', type=int, default=INIT_STATES)
    parser.add_argument('--proposer', choices=('height', 'colour'), default='height')
    parser.add_argument('--pixels', type=int, default=224)
    parser.add_argument('--rendering', choices=('fast', 'stock'), default='fast')
    parser.add_argument('--depth-noise', type=float, default=0.0, help='sigma / z^2, 1/m')
    parser.add_argument('--rise', type=float, help='HeightContour.rise_m')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--overlays', type=Path)
    options = parser.parse_args()
    rows: list[ObjectErrors] = []
    for task in options.tasks:
        for episode in episodes(task, options.init_states, options.pixels, options.rendering):
            rows += compare(episode, options)
    console = Console(width=130)
    console.print(per_object(rows))
    console.print(summary(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


def compare(episode: TruthEpisode, options: argparse.Namespace) -> list[ObjectErrors]:
    """Track every object that a person could click on."""
    proposer = make_proposer(options.proposer)
    if options.rise and options.proposer == 'height':
        proposer = type(proposer)(rise_m=options.rise)
    depths_m = episode.depths_m
    if options.depth_noise:
        generator = np.random.default_rng(episode.init_state)
        noise = generator.standard_normal(depths_m.shape, dtype=np.float32)
        depths_m = depths_m + options.depth_noise * depths_m**2 * noise
    first = (episode.images[0], depths_m[0], episode.camera)
    began = time.perf_counter()
    proposals = proposer.propose(*first)
    masks = masks_of_clicks(episode.clicks(), proposals, *first)
    try:
        track = track_objects(episode.images, depths_m, episode.camera, masks)
    except KeypointError as error:
        raise SystemExit(f'{episode.task}, state {episode.init_state}: {error}') from error
    took_ms = 1e3 * (time.perf_counter() - began) / len(episode.images)
    if options.overlays:
        write_overlays(options.overlays, episode, proposals, track)
    rows = []
    for k, name in enumerate(track.names):
        index = episode.names.index(name)
        off = track.positions_m[:, k] - episode.positions_m[:, index]
        distance = np.einsum('ti,tij,tj->t', off, np.linalg.inv(track.covariance_m2[:, k]), off)
        truth_m = episode.positions_m[:, index]
        travelled = np.linalg.norm(truth_m - truth_m[0], axis=1)
        owned = episode.first_owner == index
        rows.append(
            ObjectErrors(
                task=episode.task,
                init_state=episode.init_state,
                name=name,
                is_target=name == episode.target,
                is_fixture=name in episode.fixtures,
                success=episode.success,
                mask_iou=float((masks[name] & owned).sum() / (masks[name] | owned).sum()),
                error_m=np.linalg.norm(off, axis=1).tolist(),
                visible=episode.visible()[:, index].tolist(),
                moved=(travelled > MOVED_M).tolist(),
                claimed=track.visible[:, k].tolist(),
                within=(distance < CHI2_95).tolist(),
                ms_per_frame=took_ms,
            )
        )
    return rows


def per_object(rows: list[ObjectErrors]) -> Table:
    """One line an object and task, over the task's initial states."""
    table = Table(
        'task', 'object', 'n', 'median m', 'p90 m', 'in sight', 'claimed', 'falsely', 'mask IoU',
        'ms a frame',
    )  # fmt: skip
    for task, name in dict.fromkeys((row.task, row.name) for row in rows):
        own = [row for row in rows if (row.task, row.name) == (task, name)]
        error, visible, claimed = (stacked(own, key) for key in ('error_m', 'visible', 'claimed'))
        kind = ' (target)' if own[0].is_target else ' (fixture)' if own[0].is_fixture else ''
        table.add_row(
            task, name + kind, str(int(visible.sum())), *quantiles(error[visible]),
            f'{visible.mean():.2f}', f'{claimed.mean():.2f}', str(int((claimed & ~visible).sum())),
            f'{min(row.mask_iou for row in own):.2f}',
            f'{np.mean([row.ms_per_frame for row in own]):.1f}',
        )  # fmt: skip
    return table


def summary(rows: list[ObjectErrors]) -> Table:
    """The errors of all pictures in which an object is in sight, for several kinds of object."""
    table = Table(
        'what', 'objects', 'pictures n', 'median m', 'p90 m', f'within {GOAL_M} m',
        'within 95 % of covariance',
    )  # fmt: skip
    movable = [row for row in rows if not row.is_fixture]
    kinds = {
        'all, in sight': (rows, ('visible',)),
        'all, claimed visible': (rows, ('claimed',)),
        'movable, in sight': (movable, ('visible',)),
        'movable, in sight, after it was moved': (movable, ('visible', 'moved')),
        'targets, in sight': ([row for row in rows if row.is_target], ('visible',)),
        'fixtures, in sight': ([row for row in rows if row.is_fixture], ('visible',)),
    }
    for what, (own, keys) in kinds.items():
        if not own:
            continue
        flags = np.all([stacked(own, key) for key in keys], axis=0)
        error, within = stacked(own, 'error_m')[flags], stacked(own, 'within')[flags]
        count = sum(any(row.moved) for row in own) if 'moved' in keys else len(own)
        table.add_row(
            what, str(count), str(len(error)), *quantiles(error),
            f'{(error < GOAL_M).mean():.3f}', f'{within.mean():.3f}',
        )  # fmt: skip
    hidden = stacked(rows, 'visible') & ~stacked(rows, 'claimed')
    played = {(row.task, row.init_state): row.success for row in rows}
    table.caption = (
        f'{len(played)} episodes, {sum(played.values())} successes; in sight but not claimed: '
        f'{int(hidden.sum())} pictures'
    )
    return table


def stacked(rows: list[ObjectErrors], key: str) -> np.ndarray:
    """Return one field of all pictures of some objects."""
    return np.concatenate([np.array(getattr(row, key)) for row in rows])


def quantiles(error: np.ndarray) -> tuple[str, str]:
    """Return median and 90th percentile as text."""
    if not len(error):
        return '-', '-'
    return f'{np.median(error):.4f}', f'{np.percentile(error, 90):.4f}'


def write_overlays(folder: Path, episode: TruthEpisode, proposals: tuple, track: object) -> None:
    """Write the proposals and, of a few pictures, where the keypoints are believed to be."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    stem = f'{episode.task.replace("/", "_")}_{episode.init_state}'
    centres = np.array([proposal.centre for proposal in proposals])
    Image.fromarray(draw_numbered(episode.images[0], centres)).save(folder / f'{stem}_first.png')
    strip = []
    for step in np.linspace(0, len(episode.images) - 1, 6).astype(int):
        pixels, _ = episode.camera.project(track.positions_m[step])
        limit = (episode.camera.width - 1, episode.camera.height - 1)
        strip.append(draw_numbered(episode.images[step], np.clip(pixels, 0, limit)))
    rows = [np.concatenate(strip[i : i + 3], axis=1) for i in (0, 3)]
    Image.fromarray(np.concatenate(rows)).save(folder / f'{stem}_track.png')


if __name__ == '__main__':
    main()
