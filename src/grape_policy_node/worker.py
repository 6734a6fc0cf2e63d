"""A thread that works on the newest item only: what comes while it is busy replaces what waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar('Item')


class NewestWorker(Generic[Item]):
    """Hands the newest item to a function on one thread of its own."""

    def __init__(self, work: Callable[[Item], None], name: str) -> None:
        """Start the thread; ``work`` must not raise."""
        self.replaced = 0  # items that never reached the function
        self._work = work
        self._slot: list[Item] = []
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Offer an item; one that still waits is dropped."""
        with self._changed:
            self.replaced += len(self._slot)
            self._slot[:] = [item]
            self._changed.notify()

    def stop(self) -> None:
        """Finish the item in progress, drop the one that waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._slot and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                item = self._slot.pop()
            self._work(item)
