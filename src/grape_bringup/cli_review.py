"""`grape costs review`: a cost program on recorded trials, for a person to approve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from grape_bringup.cli_console import ProgressBar, UsageError, console


def review(
    file: Annotated[Path, typer.Argument(help='Cost program, or a proposal with costs.')],
    bags: Annotated[list[Path], typer.Argument(help='Labelled trials, or folders of them.')],
    objective: Annotated[
        str, typer.Option(help='Whose template and thresholds cut the stages.')
    ] = 'completion',
    stages: Annotated[
        Path | None, typer.Option(help='A proposal whose stages FILE is for (JSON).')
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help='PNG of the curves; default: beside the file.')
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help='HTML page with frames; default: beside the file.')
    ] = None,
    frames: Annotated[
        int, typer.Option('--trials', min=0, help='Trials that the page shows in pictures.')
    ] = 3,
    approve: Annotated[
        bool, typer.Option('--approve', help='Record the approval without asking.')
    ] = False,
    note: Annotated[str, typer.Option(help='Kept with the approval.')] = '',
) -> None:
    """Show what each cost says about recorded successes and failures; ask for approval."""
    from grape_episode.bag import find_bags, read_episode
    from grape_episode.label import effective_outcome
    from grape_episode.outcome import Outcome
    from grape_trainer.cost_page import write_page
    from grape_trainer.scoring import cost_review
    from grape_trainer.scoring.cost_approval import approve as record
    from grape_trainer.scoring.cost_file import load_costs
    from grape_trainer.scoring.cost_plots import plot_review
    from grape_trainer.scoring.cost_sandbox import CostSandbox
    from grape_trainer.scoring.keypoint import KeypointError, SceneSource
    from grape_trainer.scoring.objective import load_objective
    from grape_trainer.scoring.score_setup import function_settings
    from grape_trainer.scoring.stage import StageError

    settings, source = load_objective(objective), SceneSource()
    trials, left_out = [], []
    with CostSandbox() as sandbox, ProgressBar('review') as bar:
        costs = load_costs(file, sandbox, stages)
        program = costs.program
        folders = find_bags(bags)
        for done, bag in enumerate(folders, start=1):
            outcome = Outcome(effective_outcome(bag))
            if outcome in (Outcome.SUCCESS, Outcome.FAILURE):
                episode = read_episode(bag, images=False)
                try:
                    track = source.track(episode)
                    success = outcome is Outcome.SUCCESS
                    trials.append(
                        cost_review.trial_costs(
                            episode, success, track, settings, program, sandbox, costs.proposal
                        )
                    )
                except (StageError, KeypointError) as error:
                    left_out.append(f'{bag.name}: {error}')
                    console.print(f'{bag.name}: left out: {error}', soft_wrap=True, markup=False)
            bar.update(done, len(folders), str(outcome))
    if not trials:
        raise UsageError('No success or failure to look at: label trials, or collect some.')
    found = cost_review.review(program, trials)
    plot = plot or file.with_name(f'{file.name}.review.png')
    plot_review(found, trials, plot)
    page = page or file.with_name(f'{file.name}.review.html')
    terms = {}
    if settings.program is not None:
        terms = {each.name: function_settings(settings, each) for each in program.functions}
    write_page(page, file.name, program, found, trials, source, frames, left_out, terms)
    console.print(_table(found))
    good = sum(trial.success for trial in trials)
    console.print(
        f'{len(trials)} trials, {good} successes. Look at {page}; the curves alone: {plot}',
        soft_wrap=True,
        markup=False,
    )
    if approve or _asks(found):
        given = record(file, program, found, len(trials), note, costs.stages_sha256)
        console.print(f'approved by {given.by}: sha256 {given.sha256[:12]}', soft_wrap=True)
    else:
        console.print('not approved')
        raise typer.Exit(1)


def _asks(found: tuple) -> bool:
    flags = sum(bool(each.flags) for each in found)
    warning = f'{flags} costs are flagged. ' if flags else ''
    try:
        return typer.confirm(f'{warning}Approve this program?', default=False)
    except typer.Abort:  # nobody at the keyboard
        return False


def _table(found: tuple) -> Table:
    table = Table(box=None, header_style='bold')
    for name in ('cost', 'stage', 'trials', 'AUC', 'falls', 'range', 'flags'):
        table.add_column(name, overflow='fold')
    for each in found:
        spread = '-' if each.trials == 0 else f'{each.lowest:.3g} .. {each.highest:.3g}'
        table.add_row(
            each.function.name,
            str(each.function.stage),
            f'{each.trials} ({each.successes} successes)',
            '-' if each.auc is None else f'{each.auc:.2f}',
            '-' if each.monotonicity is None else f'{-each.monotonicity:+.2f}',
            spread,
            ', '.join(each.flags),
        )
    return table
