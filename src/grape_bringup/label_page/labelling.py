"""The page on which a person labels a queue of recorded episodes with the keyboard.

Every key press is written at once, so a page that is closed loses nothing. A verdict counts only
for an episode whose pictures were shown, and a held key is one press.
"""

from __future__ import annotations

import html

from nicegui import events, run, ui

from grape_bringup.label_page.queue import ConflictError, LabelQueue
from grape_bringup.label_page.scores import ScoreBook, stage_curves
from grape_episode.label import UNDO, Label

VERDICT_KEYS = {'s': 'success', 'f': 'failure', 'd': 'discard'}
COLOURS = {'success': 'positive', 'failure': 'negative', 'discard': 'grey-7'}
SIGNS = {'success': '✓', 'failure': '✗', 'discard': '–'}
PREFETCHED = 2
LISTED = 40  # episodes of the queue that are shown at once
REFRESH_S = 5.0
TYPED_IN = ['input', 'select', 'textarea']  # keys there are text
# A button that was clicked would take the next key press for itself.
BLUR = (
    "<script>document.addEventListener('click', (event) => "
    "event.target.closest('button')?.blur())</script>"
)
HELP = (
    's success · f failure · d discard · u undo · n note · space play · ←/→ picture (shift: 10) · '
    '↑/↓ speed · page down/up other episode'
)


class LabelPage:
    """One browser's view of the queue."""

    def __init__(self, queue: LabelQueue, scores: ScoreBook, labeller: str, live: bool) -> None:
        self._queue = queue
        self._scores = scores
        self._labeller = labeller
        self._live = live
        self._number: int | None = None  # of the episode on show
        self._seen: Label | None = None  # the verdict that its person saw to hold
        self._is_shown = False  # its pictures
        self._verdicts: list[ui.button] = []  # enabled while they are
        self._given: list[tuple[int, Label]] = []  # by this page, newest last
        self._camera = ''
        self._told = 0  # episodes that this page has listed

    def build(self) -> None:
        """Put the page together and show the first episode that waits."""
        ui.add_head_html(f'{BLUR}<script src="/label/player.js"></script>')
        ui.keyboard(on_key=self._on_key, repeating=False, ignore=TYPED_IN)
        ui.on('film_shown', self._on_film_shown)
        with ui.header().classes('items-center q-py-xs'):
            ui.label('GRAPE labelling').classes('text-h6')
            self._progress = ui.label().props('id=progress')
            ui.space()
            self._name = ui.input('who labels', value=self._labeller)
            self._name.props('dense dark for=labeller').classes('w-40')
            if self._live:
                ui.link('trial', '/live').classes('text-white')
        with ui.row().classes('w-full no-wrap items-start'):
            self._list = ui.column().classes('gap-0 q-pr-md').style('width: 20rem; flex: none')
            with ui.column().classes('gap-1').style('min-width: 0'):
                self._build_film()
            with ui.column().classes('gap-2').style('width: 24rem'):
                self._build_side()
        ui.timer(REFRESH_S, self._look_for_new)
        order = self._queue.order()
        self._show(order[0] if order else None)

    def _build_film(self) -> None:
        self._title = ui.label().classes('text-h6').props('id=title')
        self._about = ui.label().classes('text-caption').props('id=about')
        ui.html(
            '<canvas id="film" width="640" height="480" '
            'style="width: 640px; max-width: 100%; max-height: 62vh; object-fit: contain; '
            'background: #222"></canvas>'
            '<input id="film-scrub" type="range" min="0" max="0" value="0" '
            'style="width: 640px; max-width: 100%; display: block" tabindex="-1">'
            '<span id="film-time"></span> <span id="film-problem" style="color: #c00"></span>',
            sanitize=False,
        )
        with ui.row():
            for key, outcome in VERDICT_KEYS.items():
                button = ui.button(
                    f'{outcome} ({key})', on_click=lambda _, o=outcome: self._judge(o)
                )
                button.props(f'color={COLOURS[outcome]} id=button-{outcome}')
                self._verdicts.append(button)
            ui.button('undo (u)', on_click=self._undo).props('outline id=button-undo')
        ui.label(HELP).classes('text-caption')

    def _build_side(self) -> None:
        self._note = ui.input('note (n, enter)').props('for=note').classes('w-full')
        self._note.on('keydown.enter', js_handler='(event) => event.target.blur()')
        with ui.row().classes('items-center w-full no-wrap'):
            self._score = ui.number('score 0-10', min=0, max=10).props('for=score').classes('w-24')
            self._stage = ui.input('stage reached').props('for=stage').classes('grow')
        self._history = ui.column().classes('gap-0')
        ui.separator()
        self._costs = ui.column().classes('gap-0 w-full').props('id=costs')

    # What is on show

    def _show(self, number: int | None) -> None:
        self._number = number
        self._set_shown(False)
        if number is None:
            self._title.text = 'Nothing is recorded here yet'
            self._tell_progress()
            return
        entry = self._queue.entries[number]
        info = entry.info
        self._seen = self._queue.holds(number)
        self._title.text = f'{info.episode_id}: {info.instruction}'
        self._about.text = (
            f'{info.task}, initial state {info.init_state}, {info.steps} steps, recorded as '
            f'{info.outcome}. {info.detail}'
        )
        waiting = self._queue.waiting()
        nexts = [n for n in waiting if n > number][:PREFETCHED]
        urls = ', '.join(f'"{_film_url(n)}"' for n in nexts)
        ui.run_javascript(f'grapePlayer.load("{_film_url(number)}", [{urls}])')
        self._note.value, self._score.value, self._stage.value = '', None, ''
        self._tell_history()
        self._tell_costs()
        self._tell_list()
        self._tell_progress(len(waiting))

    def _tell_history(self) -> None:
        self._history.clear()
        with self._history:
            for label in self._queue.history(self._number):
                score = '' if label.score is None else f', {label.score:g}/10'
                stage = f', reached {label.stage}' if label.stage else ''
                reason = f': {label.reason}' if label.reason else ''
                text = f'{label.outcome}{reason}{score}{stage}'
                row = ui.label(f'{label.at[:19]} {label.labeller or "?"} · {text}')
                row.classes('text-caption')
                if label.outcome == UNDO:
                    row.classes('text-grey')

    def _tell_costs(self) -> None:
        entry = self._queue.entries[self._number]
        scored = self._scores.scored(entry.bag)
        self._costs.clear()
        with self._costs:
            if scored.problem:
                ui.label(scored.problem).classes('text-caption')
            most = max([*scored.costs.values(), 1e-9])
            for stage, cost in scored.costs.items():
                ui.label(f'cost of {stage}: {cost:.4g}').classes('text-caption')
                ui.linear_progress(max(cost, 0) / most, show_value=False).props('size=6px')
            if scored.numbers:
                numbers = ', '.join(f'{name} {value}' for name, value in scored.numbers.items())
                ui.label(f'{numbers} ({scored.objective})').classes('text-caption')
            if scored.costs:
                ui.button('stages over time', on_click=self._draw_curves).props('flat dense')

    async def _draw_curves(self) -> None:
        number = self._number
        bag = self._queue.entries[number].bag
        objective = self._scores.scored(bag).objective
        try:
            svg = await run.io_bound(stage_curves, bag, objective)
        except ValueError as error:
            ui.notify(str(error), type='warning')
            return
        if number == self._number:
            with self._costs:
                ui.html(svg, sanitize=False).classes('w-full')

    def _tell_list(self) -> None:
        """Show the part of the queue around the episode on show."""
        order = self._queue.order()
        place = order.index(self._number)
        first = max(0, min(place - LISTED // 2, len(order) - LISTED))
        self._list.clear()
        with self._list:
            for number in order[first : first + LISTED]:
                entry, holds = self._queue.entries[number], self._queue.holds(number)
                sign = SIGNS[holds.outcome] if holds else '·'
                row = ui.label(f'{sign} {entry.info.episode_id}').classes(
                    'text-caption cursor-pointer ellipsis w-full'
                )
                row.on('click', lambda _, n=number: self._show(n))
                if number == self._number:
                    row.classes('text-bold bg-blue-1')

    def _tell_progress(self, waiting: int | None = None) -> None:
        waiting = len(self._queue.waiting()) if waiting is None else waiting
        self._told = total = len(self._queue.entries)
        self._progress.text = f'{waiting} of {total} wait for a label'

    def _look_for_new(self) -> None:
        self._queue.refresh()
        if len(self._queue.entries) == self._told:  # another page may have found them
            return
        if self._number is None:
            self._show(self._queue.order()[0])
        else:
            self._tell_list()
            self._tell_progress()

    # What the person does

    def _on_key(self, event: events.KeyEventArguments) -> None:
        modifiers = event.modifiers
        if not event.action.keydown or modifiers.ctrl or modifiers.alt or modifiers.meta:
            return
        key = event.key.name.lower()
        if key in VERDICT_KEYS:
            self._judge(VERDICT_KEYS[key])
        elif key == 'u':
            self._undo()
        elif key == 'n':
            self._note.run_method('focus')
        elif key in ('pagedown', 'pageup'):
            self._step(1 if key == 'pagedown' else -1)

    def _on_film_shown(self, event: events.GenericEventArguments) -> None:
        if self._number is not None and event.args['url'] == _film_url(self._number):
            self._set_shown(True)

    def _set_shown(self, is_shown: bool) -> None:
        # At once, with the title: a binding would follow a tenth of a second later.
        self._is_shown = is_shown
        for button in self._verdicts:
            button.set_enabled(is_shown)

    def _judge(self, outcome: str) -> None:
        number = self._number
        if number is None:
            return
        if not self._is_shown:
            ui.notify('Wait until the pictures are there.', type='warning')
            return
        try:
            label = self._queue.label(
                number,
                outcome,
                self._name.value.strip(),
                self._seen,
                self._note.value.strip(),
                self._score.value,
                self._stage.value.strip(),
            )
        except ConflictError as error:
            self._seen = self._queue.holds(number)
            self._tell_history()
            ui.notify(str(error), type='warning')
            return
        except (ValueError, OSError) as error:
            ui.notify(f'The label was not written: {error}', type='negative', timeout=0)
            return
        self._given.append((number, label))
        name = self._queue.entries[number].info.episode_id
        ui.notify(
            f'{html.escape(name)}: {outcome}',
            color=COLOURS[outcome],
            position='bottom-right',
            timeout=1500,
        )
        following = self._queue.after(number)
        if following is None:
            self._show(number)
            ui.notify('All are labelled.', type='positive')
        else:
            self._show(following)

    def _undo(self) -> None:
        """Take back what this page said last; else what holds for the episode on show."""
        number, label = self._given.pop() if self._given else (self._number, self._seen)
        if number is None or label is None:
            ui.notify('There is nothing to take back.', type='warning')
            return
        try:
            self._queue.undo(number, self._name.value.strip(), label)
        except (ValueError, OSError) as error:
            ui.notify(str(error), type='warning')
        self._show(number)

    def _step(self, by: int) -> None:
        if self._number is None:
            return
        order = self._queue.order()
        place = order.index(self._number) + by
        if 0 <= place < len(order):
            self._show(order[place])


def _film_url(number: int) -> str:
    return f'/film/{number}'
