"""One trial on the robot: the scene is put back, START, READY, control steps, STOP, RECORDED.

The counterpart of sim_bridge/bridge_episode.py. Observations go out at the contract's rate,
whether the last one was answered or not: a robot does not wait, and the guard holds the arm where
no answer comes. A control step is an observation that was answered; `steps` counts those.

The machine records `interrupted` or `error`, never success or failure: those are a person's
words, kept as labels (grape_episode/label.py). So nothing that nobody has judged is learnt from.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from grape.msg import EpisodeEvent, GuardState

from grape_bringup.robot.initial_state import Start, pose_distance
from grape_bringup.robot.trial_config import TrialConfig
from grape_bringup.robot.trial_flow import RefusedError, State, Trial, TrialFlow
from grape_bringup.robot.trial_topics import SOURCE, TrialTopics
from grape_episode.handshake import RECORDER, EpisodeError, Handshake
from grape_episode.outcome import Outcome

SLICE_S = 0.02  # how long a button waits to be noticed
PAUSE_S = 1.0  # the guard has paused by then
AWAKE_S = 10.0  # a paused trial says something to the recorder, which ends silent ones
GOODBYE_S = 5.0
RUNS = (GuardState.ARMED, GuardState.INTERVENED)
MODES = {
    GuardState.DISARMED: 'is disarmed; arm it: guard/arm',
    GuardState.PAUSED: 'is paused; trial/resume',
    GuardState.STOPPED: 'is stopped; guard/reset, then guard/arm',
    GuardState.FAULT: 'has a fault; guard/recover, then guard/arm',
}


class BrokenOffError(RuntimeError):
    """The trial was aborted or cancelled, or the node was told to stop."""


@dataclass(frozen=True)
class Asked:
    """A trial as it was asked for.

    Attributes:
        trial: what is played.
        seed: of the policy's sampling.
        temperature: 0 is greedy.
        environment: goes into START.
        reference: the trial whose start is restored; None: this one is the first of its kind.

    """

    trial: Trial
    seed: int
    temperature: float
    environment: dict[str, Any]
    reference: Start | None


@dataclass(frozen=True)
class Played:
    """How a trial ended, for whoever asked for it."""

    outcome: Outcome
    steps: int
    bag: str
    detail: str


class TrialEpisode:
    """Plays one trial; use `run` once."""

    def __init__(
        self,
        asked: Asked,
        topics: TrialTopics,
        flow: TrialFlow,
        config: TrialConfig,
        is_cancelled: Callable[[], bool],
        stopping: threading.Event,
        feedback: Callable[[int], None],
    ) -> None:
        self._asked = asked
        self._trial = asked.trial
        self._topics = topics
        self._flow = flow
        self._config = config
        self._is_cancelled = is_cancelled
        self._stopping = stopping
        self._feedback = feedback
        self._others = Handshake(asked.trial.episode_id, SOURCE, topics.events, topics.present)
        self._period_s = 1 / topics.contract.control_rate_hz
        self._steps: set[int] = set()  # that were answered
        self._answered_s = 0.0
        self.late = 0  # observations that went out more than half a period late

    def run(self) -> Played:
        """Play it; errors are in the result."""
        self._topics.forget()
        try:
            self._wait_until_ready()
        except BrokenOffError as error:
            self._flow.end('', str(error), is_judgeable=False)
            return Played(Outcome.INTERRUPTED, 0, '', str(error))
        outcome, problem = Outcome.INTERRUPTED, ''
        try:
            self._start()
            detail = self._play()
        except BrokenOffError as error:
            detail = str(error)
        except EpisodeError as error:
            outcome, problem, detail = Outcome.ERROR, str(error), str(error)
        self._stop(outcome, detail)
        try:
            self._wait_recorded()
        except EpisodeError as error:
            outcome, problem = Outcome.ERROR, '; '.join(filter(None, (problem, str(error))))
            detail = problem
        return self._end(outcome, problem, detail)

    def _wait_until_ready(self) -> None:
        """Wait until the person has put the scene back."""
        deadline = time.monotonic() + self._config.reset_timeout_s
        while not self._flow.snapshot().is_ready:
            self._check_wanted()
            if time.monotonic() > deadline:
                raise BrokenOffError(
                    f'nobody said trial/ready within {self._config.reset_timeout_s:g} s'
                )
            time.sleep(SLICE_S)

    def _start(self) -> None:
        trial, asked, topics = self._trial, self._asked, self._topics
        pose = topics.pose()
        about: dict[str, Any] = {'max_steps': trial.max_steps, **asked.environment}
        if asked.reference is not None and pose is not None:
            move_m, turn_rad = pose_distance(*pose, asked.reference)
            about['reference_episode_id'] = asked.reference.episode_id
            about['start_distance_m'] = round(move_m, 4)
            about['start_rotation_rad'] = round(turn_rad, 4)
        about['sources'] = self._config.model_dump(
            mode='json', include={'cameras', 'joint_states', 'ee_pose', 'gripper_opening'}
        )
        topics.instruct(trial.instruction)
        topics.describe_cameras()
        topics.event(
            trial,
            EpisodeEvent.START,
            instruction=trial.instruction,
            seed=asked.seed,
            temperature=asked.temperature,
            config_json=json.dumps(about),
        )
        needed = set(self._config.participants)
        if trial.controller != 'policy':
            needed.discard('policy')
        self._others.wait_ready(needed, self._config.ready_timeout_s, self._check_wanted)
        self._flow.begin()

    def _play(self) -> str:
        """Run until a person, or the limit of steps, ends it; returns why it ended."""
        due = self._answered_s = time.monotonic()
        while len(self._steps) < self._trial.max_steps:
            self._check()
            if self._flow.snapshot().state is State.PAUSED:
                self._wait_while_paused()
                due = self._answered_s = time.monotonic()
            if (verdict := self._flow.snapshot().verdict) is not None:
                return f'ended by the operator: {verdict.outcome}'
            if problems := self._topics.stale():
                raise EpisodeError('; '.join(problems))
            self._topics.observe(self._topics.now_ns(), with_images=True)
            due += self._period_s
            while (left := due - time.monotonic()) > 0:
                self._check()
                if self._flow.snapshot().verdict is not None:
                    break
                time.sleep(min(left, SLICE_S))
            if left < -self._period_s / 2:
                self.late += 1
                due = time.monotonic()
        return f'not labelled: it ended at its limit of {self._trial.max_steps} steps'

    def _wait_while_paused(self) -> None:
        """Wait for trial/resume, and for the guard to follow; nothing resumes by itself."""
        pressed = awake = time.monotonic()
        while True:
            now, guard = time.monotonic(), self._topics.guard
            self._check_others()
            is_paused = self._flow.snapshot().state is State.PAUSED
            is_held = guard is not None and guard.mode == GuardState.PAUSED
            if self._flow.snapshot().verdict is not None:
                return
            if not self._config.needs_guard or is_held == is_paused:
                pressed = now
                if not is_paused:
                    return
            elif now - pressed > PAUSE_S:
                what = 'pause' if is_paused else 'resume'
                raise EpisodeError(f'the guard did not {what}; look at its log')
            if now - awake > AWAKE_S:
                self._topics.instruct(self._trial.instruction)
                awake = now
            time.sleep(SLICE_S)

    def _check(self) -> None:
        """Take in what happened while the trial runs.

        Raises:
            BrokenOffError: the trial is to end.
            EpisodeError: it can't go on.

        """
        self._check_others()
        self._take_steps()
        if self._config.needs_guard and self._topics.guard.mode == GuardState.PAUSED:
            with suppress(RefusedError):  # unless it is known: somebody called guard/pause itself
                self._flow.pause()
        silence_s = time.monotonic() - self._answered_s
        if silence_s > self._config.step_timeout_s and not self._is_paused():
            who = 'the policy' if self._trial.controller == 'policy' else 'the guard (teleop)'
            raise EpisodeError(f'no step from {who} for {silence_s:.1f} s; the arm was held')

    def _check_others(self) -> None:
        self._check_wanted()
        self._others.listen(0.0)
        if not self._config.needs_guard:
            return
        if problem := guard_problem(self._topics, self._config, may_be_paused=True):
            raise EpisodeError(problem)

    def _check_wanted(self) -> None:
        if self._stopping.is_set():
            raise BrokenOffError('the trial node was stopped')
        if self._is_cancelled():
            raise BrokenOffError('cancelled')
        if self._flow.snapshot().is_aborted:
            raise BrokenOffError('aborted by the operator')

    def _is_paused(self) -> bool:
        return self._flow.snapshot().state is State.PAUSED

    def _take_steps(self) -> None:
        topics = self._topics
        answers = topics.steps if self._trial.controller == 'policy' else topics.executed
        while not answers.empty():
            step = answers.get_nowait()
            if step.episode_id == self._trial.episode_id:
                self._steps.add(step.step)
                self._answered_s = time.monotonic()
        if len(self._steps) != self._flow.snapshot().step:
            self._flow.count(len(self._steps))
            self._feedback(len(self._steps))

    def _stop(self, outcome: Outcome, detail: str) -> None:
        """Say the last state, then the verdict that is known, then STOP."""
        if self._topics.has_state():
            self._topics.observe(self._topics.now_ns(), with_images=False)
        self._others.end()
        if (verdict := self._flow.snapshot().verdict) is not None:
            self._topics.event(
                self._trial,
                EpisodeEvent.LABEL,
                source='operator',
                outcome=verdict.outcome,
                detail=verdict.reason,
            )
        self._topics.event(
            self._trial,
            EpisodeEvent.STOP,
            outcome=str(outcome),
            steps=len(self._steps),
            detail=detail,
        )

    def _wait_recorded(self) -> None:
        wait_s = self._config.recorded_timeout_s
        if self._stopping.is_set():
            wait_s = min(wait_s, GOODBYE_S)
        if RECORDER in self._config.participants:
            self._others.wait_recorded(wait_s)

    def _end(self, outcome: Outcome, problem: str, detail: str) -> Played:
        now = self._flow.snapshot()
        verdict = now.verdict
        problem = (
            self._flow.end(
                self._others.bag, problem, outcome is not Outcome.ERROR and not now.is_aborted
            )
            or problem
        )
        labelled = verdict is not None and self._flow.snapshot().state is State.IDLE
        if labelled and self._others.bag and verdict.outcome != 'discard':
            outcome = Outcome(verdict.outcome)
        return Played(outcome, len(self._steps), self._others.bag, detail)


def guard_problem(topics: TrialTopics, config: TrialConfig, may_be_paused: bool = False) -> str:
    """Return why the guard does not let a trial run; '' when it does."""
    guard, age_s = topics.guard, time.monotonic() - topics.guard_came_s
    if guard is None:
        return 'nothing came on guard/state; is guard_node running?'
    if age_s > config.max_guard_age_s:
        return f'the guard said nothing for {age_s:.1f} s; look at its log'
    if guard.mode in RUNS or (may_be_paused and guard.mode == GuardState.PAUSED):
        return ''
    reason = f' ({guard.reason})' if guard.reason else ''
    return f'the guard {MODES.get(guard.mode, f"is in mode {guard.mode}")}{reason}'
