"""The guard's loop: a thread of its own at a fixed rate, and the safe action at its end.

Deadlines lie on a fixed grid of the monotonic clock, so that the rate does not drift with the
work; one that was missed altogether is skipped and counted, never caught up. However the loop ends
(told to, or by an exception), the last thing that the arm hears is hold.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from grape_bringup.robot.arm import ArmError, ArmOutput, ArmState, ArmTarget
from grape_bringup.robot.gripper import GripperError, GripperOutput, GripperState
from grape_bringup.robot.guard import Guard
from grape_bringup.robot.guard_inbox import Inbox
from grape_bringup.robot.guard_inputs import Finding, Now, Outcome
from grape_episode.measured import Measured, Rate

JOIN_S = 2.0


@dataclass(frozen=True)
class Snapshot:
    """What one tick left behind, for whoever publishes it."""

    now: Now
    arm: ArmState | None
    gripper: GripperState | None
    target: ArmTarget | None  # the last one that was sent
    outcome: Outcome


class Listener(Protocol):
    """Who is told after every tick, on the loop's thread."""

    def ticked(self, snapshot: Snapshot) -> None:
        """Publish what came of it."""
        ...

    def failed(self, error: Exception) -> None:
        """Say that the loop has ended; the arm holds already."""
        ...


class Statistics:
    """What the loop measured."""

    def __init__(self) -> None:
        self.late = Measured('late_ms')  # begin of a tick after its deadline
        self.busy = Measured('tick_ms')
        self.latency = Measured('latency_ms')  # stamp of the observation -> target sent
        self.rate = Rate()
        self.skipped = 0  # deadlines
        self.answers: Counter[str] = Counter()  # by source

    def values(self) -> dict[str, object]:
        """Return them by name; rates are since the last call."""
        return {
            'loop_hz': f'{self.rate.look():.1f}',
            **self.late.values(),
            **self.busy.values(),
            **self.latency.values(),
            'skipped_ticks': self.skipped,
            **{f'steps_{source}': count for source, count in sorted(self.answers.items())},
        }


class GuardLoop:
    """Ticks a guard and does with arm and gripper what it says."""

    def __init__(
        self,
        guard: Guard,
        arm: ArmOutput,
        gripper: GripperOutput | None,
        inbox: Inbox,
        listener: Listener,
        clock_ns: Callable[[], int],
        rate_hz: float,
    ) -> None:
        """Take what it works with; `clock_ns` is the node's clock."""
        self._guard = guard
        self._arm = arm
        self._gripper = gripper
        self._inbox = inbox
        self._listener = listener
        self._clock_ns = clock_ns
        self._period_s = 1.0 / rate_hz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='guard_loop', daemon=True)
        self._target: ArmTarget | None = None
        self.statistics = Statistics()
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it ticks."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the loop; it holds when it has ended."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def close(self) -> None:
        """Stop, hold once more, and let go of arm and gripper."""
        self.stop()
        self._arm.close()
        if self._gripper is not None:
            self._gripper.close()

    def _run(self) -> None:
        try:
            deadline = time.monotonic()
            while not self._stop.is_set():
                deadline = self._wait(deadline)
                self._tick()
        except Exception as error:  # whatever it is, the arm must not go on without the guard
            self.error = error
        try:
            self._hold()
        except Exception as error:  # as above; what ended the loop is the better reason
            self.error = self.error or error
        if self.error is not None:
            self._listener.failed(self.error)

    def _wait(self, deadline: float) -> float:
        """Sleep until the next deadline of the grid; returns it."""
        deadline += self._period_s
        behind = time.monotonic() - deadline
        if behind > self._period_s:
            missed = int(behind / self._period_s)
            self.statistics.skipped += missed
            deadline += missed * self._period_s
        time.sleep(max(0.0, deadline - time.monotonic()))
        self.statistics.late.take((time.monotonic() - deadline) * 1e3)
        return deadline

    def _tick(self) -> None:
        now = Now(time.monotonic(), self._clock_ns())
        arm = self._arm.state()
        gripper = None if self._gripper is None else self._gripper.state()
        items, latest = self._inbox.take()
        outcome = self._guard.tick(now, arm, gripper, items, latest)
        self._act(outcome)
        self.statistics.rate.take()
        self.statistics.answers.update(done.source for done in outcome.executed)
        self.statistics.busy.take((time.monotonic() - now.monotonic_s) * 1e3)
        self._listener.ticked(Snapshot(now, arm, gripper, self._target, outcome))

    def _act(self, outcome: Outcome) -> None:
        try:
            if outcome.target is not None:
                self._arm.send(outcome.target)
                self._target = outcome.target
                if outcome.acted is not None:
                    latency_ns = self._clock_ns() - outcome.acted.stamp_ns
                    self.statistics.latency.take(latency_ns * 1e-6)
            if outcome.gripper is not None:
                self._gripper.command(outcome.gripper)
        except (ArmError, GripperError) as error:
            self._guard.fault(Finding('refused', str(error)), outcome)
        if outcome.hold:
            self._hold()
        try:
            if outcome.recover:
                self._arm.recover()
            if outcome.recover_gripper:
                self._gripper.recover()
        except (ArmError, GripperError) as error:
            self._guard.fault(Finding('refused', str(error)), outcome)

    def _hold(self) -> None:
        """Hold; an arm that cannot be told to has stopped by itself, or is out of reach."""
        try:
            self._arm.hold()
        except ArmError as error:
            if self.error is None:
                self._guard.reason = f'{self._guard.reason}; hold: {error}'
