"""The page beside the robot: the camera with the ghost, the trial's prompt, and the buttons."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from nicegui import events, run, ui

from grape_bringup.label_page.labelling import BLUR, TYPED_IN

if TYPE_CHECKING:
    from grape_bringup.label_page.live_robot import LiveRobot

REFRESH_S = 0.2
SILENT_S = 1.0
NOTICE_MS = 2500
GUARD_MODES = ('disarmed', 'armed', 'intervened', 'paused', 'stopped', 'fault')
GUARD_COLOURS = ('grey', 'positive', 'info', 'warning', 'negative', 'negative')
TRIAL_STATES = ('idle', 'put the scene back', 'running', 'paused', 'label it')
VERDICTS = {'success': 'positive', 'failure': 'orange-9', 'discard': 'grey-7'}  # STOP is red
KEYS = {'Enter': 'trial/ready', 'p': 'trial/pause', 'r': 'trial/resume'}
VERDICT_KEYS = {'s': 'success', 'f': 'failure', 'd': 'discard'}


class LivePage:
    """One browser's view of the running trial."""

    def __init__(self, robot: LiveRobot, labeller: str) -> None:
        self._robot = robot
        self._labeller = labeller

    def build(self) -> None:
        """Put the page together."""
        ui.add_head_html(BLUR)
        ui.keyboard(on_key=self._on_key, repeating=False, ignore=TYPED_IN)
        ui.keyboard(on_key=self._on_escape, repeating=False, ignore=[])  # wherever the focus is
        with ui.header().classes('items-center q-py-xs'):
            ui.label('GRAPE trial').classes('text-h6')
            self._guard = ui.badge('no guard').props('id=guard')
            self._reason = ui.label().props('id=reason')
            ui.space()
            self._name = ui.input('operator', value=self._labeller)
            self._name.props('dense dark').classes('w-40')
            ui.link('label recordings', '/').classes('text-white')
        with ui.row().classes('w-full no-wrap items-start'):
            with ui.column().classes('gap-1'):
                ui.html(
                    '<img id="camera" src="/live/camera" alt="no camera" '
                    'style="width: 640px; max-width: 100%; min-height: 240px; background: #222">',
                    sanitize=False,
                )
                self._numbers = ui.label().classes('text-caption').props('id=numbers')
            with ui.column().classes('gap-2').style('width: 26rem'):
                self._state = ui.label().classes('text-h5').props('id=state')
                self._prompt = ui.label().props('id=prompt')
                self._build_buttons()
        ui.timer(REFRESH_S, self._tell)

    def _build_buttons(self) -> None:
        ui.button('STOP (esc)', on_click=partial(self._press, 'guard/stop')).props(
            'color=negative size=xl id=stop'
        ).classes('w-full')
        with ui.row():
            for name in ('next', 'ready', 'pause', 'resume', 'abort'):
                self._button(name, partial(self._press, f'trial/{name}'), f'id=trial-{name}')
        with ui.row():
            for outcome, colour in VERDICTS.items():
                self._button(
                    f'{outcome} ({outcome[0]})',
                    partial(self._judge, outcome),
                    f'color={colour} id=trial-{outcome}',
                )
        self._note = ui.input('note').classes('w-full').props('for=live-note')
        with ui.row():
            self._button('arm', partial(self._arm, True), 'outline id=arm')
            self._button('disarm', partial(self._arm, False), 'outline id=disarm')
            for name in ('recover', 'reset'):
                self._button(name, partial(self._press, f'guard/{name}'), f'outline id={name}')
        self._answer = ui.label().classes('text-caption').props('id=answer')

    @staticmethod
    def _button(text: str, press: Callable, props: str) -> None:
        ui.button(text, on_click=press).props(props)

    def _tell(self) -> None:
        robot, trial = self._robot, self._robot.trial
        guard = robot.guard
        if guard is None or robot.guard_age_s() > SILENT_S:
            self._guard.text, self._reason.text = 'the guard is silent', ''
            self._guard.props('color=negative')
        else:
            self._guard.text = f'guard {GUARD_MODES[guard.mode]}'
            self._guard.props(f'color={GUARD_COLOURS[guard.mode]}')
            self._reason.text = guard.reason
        if trial is None:
            self._state.text = 'no trial node'
            return
        self._state.text = TRIAL_STATES[trial.state]
        self._prompt.text = trial.prompt
        parts = [f'{trial.episode_id} {trial.step} / {trial.max_steps} steps']
        if not math.isnan(trial.pose_distance_m):
            parts.append(f'arm {trial.pose_distance_m * 1000:.0f} mm from where it began')
        if guard is not None:
            parts.append(f'travel {guard.travel_m:.2f} m, follows {guard.source or "nobody"}')
        self._numbers.text = ' · '.join(parts)

    async def _on_key(self, event: events.KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.alt:
            return
        key = event.key.name
        if key in KEYS:
            await self._press(KEYS[key])
        elif key in VERDICT_KEYS:
            await self._judge(VERDICT_KEYS[key])

    async def _on_escape(self, event: events.KeyEventArguments) -> None:
        if event.action.keydown and event.key.name == 'Escape':
            await self._press('guard/stop')

    async def _press(self, service: str) -> None:
        self._say(*await run.io_bound(self._robot.press, service))

    async def _arm(self, on: bool) -> None:
        self._say(*await run.io_bound(self._robot.arm, on))

    async def _judge(self, outcome: str) -> None:
        note, name = self._note.value.strip(), self._name.value.strip()
        is_done, said = await run.io_bound(self._robot.label, outcome, note, name)
        if is_done:
            self._note.value = ''
        self._say(is_done, said)

    def _say(self, is_done: bool, said: str) -> None:
        self._answer.text = said or ('done' if is_done else 'it did nothing and said nothing')
        kind = 'positive' if is_done else 'negative'
        ui.notify(self._answer.text, type=kind, position='bottom-right', timeout=NOTICE_MS)
