"""Where a trial is, and what the operator's buttons do there: a state machine without ROS.

    IDLE -> RESETTING -> RUNNING <-> PAUSED -> TO_LABEL -> IDLE

A verdict given while the trial runs ends it; it is written once the bag is closed. A trial that
ends without one waits in TO_LABEL, and stays unlabelled when the next one is asked for. The
buttons come from any thread, the course of the trial from its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from grape_episode.label import VERDICTS


class State(IntEnum):
    """TrialState.msg's constants."""

    IDLE = 0
    RESETTING = 1
    RUNNING = 2
    PAUSED = 3
    TO_LABEL = 4


class RefusedError(RuntimeError):
    """A button that does nothing now; the text says why and what to do."""


@dataclass(frozen=True)
class Verdict:
    """What a person said of a trial."""

    outcome: str
    reason: str = ''
    labeller: str = ''


@dataclass(frozen=True)
class Trial:
    """What is played."""

    episode_id: str
    task: str
    instruction: str
    init_state: int
    max_steps: int
    controller: str


@dataclass(frozen=True)
class Snapshot:
    """All of it at one moment."""

    state: State
    prompt: str
    trial: Trial | None
    step: int
    bag: str
    verdict: Verdict | None
    is_aborted: bool
    is_ready: bool


class TrialFlow:
    """The state machine; every method is safe on any thread."""

    def __init__(self, write: Callable[[str, Verdict], None]) -> None:
        """Begin idle; `write(bag, verdict)` keeps a label and raises ValueError or OSError."""
        self._write = write
        self._lock = threading.RLock()
        self._state = State.IDLE
        self._prompt = 'No trial. Ask for one: trial/next, or the action run_episode.'
        self._trial: Trial | None = None
        self._step = 0
        self._bag = ''
        self._verdict: Verdict | None = None
        self._is_aborted = self._is_ready = False

    def snapshot(self) -> Snapshot:
        """Return what is the case now."""
        with self._lock:
            return Snapshot(
                self._state, self._prompt, self._trial, self._step, self._bag, self._verdict,
                self._is_aborted, self._is_ready,
            )  # fmt: skip

    # The operator's buttons: each returns what to tell the person.

    def ready(self, problems: Sequence[str]) -> str:
        """Begin the trial: the scene is put back. `problems` are why it can't begin now."""
        with self._lock:
            if self._state is not State.RESETTING or self._is_ready:
                raise RefusedError(f'there is nothing to begin: {self._describe()}')
            if problems:
                raise RefusedError(f'not started: {"; ".join(problems)}')
            self._is_ready = True
            return f'{self._trial.episode_id} begins'

    def judge(self, verdict: Verdict) -> str:
        """Say how the running or the last trial went; it ends if it runs."""
        if verdict.outcome not in VERDICTS:
            raise RefusedError(
                f"'{verdict.outcome}' is not one of: {', '.join(VERDICTS)}; say one of these"
            )
        with self._lock:
            if self._state in (State.IDLE, State.RESETTING):
                raise RefusedError(
                    f'there is no trial to label: {self._describe()}. An earlier verdict is '
                    'changed on the labelling page (grape label).'
                )
            if self._state is State.TO_LABEL:
                self._keep(verdict)
                return f'{self._trial.episode_id}: {verdict.outcome}'
            if self._verdict is not None and self._verdict.outcome != verdict.outcome:
                raise RefusedError(
                    f'{self._trial.episode_id} is ending as {self._verdict.outcome}; change it '
                    'on the labelling page (grape label) once it is recorded'
                )
            if self._verdict is None:
                self._verdict = verdict
            return f'{self._trial.episode_id} ends: {verdict.outcome}'

    def pause(self) -> str:
        """Hold the arm and wait."""
        with self._lock:
            if self._state is not State.RUNNING:
                raise RefusedError(f'nothing is running: {self._describe()}')
            self._state, self._prompt = State.PAUSED, 'Paused; the arm holds. trial/resume.'
            return f'{self._trial.episode_id} is paused at step {self._step}'

    def resume(self) -> str:
        """Go on."""
        with self._lock:
            if self._state is not State.PAUSED:
                raise RefusedError(f'nothing is paused: {self._describe()}')
            self._state, self._prompt = State.RUNNING, _RUNNING
            return f'{self._trial.episode_id} goes on at step {self._step}'

    def abort(self) -> str:
        """Break the trial off; it is not asked for a label."""
        with self._lock:
            if self._state not in (State.RESETTING, State.RUNNING, State.PAUSED):
                raise RefusedError(f'there is nothing to abort: {self._describe()}')
            self._is_aborted = True
            return f'{self._trial.episode_id} is aborted'

    # The course of the trial.

    def ask(self, trial: Trial, prompt: str) -> None:
        """Have the person put the scene back."""
        with self._lock:
            self._state, self._prompt, self._trial = State.RESETTING, prompt, trial
            self._step, self._bag, self._verdict = 0, '', None
            self._is_aborted = self._is_ready = False

    def say(self, prompt: str) -> None:
        """Change the prompt."""
        with self._lock:
            self._prompt = prompt

    def begin(self) -> None:
        """The trial runs."""
        with self._lock:
            self._state, self._prompt = State.RUNNING, _RUNNING

    def count(self, step: int) -> None:
        """Remember how many control steps were answered."""
        with self._lock:
            self._step = step

    def end(self, bag: str, problem: str, is_judgeable: bool) -> str:
        """Note that the trial is over; return '' or why the verdict could not be written.

        Args:
            bag: of the trial; '' where none was closed.
            problem: of the infrastructure; ''.
            is_judgeable: False for an aborted trial or an error: nobody is asked for a label.

        """
        with self._lock:
            self._bag = bag
            if self._verdict is not None and bag:
                verdict, self._verdict = self._verdict, None
                try:
                    self._keep(verdict)
                except RefusedError as error:
                    self._state, self._prompt = State.TO_LABEL, str(error)
                    return str(error)
                return ''
            if is_judgeable and bag:
                self._state = State.TO_LABEL
                self._prompt = 'How did it go? trial/success, trial/failure or trial/discard.'
            else:
                self._state = State.IDLE
                self._prompt = problem or f'{self._trial.episode_id} was aborted.'
                if self._verdict is not None:
                    lost = self._verdict.outcome
                    self._prompt += f" Your verdict '{lost}' was not written: there is no bag."
            return ''

    def _keep(self, verdict: Verdict) -> None:
        try:
            self._write(self._bag, verdict)
        except (ValueError, OSError) as error:
            raise RefusedError(f'the label was not written: {error}') from error
        self._state = State.IDLE
        self._prompt = f'{self._trial.episode_id} is labelled {verdict.outcome}. trial/next.'

    def _describe(self) -> str:
        name = self._trial.episode_id if self._trial else 'no trial yet'
        text = {
            State.IDLE: 'no trial is asked for',
            State.RESETTING: 'begins already' if self._is_ready else 'waits for trial/ready',
            State.RUNNING: 'runs',
            State.PAUSED: 'is paused; trial/resume first',
            State.TO_LABEL: 'has ended and waits for a label',
        }[self._state]
        return f'{text} (last: {name})' if self._state is State.IDLE else f'{name} {text}'


_RUNNING = 'Running. trial/success, trial/failure, trial/discard, trial/pause, trial/abort.'
