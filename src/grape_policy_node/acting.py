"""Episodes of the policy node: START to STOP, one picture a step, on a thread of its own.

The executor's thread says what came (`start`, `stop`, `take`) and never waits; the worker's thread
puts it to the backend, always the newest picture, and publishes what comes of it. Whatever goes
wrong in a step ends that episode by EpisodeEvent ERROR, and nothing else.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from grape.msg import EpisodeEvent, PolicyStep
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import Image

from grape_episode.action import from_policy_units
from grape_episode.contract import Contract
from grape_policy_node import messages
from grape_policy_node.backend import Backend, Decision, NoAnswerError, Seen, Start
from grape_policy_node.messages import RunningEpisode
from grape_policy_node.observed_state import StateTrack
from grape_policy_node.safety import Bounds, Gated, gate, hold
from grape_policy_node.step_statistics import StepStatistics
from grape_policy_node.worker import NewestWorker


@dataclass(frozen=True)
class _Picture:
    """An image to act on, with the time it came (monotonic)."""

    message: Image
    received_s: float


@dataclass(frozen=True)
class _Asked:
    """A START that is still to be answered."""

    event: EpisodeEvent
    start: Start


class Actor:
    """Plays episodes with a backend while it is active."""

    def __init__(
        self,
        backend: Backend,
        contract: Contract,
        bounds: Bounds,
        publish_step: Callable[[PolicyStep], None],
        publish_event: Callable[[EpisodeEvent], None],
        logger: RcutilsLogger,
    ) -> None:
        self.states = StateTrack()
        self.statistics = StepStatistics()
        self._backend = backend
        self._contract = contract
        self._bounds = bounds
        self._publish_step = publish_step
        self._publish_event = publish_event
        self._logger = logger
        self._worker: NewestWorker[_Picture | _Asked] | None = None
        self._closing = threading.Event()  # the worker is to end
        self._asked: _Asked | None = None
        self._episode: RunningEpisode | None = None

    @property
    def is_active(self) -> bool:
        """Say whether episodes can be played."""
        return self._worker is not None

    @property
    def replaced(self) -> int:
        """Pictures that a newer one replaced before they were acted on."""
        return self._worker.replaced if self._worker else 0

    @property
    def episode_id(self) -> str:
        """The running episode's, '' for none."""
        episode = self._episode
        return episode.episode_id if episode else ''

    # What comes in (executor thread)

    def activate(self) -> None:
        """Begin to act."""
        self._closing.clear()
        self._worker = NewestWorker(self._work, 'policy_inference')

    def deactivate(self, reason: str) -> None:
        """Finish the step in progress; a running episode ends with an error."""
        self.close()
        if self._episode is not None:
            self._fail(self._episode, reason)
        elif self._asked is not None:
            self._refuse(self._asked.event, reason)
        self._asked = None

    def close(self) -> None:
        """End the worker thread."""
        self._closing.set()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def start(self, event: EpisodeEvent, instruction: str) -> None:
        """Have START answered for controller 'policy'; another one ends our episode.

        Args:
            event: START.
            instruction: of the latched topic, for a START without one.
        """
        self._episode = self._asked = None
        if event.controller != 'policy':
            return
        self.states.forget()
        worker = self._worker
        try:
            if worker is None:
                raise RuntimeError('policy_node is inactive: activate it before an episode')
            self._asked = _Asked(event, messages.read_start(event, instruction))
        except (ValueError, RuntimeError) as error:
            self._refuse(event, str(error))
        else:
            worker.put(self._asked)

    def stop(self, event: EpisodeEvent) -> None:
        """End the episode that STOP names."""
        asked, episode = self._asked, self._episode
        if asked is not None and asked.event.episode_id == event.episode_id:
            self._asked = None
        if episode is not None and episode.episode_id == event.episode_id:
            self._episode = None

    def take(self, message: Image) -> None:
        """Act on a picture, unless a newer one comes first or no episode is running."""
        if self._worker is not None and self._episode is not None:
            self._worker.put(_Picture(message, time.monotonic()))

    # Acting (worker thread)

    def _work(self, item: _Picture | _Asked) -> None:
        if isinstance(item, _Asked):
            self._begin_or_refuse(item)
            return
        episode = self._episode
        if episode is None:
            return
        try:
            self._act(episode, item)
        except Exception as error:  # whatever it is, it ends this episode and not the node
            self._fail(episode, f'step {episode.step}: {type(error).__name__}: {error}')

    def _begin_or_refuse(self, asked: _Asked) -> None:
        backend = self._backend

        def wanted() -> bool:
            return self._asked is asked and not self._closing.is_set()

        try:
            player = backend.begin(asked.start, wanted)
        except Exception as error:  # as above
            if wanted():
                self._asked = None
                self._refuse(asked.event, str(error))
            return
        if player is None or not wanted():
            return
        temperature = asked.start.temperature if backend.has_log_probs else math.nan
        self._episode = RunningEpisode(asked.start, player, temperature)
        self._asked = None
        self._publish_event(
            messages.answer(
                asked.event, EpisodeEvent.READY, backend.adapter_id, self._description()
            )
        )

    def _act(self, episode: RunningEpisode, picture: _Picture) -> None:
        def wanted() -> bool:
            return self._episode is episode and not self._closing.is_set()

        contract = self._contract
        try:
            decision = episode.player.act(self._seen(episode, picture), wanted)
            if decision is None:
                return
        except NoAnswerError as error:
            decision = Decision.none(self._backend.adapter_id)
            gated = hold(episode.gripper_opening, str(error))
        else:
            proposed = from_policy_units(decision.action, contract.action)
            age_s = time.monotonic() - picture.received_s
            gated = gate(proposed, self._bounds, age_s, episode.gripper_opening)
        step = messages.policy_step(
            picture.message.header.stamp, contract.action.frame, episode, decision, gated
        )
        if self._episode is not episode:
            return  # STOP came meanwhile: a command now would belong to no episode
        episode.gripper_opening = step.gripper_opening
        episode.step += 1
        step.latency_ms = (time.monotonic() - picture.received_s) * 1000.0
        self._publish_step(step)
        self._count(step, gated)

    def _seen(self, episode: RunningEpisode, picture: _Picture) -> Seen:
        contract, message = self._contract, picture.message
        camera, max_age_s = contract.policy_camera, self._bounds.max_image_age_s
        raw = messages.image_array(message, contract.cameras[camera].encoding)
        state = None
        if self._backend.needs_state:
            state = self.states.at(messages.stamp_ns(message))
        return Seen(
            step=episode.step,
            image=contract.apply_image(camera, raw),
            state=state,
            deadline_s=picture.received_s + max_age_s if max_age_s else None,
        )

    def _count(self, step: PolicyStep, gated: Gated) -> None:
        self.statistics.take(step.latency_ms, step.verdict == PolicyStep.VERDICT_HELD)
        if gated.reason:
            self._logger.warning(
                f'episode {step.episode_id} step {step.step}: {gated.verdict.name}: '
                f'{gated.reason}',
                throttle_duration_sec=1.0,
            )

    def _fail(self, episode: RunningEpisode, detail: str) -> None:
        self.statistics.errors += 1
        if self._episode is episode:
            self._episode = None
        self._logger.error(f'episode {episode.episode_id}: {detail}')
        self._publish_event(messages.error_event(episode, self._backend.adapter_id, detail))

    def _refuse(self, event: EpisodeEvent, detail: str) -> None:
        self._logger.error(f'episode {event.episode_id}: {detail}')
        adapter_id = self._backend.adapter_id
        self._publish_event(
            messages.answer(event, EpisodeEvent.ERROR, adapter_id, self._description(), detail)
        )

    def _description(self) -> dict[str, object]:
        return {
            **self._backend.describe(),
            'contract': self._contract.name,
            'bounds': asdict(self._bounds),
        }
