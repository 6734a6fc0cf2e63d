"""One episode over ROS: START, READY, control steps, STOP, RECORDED.

    reset, START, READY of all, then for each control step: observation, PolicyStep with its stamp,
    simulator step; at success, limit, error or cancel: the last state, STOP, RECORDED.

Whatever goes wrong here, the episode ends with outcome `error` and a text, never as a failure of
the policy, and every wait has a deadline.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from grape.action import RunEpisode
from grape.msg import EpisodeEvent
from rclpy.impl.rcutils_logger import RcutilsLogger

from grape_episode.handshake import RECORDER, EpisodeError, Handshake
from grape_episode.outcome import Outcome
from sim_bridge import ros_messages
from sim_bridge.bridge_topics import SOURCE, BridgeTopics
from sim_bridge.environment import Environment, SimulatorError, UnknownTaskError
from sim_bridge.expert import Expert
from sim_bridge.keyboard_operator import Operator
from sim_bridge.rollout import ActuationNoise

FEEDBACK_EVERY = 10  # steps
CONTROLLERS = ('policy', 'expert', 'operator')
MODES = ('lockstep', 'realtime')
POLL_S = 0.1
GOODBYE_S = 5.0  # how long a bridge that was told to stop waits for the recorder


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are played; see bridge_node.BridgeConfig for the values."""

    participants: tuple[str, ...]
    mode: str
    ready_timeout_s: float
    step_timeout_s: float
    recorded_timeout_s: float


class CancelledError(RuntimeError):
    """The goal was cancelled, or the node was told to stop."""


class BridgeEpisode:
    """Plays one goal; use `run` once, on the thread of the simulator."""

    def __init__(
        self,
        goal: RunEpisode.Goal,
        env: Environment,
        topics: BridgeTopics,
        settings: EpisodeSettings,
        is_cancelled: Callable[[], bool],
        stopping: threading.Event,
        feedback: Callable[[int], None],
        logger: RcutilsLogger,
    ) -> None:
        self._goal = goal
        self._env = env
        self._topics = topics
        self._settings = settings
        self._is_cancelled = is_cancelled
        self._stopping = stopping
        self._feedback = feedback
        self._logger = logger
        self._step = 0
        self._opening = 1.0
        self._others = Handshake(goal.episode_id, SOURCE, topics.events, topics.present)

    def run(self) -> RunEpisode.Result:
        """Play it; errors are in the result."""
        self._topics.forget()
        try:
            self._prepare()
        except (UnknownTaskError, ValueError, SimulatorError, ImportError) as error:
            return self._result(Outcome.ERROR, str(error))
        except Exception as error:  # noqa: BLE001 - a simulator raises anything; the node lives on
            return self._result(Outcome.ERROR, f'reset failed: {error!r}')
        try:
            self._start()
            outcome, detail = self._play()
        except CancelledError as error:
            outcome, detail = Outcome.INTERRUPTED, str(error)
        except (EpisodeError, SimulatorError) as error:
            outcome, detail = Outcome.ERROR, str(error)
        except Exception as error:  # noqa: BLE001 - as above
            outcome, detail = Outcome.ERROR, f'the simulator failed: {error!r}'
        self._stop(outcome, detail)
        try:
            self._wait_recorded()
        except EpisodeError as error:
            outcome, detail = Outcome.ERROR, f'{detail}; {error}' if detail else str(error)
        return self._result(outcome, detail)

    def _prepare(self) -> None:
        """Reset; what is wrong with the goal shows here, before anybody hears of it."""
        goal = self._goal
        if goal.controller not in CONTROLLERS:
            raise ValueError(
                f"controller '{goal.controller}' is not one of: {', '.join(CONTROLLERS)}"
            )
        self._noise = ActuationNoise(goal.action_noise, goal.seed)
        self._observation = self._env.reset(goal.task, goal.init_state, goal.seed)
        self._expert = self._script()
        self._limit = goal.max_steps or self._env.task_info().max_steps

    def _script(self) -> Expert | None:
        """Return what acts in the policy's place, if anything does."""
        goal = self._goal
        if goal.controller == 'expert':
            return Expert(self._env, goal.expert_attempt)
        if goal.controller == 'operator':
            return Operator(self._env, goal.expert_attempt, goal.seed)
        return None

    def _start(self) -> None:
        goal, info = self._goal, self._env.task_info()
        instruction = goal.instruction or info.instruction
        environment = asdict(info) | {
            'suite_limit': info.max_steps,
            'max_steps': self._limit,
            'action_noise': goal.action_noise,
            'expert_attempt': goal.expert_attempt,
            'settings': self._env.describe(),
        }
        if self._observation.images:
            camera = self._env.camera_geometry().to_dict()
            environment['cameras'] = dict.fromkeys(self._observation.images, camera)
        self._topics.instruct(instruction)
        if self._observation.depths_m:
            self._topics.describe_camera(self._env.camera_geometry())
        self._topics.event(
            goal,
            EpisodeEvent.START,
            instruction=instruction,
            config_json=json.dumps(environment),
        )
        needed = set(self._settings.participants)
        if self._expert is not None:
            needed.discard('policy')
        self._others.wait_ready(needed, self._settings.ready_timeout_s, self._check_wanted)

    def _play(self) -> tuple[Outcome, str]:
        began = time.monotonic()
        while self._step < self._limit:
            self._listen(0.0)
            self._topics.observe(self._goal.episode_id, self._step, self._observation, True)
            if self._expert is None:
                action = self._wait_action(began)
            else:
                action = self._expert.action()
                if action is None:
                    return Outcome.FAILURE, 'the expert has done all it can'
                self._topics.expert_step(self._goal.episode_id, self._step, action)
            self._observation = self._env.step(self._noise(action))
            self._step += 1
            if self._step % FEEDBACK_EVERY == 0:
                self._feedback(self._step)
            if self._observation.scene.success:
                return Outcome.SUCCESS, ''
        return Outcome.FAILURE, f'not done within {self._limit} steps'

    def _wait_action(self, began: float) -> np.ndarray:
        """Return the (7,) action for this observation; in real time, hold when there is none."""
        stamp = self._topics.stamp(self._step)
        is_realtime = self._settings.mode == 'realtime'
        deadline = time.monotonic() + self._settings.step_timeout_s
        if is_realtime:
            deadline = began + (self._step + 1) / self._topics.contract.control_rate_hz
        while True:
            left = deadline - time.monotonic()
            try:
                message = self._topics.steps.get(timeout=max(0.0, min(left, POLL_S)))
            except queue.Empty:
                self._listen(0.0)
                if left > 0:
                    continue
                if is_realtime:
                    return np.array([0, 0, 0, 0, 0, 0, self._opening])
                raise EpisodeError(
                    f'no PolicyStep for step {self._step} within '
                    f'{self._settings.step_timeout_s:g} s'
                ) from None
            if message.episode_id == self._goal.episode_id and message.header.stamp == stamp:
                break
        if is_realtime:
            time.sleep(max(0.0, deadline - time.monotonic()))
        self._opening = float(message.gripper_opening)
        return ros_messages.action_of(message, self._topics.contract.action)

    def _stop(self, outcome: Outcome, detail: str) -> None:
        self._topics.observe(self._goal.episode_id, self._step, self._observation, False)
        self._others.end()
        self._topics.event(
            self._goal, EpisodeEvent.STOP, outcome=str(outcome), steps=self._step, detail=detail
        )

    def _wait_recorded(self) -> None:
        wait_s = self._settings.recorded_timeout_s
        if self._stopping.is_set():
            wait_s = min(wait_s, GOODBYE_S)
        if RECORDER in self._settings.participants:
            self._others.wait_recorded(wait_s)

    def _listen(self, timeout_s: float) -> None:
        """Take in what was said, at most `timeout_s` waiting for the first word.

        Raises:
            CancelledError: the goal was cancelled or the node is to stop.
            EpisodeError: somebody can't go on, or is not there any more.

        """
        self._check_wanted()
        self._others.listen(timeout_s)

    def _check_wanted(self) -> None:
        if self._stopping.is_set():
            raise CancelledError('the bridge was stopped')
        if self._is_cancelled():
            raise CancelledError('cancelled')

    def _result(self, outcome: Outcome, detail: str) -> RunEpisode.Result:
        if outcome is Outcome.ERROR:
            self._logger.error(f'{self._goal.episode_id}: {detail}')
        return RunEpisode.Result(
            outcome=str(outcome), steps=self._step, bag_path=self._others.bag, detail=detail
        )
