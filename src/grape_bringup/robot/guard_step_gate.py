"""Which steps may be followed at all: numbers, frame, episode and stamps.

Stamps are those of the observations that the steps were chosen from. A step is refused when it
was observed too long ago, in the future, before the last one that was followed, or before a person
paused, armed or took over: it answers another situation.
"""

from __future__ import annotations

from grape_bringup.robot.guard_config import GuardConfig
from grape_bringup.robot.guard_inputs import EpisodeStart, Finding, Now, Step, Verdict
from grape_bringup.robot.guard_rules import not_numbers


class StepGate:
    """What is known of the steps before."""

    def __init__(self, config: GuardConfig, frame: str) -> None:
        self._config = config
        self._frame = frame
        self._last_stamp_ns: int | None = None
        self._not_before_ns = 0

    def forget(self) -> None:
        """Begin an episode: no step was followed yet."""
        self._last_stamp_ns = None

    def only_after(self, clock_ns: int) -> None:
        """Refuse what was observed before this moment."""
        self._not_before_ns = clock_ns

    def followed(self, step: Step) -> None:
        """Take note of a step that was followed."""
        self._last_stamp_ns = step.stamp_ns

    def stray(self, step: Step, episode: EpisodeStart | None) -> Finding | None:
        """Say why a step belongs to no control step of now, None if it does."""
        if self._config.require_episode and (
            episode is None or episode.episode_id != step.episode_id
        ):
            running = 'none' if episode is None else f"'{episode.episode_id}'"
            text = f"step of episode '{step.episode_id}'; running is {running}"
            return Finding('episode', text)
        last = self._last_stamp_ns
        if self._config.max_step_age_s and last is not None and step.stamp_ns <= last:
            text = f'observed {(last - step.stamp_ns) * 1e-9:.3f} s before the last one followed'
            return Finding('old_step', text)
        return None

    def refusal(self, step: Step, now: Now, is_intervened: bool) -> Finding | None:
        """Say why a step is not followed, None if it may be."""
        if bad := not_numbers(step.delta):
            return bad
        if step.frame_id != self._frame:
            text = f"the step is in frame '{step.frame_id}'; the contract says '{self._frame}'"
            return Finding('frame', text)
        if self._config.max_step_age_s and (bad := self._wrong_time(step, now, is_intervened)):
            return bad
        if step.verdict is Verdict.HELD:
            return Finding('policy_held', step.reason or 'the policy holds')
        return None

    def _wrong_time(self, step: Step, now: Now, is_intervened: bool) -> Finding | None:
        config = self._config
        age_s = (now.clock_ns - step.stamp_ns) * 1e-9
        if age_s > config.max_step_age_s:
            text = f'observed {age_s:.3f} s ago; at most {config.max_step_age_s:g}'
            return Finding('step_in_the_past', text)
        if -age_s > config.max_step_ahead_s:
            text = f'stamp {-age_s:.3f} s in the future; are the clocks of all machines the same?'
            return Finding('step_in_the_future', text)
        if step.stamp_ns < self._not_before_ns and not is_intervened:
            early_s = (self._not_before_ns - step.stamp_ns) * 1e-9
            return Finding('before_resume', f'observed {early_s:.3f} s before steps counted')
        return None
