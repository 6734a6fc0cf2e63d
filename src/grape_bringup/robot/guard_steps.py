"""Control steps and their answers: every step is answered once, by what was done until the next.

A step is open from when it is taken to when the next one comes, or the episode ends. Its answer
says how far the goal moved in between and who moved it, so that the answers of an episode add up
to the whole motion, whoever took over in the middle of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from grape_bringup.robot.arm import Pose
from grape_bringup.robot.guard_inputs import (
    HOLD,
    TELEOP,
    Executed,
    Finding,
    Now,
    Step,
    Verdict,
)
from grape_bringup.robot.guard_rules import difference
from grape_episode.action import EndEffectorDelta


@dataclass
class _Open:
    step: Step
    began: Pose | None  # the goal; None while the guard has none
    opened_s: float
    source: str
    verdict: Verdict
    reasons: list[str] = field(default_factory=list)
    latency_s: float = 0.0


class ControlSteps:
    """The open step, and the answers that are ready."""

    def __init__(self, in_base_frame: bool) -> None:
        self._in_base_frame = in_base_frame
        self._open: _Open | None = None
        self._answers: list[Executed] = []

    @property
    def opened_s(self) -> float | None:
        """When the open step was taken, monotonic; None for no open step."""
        return None if self._open is None else self._open.opened_s

    def refuse(self, step: Step, finding: Finding, gripper: float) -> None:
        """Answer a step at once: nothing is done for it."""
        delta = EndEffectorDelta(np.zeros(3), np.zeros(3), gripper)
        reason = f'{finding.rule}: {finding.text}'
        self._answers.append(Executed(step, delta, HOLD, Verdict.HELD, reason, 0.0))

    def open(self, step: Step, goal: Pose | None, now: Now, source: str) -> None:
        """Take a step; the one before is to be closed already."""
        reasons = [step.reason] if step.reason else []
        verdict = Verdict.HELD if source == HOLD else step.verdict
        self._open = _Open(step, goal, now.monotonic_s, source, verdict, reasons)

    def note(self, findings: list[Finding], verdict: Verdict = Verdict.CLAMPED) -> None:
        """Add what rules changed to the open step; each rule once."""
        if self._open is None or not findings:
            return
        self._open.verdict = max(self._open.verdict, verdict)
        known = {reason.split(':')[0] for reason in self._open.reasons}
        self._open.reasons += [f'{f.rule}: {f.text}' for f in findings if f.rule not in known]

    def acted(self, step: Step, now: Now) -> None:
        """Take note that the first target for a step goes out."""
        if self._open is not None and self._open.step is step:
            self._open.latency_s = max(0.0, (now.clock_ns - step.stamp_ns) * 1e-9)

    def take_over(self) -> None:
        """A person moves the arm now: the open step is theirs."""
        if self._open is not None and self._open.source != TELEOP:
            self._open.source = TELEOP
            self._open.verdict = Verdict.OK if not self._open.reasons else Verdict.CLAMPED

    def close(self, goal: Pose | None, gripper: float) -> None:
        """Answer the open step, if there is one."""
        if self._open is None:
            return
        entry, self._open = self._open, None
        translation, rotation = np.zeros(3), np.zeros(3)
        if entry.began is not None and goal is not None:
            translation, rotation = difference(entry.began, goal, self._in_base_frame)
        self._answers.append(
            Executed(
                entry.step,
                EndEffectorDelta(translation, rotation, gripper),
                entry.source,
                entry.verdict,
                '; '.join(entry.reasons),
                entry.latency_s,
            )
        )

    def answers(self) -> list[Executed]:
        """Return the answers since the last call."""
        ready, self._answers = self._answers, []
        return ready
