"""What others say, from their threads to the guard's loop; nobody waits for anybody."""

from __future__ import annotations

from collections import deque

from grape_bringup.robot.guard_inputs import Deadman, Latest, Teleop


class Inbox:
    """A queue for what must not be lost, and single places where only the newest counts.

    Each method is one assignment or one operation of a deque, which Python does not interrupt:
    a callback never makes the loop wait for a lock.
    """

    def __init__(self) -> None:
        self._items: deque[object] = deque()
        self._teleop: Teleop | None = None
        self._deadman: Deadman | None = None
        self._publishers = ''

    def put(self, item: object) -> None:
        """Leave a step, an event, an e-stop or a request, in their order."""
        self._items.append(item)

    def drive(self, teleop: Teleop) -> None:
        """Replace a person's command."""
        self._teleop = teleop

    def press(self, deadman: Deadman) -> None:
        """Replace the deadman switch's state."""
        self._deadman = deadman

    def see_publishers(self, problem: str) -> None:
        """Say who else commands; '' for nobody."""
        self._publishers = problem

    def take(self) -> tuple[list[object], Latest]:
        """Return what came since the last call, and the newest of the rest."""
        items = [self._items.popleft() for _ in range(len(self._items))]
        return items, Latest(self._teleop, self._deadman, self._publishers)
