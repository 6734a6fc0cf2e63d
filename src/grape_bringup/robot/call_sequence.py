"""Calls that follow each other, each with a deadline, and none of them waited for.

A sequence is a generator that yields steps and gets their answers; its owner ticks it from a
timer. What goes wrong is named by the step.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol


class CallError(RuntimeError):
    """A step that did not succeed; the text says which and what was answered."""


class Pending(Protocol):
    """An answer that may come."""

    def done(self) -> bool:
        """Return whether it is there; called again and again."""
        ...

    def result(self) -> Any:
        """Return it, once it is there.

        Raises:
            CallError: the other side refused.

        """
        ...

    def missing(self) -> str:
        """Say what is being waited for, for a deadline that has passed."""
        ...

    def abandon(self) -> None:
        """Wait no more."""
        ...


@dataclass(frozen=True)
class Step:
    """One call of a sequence."""

    name: str
    pending: Pending


Steps = Generator[Step, Any, None]


class CallSequence:
    """Plays steps one after the other; stops at the first that fails."""

    def __init__(self, title: str, steps: Steps, step_timeout_s: float) -> None:
        self._title = title
        self._steps = steps
        self._step_timeout_s = step_timeout_s
        self._step: Step | None = None
        self._deadline_s = 0.0
        self.is_over = False
        self.error = ''  # of a sequence that is over; empty: it succeeded

    @property
    def step(self) -> str:
        """The name of the step in progress."""
        return self._step.name if self._step else ''

    def tick(self, now_s: float) -> None:
        """Go on as far as possible without waiting.

        Args:
            now_s: monotonic clock.

        """
        answer = None
        while not self.is_over:
            try:
                if self._step is not None:
                    if not self._step.pending.done():
                        self._check_deadline(now_s)
                        return
                    answer = self._step.pending.result()
                self._step = self._steps.send(answer)
                self._deadline_s = now_s + self._step_timeout_s
            except StopIteration:
                self.is_over = True
            except CallError as error:
                self._fail(str(error))

    def abandon(self) -> None:
        """End it where it is."""
        if not self.is_over:
            self._fail('abandoned')

    def _check_deadline(self, now_s: float) -> None:
        if now_s > self._deadline_s:
            raise CallError(f'after {self._step_timeout_s:g} s: {self._step.pending.missing()}')

    def _fail(self, text: str) -> None:
        self.error = f"{self._title}, step '{self.step}': {text}"
        self.is_over = True
        if self._step is not None:
            self._step.pending.abandon()
        self._steps.close()


@dataclass
class Until:
    """A condition as a pending answer."""

    condition: Any  # () -> bool
    what: str

    def done(self) -> bool:
        """Return whether it holds."""
        return self.condition()

    def result(self) -> None:
        """Return nothing: that it holds is the answer."""

    def missing(self) -> str:
        """Say what did not become true."""
        return self.what

    def abandon(self) -> None:
        """There is nothing to let go of."""
