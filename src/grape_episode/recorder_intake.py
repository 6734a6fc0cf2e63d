"""What arrives on one topic: counted, and what did not arrive counted too.

DDS numbers a publisher's messages. A gap is a message that was sent and lost on the way (best
effort, or more than the queue holds); a number seen before is the same message heard twice, while
one subscription takes over from another (recorder_topics.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from grape_episode.measured import Measured, Rate

REMEMBERED = 4096  # missing numbers a publisher that may still come late


@dataclass(frozen=True)
class Arrival:
    """What the middleware says of a message.

    Attributes:
        publisher: its global identifier; None where rclpy does not tell (Jazzy).
        number: of the publisher's messages; None where the middleware does not count.
        sent_ns, received_ns: wall clock of the two machines; 0: unknown.

    """

    publisher: bytes | None
    number: int | None
    sent_ns: int = 0
    received_ns: int = 0


@dataclass
class _Publisher:
    """What is known of the messages of one publisher."""

    last: int
    missing: set[int] = field(default_factory=set)


class TopicIntake:
    """Counts one topic's messages, from the node's start on."""

    def __init__(self) -> None:
        self.heard: set[bytes] = set()  # publishers since `begin`
        self.rate = Rate()
        self.transport = Measured('transport_ms')
        self._publishers: dict[bytes, _Publisher] = {}
        self._lost = 0
        self._reported_lost = 0  # by the middleware, where nothing can be counted
        self._at_begin = 0

    @property
    def lost(self) -> int:
        """Messages that were sent and never came, of all publishers, since the start."""
        return self._lost if self._publishers else self._reported_lost

    def begin(self) -> None:
        """Begin an episode."""
        self._at_begin = self.lost
        self.heard.clear()

    def lost_since_begin(self) -> int:
        """Return how many messages were lost since the episode began."""
        return self.lost - self._at_begin

    def report_lost(self, count: int) -> None:
        """Take the middleware's own count of lost messages."""
        self._reported_lost += count

    def take(self, arrival: Arrival) -> bool:
        """Count a message; False where it was here already."""
        if arrival.publisher is None or arrival.number is None:
            self._count(arrival)
            return True
        known = self._publishers.get(arrival.publisher)
        if known is None:  # what it sent before it was found is not lost
            self._publishers[arrival.publisher] = _Publisher(arrival.number)
        elif arrival.number > known.last:
            gap = range(known.last + 1, arrival.number)
            self._lost += len(gap)
            known.missing.update(gap[-REMEMBERED:])
            known.last = arrival.number
        elif arrival.number in known.missing:
            known.missing.remove(arrival.number)
            self._lost -= 1
        else:
            return False
        self._count(arrival)
        return True

    def _count(self, arrival: Arrival) -> None:
        self.rate.take()
        if arrival.publisher is not None:
            self.heard.add(arrival.publisher)
        if arrival.sent_ns and arrival.received_ns >= arrival.sent_ns:
            self.transport.take((arrival.received_ns - arrival.sent_ns) / 1e6)
