"""`grape score` and `grape pair`: from bags to pairs, without ROS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from grape_bringup.cli_console import ProgressBar, UsageError, console


def score(
    bags: Annotated[list[Path], typer.Argument(help='Bags, or folders of bags.')],
    objective: Annotated[
        str,
        typer.Option(
            help='completion, safety, efficiency, or a YAML file; with --costs or --stages: '
            'generated.',
            show_default=False,
        ),
    ] = '',
    out: Annotated[Path, typer.Option(help='The score table (CSV).')] = Path('scores.csv'),
    jobs: Annotated[int, typer.Option(min=0, help='Processes; 0: one a core.')] = 0,
    costs: Annotated[
        Path | None, typer.Option(help='Cost program (.py, .yaml, .json), approved.')
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help='Proposed stages (JSON); with their costs, unless --costs.')
    ] = None,
    approved_sha: Annotated[
        str, typer.Option('--approved-sha', help='The approved text whose sha256 begins so.')
    ] = '',
    allow_unapproved: Annotated[
        bool, typer.Option('--allow-unapproved', help='Costs that nobody approved; rows say so.')
    ] = False,
    keypoints: Annotated[
        str, typer.Option(help='scene (SceneState), clicks or perceived: from cameras.')
    ] = '',
    clicks: Annotated[
        Path | None, typer.Option(help='name -> [u, v]: a file, or a folder of TASK-iNN.json.')
    ] = None,
    numbers: Annotated[
        Path | None, typer.Option(help='name -> number of the numbered picture, the same.')
    ] = None,
    proposer: Annotated[
        str, typer.Option(help='Of perceived keypoints: height, colour or segment_anything.')
    ] = 'height',
    weights: Annotated[Path | None, typer.Option(help='Of segment_anything.')] = None,
) -> None:
    """Score trials: stage costs, R_ext, R_self, success, R_GCPG."""
    from grape_episode.bag import find_bags
    from grape_trainer.scoring.objective import load_scored_objective
    from grape_trainer.scoring.scorer import score_bags

    settings = load_scored_objective(objective, costs, stages, approved_sha, allow_unapproved)
    if keypoints:
        settings = settings.with_keypoints(
            source=keypoints, clicks=clicks, numbers=numbers, proposer=proposer, weights=weights
        )
    elif clicks or numbers:
        raise UsageError('--clicks goes with --keypoints clicks, --numbers with perceived.')
    with ProgressBar('score') as bar:
        report = score_bags(
            find_bags(bags),
            settings,
            out,
            lambda done, total, row: bar.update(done, total, row.status),
            jobs or len(os.sched_getaffinity(0)),
        )
    for row in report.rows:
        if row.r_gcpg is None:
            console.print(f'{row.bag.name}: {row.status} {row.detail}'.rstrip(), soft_wrap=True)
    for warning in report.spread.warnings:
        console.print(f'note: {warning}', soft_wrap=True)
    scored = sum(row.r_gcpg is not None for row in report.rows)
    console.print(f'{out}: {scored} of {len(report.rows)} trials have a reward')
    raise typer.Exit(report.exit_code)


def pair(
    scores: Annotated[Path, typer.Option(help='A table of grape score.')],
    out: Annotated[Path, typer.Option(help='The pairs (JSON).')],
    m: Annotated[int, typer.Option(min=1, help='Top m against bottom m of each group.')] = 2,
    min_margin: Annotated[float, typer.Option(help='Smallest difference of R_GCPG.')] = 0.0,
    require_outcome_gap: Annotated[
        bool, typer.Option('--require-outcome-gap', help='Only a success over a failure.')
    ] = False,
    allow_mixed_policies: Annotated[
        bool, typer.Option('--allow-mixed-policies', help='Trials of several policies.')
    ] = False,
    nearest: Annotated[
        float | None,
        typer.Option(help='Pair trials of any initial states that began at most METRES apart.'),
    ] = None,
    random: Annotated[
        bool, typer.Option('--random', help='Draw the order instead of ranking (an ablation).')
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help='Of --random.')] = 0,
) -> None:
    """Pair the best with the worst trials of each task and initial state.

    --nearest: each trial with the m that began nearest to it, of those that score less.
    """
    from grape_trainer.scoring.preference import PairSettings, pair_scores
    from grape_trainer.scoring.preference_nearest import pair_nearest

    settings = PairSettings(
        m,
        min_margin,
        require_outcome_gap,
        allow_mixed_policies,
        'random' if random else 'gcpg',
        seed,
        nearest,
    )
    made = (pair_scores if nearest is None else pair_nearest)(scores, settings, out)
    for group in made.skipped:
        console.print(
            f'no pair: {group.task} state {group.init_state}, {group.trials} trials: '
            f'{group.reason}',
            soft_wrap=True,
        )
    console.print(f'{out}: {len(made.pairs)} pairs')


def require_new(out: Path, resume: bool, what: str) -> None:
    """Refuse --no-resume on an output that is there.

    Raises:
        UsageError: it is.

    """
    if not resume and out.exists():
        raise UsageError(
            f"'{out}' is there already: {what}. Delete it, choose another, or leave --no-resume "
            'out to go on with it.'
        )
