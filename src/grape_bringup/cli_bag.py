"""`grape bag info` and `grape bag recover`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from grape_bringup.cli_console import console

Bag = Annotated[Path, typer.Argument(help='Bag folder.')]


def info(bag: Bag) -> None:
    """Say what a bag holds, and whether it can be read to its end."""
    from grape_episode.bag import read_episode, read_info
    from grape_episode.label import read_labels

    about = read_info(bag)
    table = Table(show_header=False, box=None, title=about.episode_id, title_justify='left')
    rows = {
        'task': about.task,
        'instruction': about.instruction,
        'initial state': about.init_state,
        'controller': about.controller,
        'outcome': f'{about.outcome} {about.detail}'.strip(),
        'steps': about.steps,
        'seed, temperature': f'{about.seed}, {about.temperature:g}',
        'policy': f'{about.policy.get("policy", "")} {about.policy.get("policy_sha256", "")[:8]}',
        'adapter': about.adapter_id,
        'contract': about.contract['name'],
        'recorded': f'{about.started_at}, code {about.code_version}',
        'labels': '; '.join(f'{e.outcome} ({e.reason}, {e.labeller})' for e in read_labels(bag)),
        'lost messages': ', '.join(f'{t} {n}' for t, n in about.lost.items()) or 'none',
        'size': f'{sum(p.stat().st_size for p in bag.glob("*.mcap")) / 1e6:.1f} MB',
    }
    for name, value in rows.items():
        if str(value).strip():
            table.add_row(name, str(value))
    console.print(table)
    episode = read_episode(bag)
    pictures = ', '.join(f'{c} {len(i)} x {i.shape[1:]}' for c, i in episode.images.items())
    scene = 'none' if episode.scene is None else f'{len(episode.scene.names)} keypoints'
    console.print(
        f'readable: {len(episode.stamps_ns)} steps, pictures {pictures}, tokens '
        f'{episode.action_token_ids.shape}, scene {scene}',
        soft_wrap=True,
    )


def recover(bag: Bag) -> None:
    """Make a bag readable whose recorder was killed; the damaged file is kept beside it."""
    from grape_episode.bag import recover as recover_bag

    console.print(f'{bag}: {recover_bag(bag)} messages saved')
