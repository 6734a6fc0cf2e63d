"""`grape stages propose` and `grape stages show`: which stages a task has, and where they are."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from grape_bringup.cli_console import UsageError, console

if TYPE_CHECKING:
    from grape_trainer.scoring.stage import Segmentation
    from grape_trainer.scoring.vlm import VlmClient

Bag = Annotated[Path, typer.Argument(help='Bag folder.')]
Template = Annotated[
    str | None,
    typer.Option(help="Such as pick_place or 'turn_on+pick_place'; else by the goal."),
]


def propose(
    bag: Bag,
    out: Annotated[Path, typer.Option(help='Where the proposal goes (JSON).')],
    template: Template = None,
    vlm: Annotated[
        bool, typer.Option('--vlm', help='Ask a vision-language model: sends the picture to it.')
    ] = False,
    vlm_config: Annotated[
        Path | None, typer.Option('--vlm-config', help='YAML of the model; as --vlm.')
    ] = None,
    model: Annotated[str | None, typer.Option(help='Its name; as --vlm.')] = None,
    base_url: Annotated[
        str | None, typer.Option('--base-url', help='Its server, http(s)://.../v1; as --vlm.')
    ] = None,
    cache: Annotated[Path, typer.Option(help='Where its answers are kept and looked up.')] = Path(
        'runs/vlm'
    ),
    offline: Annotated[
        bool, typer.Option('--offline', help='Only answers that are kept; as --vlm.')
    ] = False,
    refresh: Annotated[
        bool, typer.Option('--refresh', help='Ask even where the answer is kept; as --vlm.')
    ] = False,
) -> None:
    """Propose the stages of a trial's task: the built-in template, or a model's."""
    from grape_trainer.scoring.stage_proposing import program_check, propose_stages

    asked = vlm or offline or refresh or any((vlm_config, model, base_url))
    if asked and template:
        raise UsageError('--template is a built-in one; leave it out to ask a model.')
    with ExitStack() as stack:
        client, check = None, None
        if asked:
            from grape_trainer.scoring.cost_sandbox import CostSandbox

            client = _client(vlm_config, model, base_url, cache, offline, refresh)
            check = program_check(stack.enter_context(CostSandbox()))
        proposal = propose_stages(bag, out, client, template=template, check=check)
    for stage in proposal.stages:
        where = ' -> '.join(stage.keypoints[:2])
        costs = f', {len(stage.constraints)} costs' if stage.constraints else ''
        text = f'{stage.number} {stage.name}: {stage.description} ({where}){costs}'
        console.print(text, markup=False, soft_wrap=True)
    origin = proposal.origin
    paid = '' if origin.cost_usd is None else f', {origin.cost_usd:.4f} USD'
    console.print(
        f'{out}: {len(proposal.stages)} stages of {origin.kind} {origin.model or origin.template}'
        f'{paid}',
        markup=False,
        soft_wrap=True,
    )


def show(
    bag: Bag,
    template: Template = None,
    proposal: Annotated[
        Path | None, typer.Option(help='Stages of grape stages propose, instead of a template.')
    ] = None,
    objective: Annotated[
        str, typer.Option(help='Whose thresholds: a name in config/objective/, or a YAML file.')
    ] = 'open_close',
) -> None:
    """Say where the stages of a trial begin and end."""
    from grape_episode.bag import read_episode
    from grape_trainer.scoring.keypoint import SceneSource
    from grape_trainer.scoring.objective import load_objective
    from grape_trainer.scoring.stage import control_rate_hz, segment_plan
    from grape_trainer.scoring.stage_proposal import choose_plan, read_proposal

    if template and proposal:
        raise UsageError('--template and --proposal both say the stages; give one of them.')
    settings = load_objective(objective)
    episode = read_episode(bag, images=False)
    track = SceneSource().track(episode)
    proposed = None if proposal is None else read_proposal(proposal)
    plan = choose_plan(proposed, episode.info, track.names, template)
    cut = segment_plan(episode, track, plan, settings.segmentation, settings.motion)
    console.print(
        f'{episode.info.episode_id}: {episode.info.instruction} ({episode.info.outcome}), '
        f'{plan.template} by {plan.reason}',
        markup=False,
        soft_wrap=True,
    )
    console.print(_table(cut, control_rate_hz(episode)))
    console.print(f'{cut.grasps} grasps, {cut.drops} drops')


def _client(
    vlm_config: Path | None,
    model: str | None,
    base_url: str | None,
    cache: Path,
    offline: bool,
    refresh: bool,
) -> VlmClient:
    from grape_trainer.scoring.vlm import VlmClient
    from grape_trainer.scoring.vlm_cache import AnswerCache
    from grape_trainer.scoring.vlm_config import load_vlm_config

    config = load_vlm_config(vlm_config, model=model, base_url=base_url)
    return VlmClient(config, AnswerCache(cache), offline=offline, refresh=refresh)


def _table(cut: Segmentation, rate_hz: float) -> Table:
    table = Table(box=None, header_style='bold')
    for name in ('stage', 'states', 'seconds', 'ends', 'target', 'receptacle', 'completed'):
        table.add_column(name, overflow='fold')
    for span in cut.spans:
        states = seconds = '-'
        if span.reached:
            states = f'{span.start}..{span.stop}'
            seconds = f'{span.start / rate_hz:.2f}..{span.stop / rate_hz:.2f}'
        table.add_row(
            span.stage.name,
            states,
            seconds,
            span.stage.ends,
            span.roles.target,
            span.roles.receptacle,
            'yes' if span.completed else 'no' if span.reached else 'never reached',
        )
    return table
