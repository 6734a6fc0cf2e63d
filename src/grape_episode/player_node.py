"""The player node: sends a recorded episode again, as if it happened now.

`ros2 bag play` sends a START and goes on; this player waits for the recorder's READY and, after
STOP, for its RECORDED, so that no message is lost at either end. Messages are sent as the bytes
that were recorded. What the recorder itself said in the bag is left out: the running one speaks
for itself.

    python -m grape_episode.player_node --ros-args -p bag:=DIR -p rate:=2.0
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rclpy
from grape.msg import EpisodeEvent
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from grape_episode.bag_folder import BagError, open_bag, read_info
from grape_episode.contract import Contract
from grape_episode.recorder_node import SOURCE as RECORDER
from grape_episode.ros_qos import qos_profile
from grape_episode.ros_signals import stop_on_signal

GUARD = 'guard_node'
DISCOVERY_S = 1.0  # nodes that are there are known by then
POLL_S = 0.05


class PlayerError(RuntimeError):
    """The episode cannot be played; the text says why."""


@dataclass(frozen=True)
class PlayerConfig:
    """The node's parameters.

    Attributes:
        bag: folder of one episode; required.
        rate: speed, 1 is as it was recorded.
        timeout_s: how long to wait for the recorder: to be there, READY, RECORDED.

    """

    bag: str = ''
    rate: float = 1.0
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.bag:
            raise ValueError("parameter 'bag' is empty; expected the folder of one episode")
        if self.rate <= 0 or self.timeout_s <= 0:
            raise ValueError(
                f'rate is {self.rate} and timeout_s is {self.timeout_s}; expected more than 0'
            )


class PlayerNode(Node):
    """Publishes one bag's messages at their times."""

    def __init__(self) -> None:
        """Open the topics of the bag's own contract.

        Raises:
            ValueError: a parameter, or the bag, cannot be used.

        """
        super().__init__('player_node')
        defaults = {n: f.default for n, f in PlayerConfig.__dataclass_fields__.items()}
        values = {n: self.declare_parameter(n, value).value for n, value in defaults.items()}
        self.config = PlayerConfig(**values)
        self._bag = Path(self.config.bag)
        info = read_info(self._bag)
        contract = Contract.from_dict(info.contract, str(self._bag))
        self._episode_id = info.episode_id
        self._event_topic = contract.topic('episode_event')
        self._heard: dict[int, str] = {}  # what the recorder said, kind -> detail
        self._topics = {}
        for topic in contract.topics:
            package, _, name = topic.type.split('/')
            kind = getattr(importlib.import_module(f'{package}.msg'), name)
            self._topics[topic.name] = self.create_publisher(kind, topic.name, qos_profile(topic))
        self.create_subscription(
            EpisodeEvent, self._event_topic.name, self._hear, qos_profile(self._event_topic)
        )

    def play(self, is_stopped: Callable[[], bool]) -> str:
        """Send the episode; return the bag that the recorder made of it.

        Raises:
            PlayerError: nobody records, or the recorder refuses; BagError: the bag is broken.

        """
        self._wait(self._is_recorder_there, 'recorder on every topic', is_stopped)
        self._wait_until(time.monotonic() + DISCOVERY_S, is_stopped)  # `_check` looks for guards
        began, first = time.monotonic(), None
        for topic, time_ns, cdr in self._messages():
            first = time_ns if first is None else first
            due = began + (time_ns - first) / 1e9 / self.config.rate
            self._wait_until(due, is_stopped)
            self._topics[topic].publish(cdr)
            if topic == self._event_topic.name:
                kind = deserialize_message(cdr, EpisodeEvent).kind
                if kind == EpisodeEvent.START:
                    self._wait(lambda: EpisodeEvent.READY in self._heard, 'READY', is_stopped)
                    began, first = time.monotonic(), time_ns
        self._wait(lambda: EpisodeEvent.RECORDED in self._heard, 'RECORDED', is_stopped)
        return self._heard[EpisodeEvent.RECORDED]

    def _messages(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, recorded time in ns, bytes), the instruction and START first."""
        early, late = [], []
        with open_bag(self._bag) as reader:
            chosen = [c for c in reader.connections if c.topic in self._topics]
            for connection, time_ns, cdr in reader.messages(connections=chosen):
                if connection.topic != self._event_topic.name:
                    late.append((connection.topic, time_ns, bytes(cdr)))
                    continue
                event = deserialize_message(bytes(cdr), EpisodeEvent)
                if event.source != RECORDER:
                    is_start = event.kind == EpisodeEvent.START
                    (early if is_start else late).append((connection.topic, time_ns, bytes(cdr)))
        if len(early) != 1:
            raise BagError(f"'{self._bag}' has {len(early)} START events; expected 1.")
        latched = [m for m in late if m[1] <= early[0][1]]
        yield from latched + early + late[len(latched) :]

    def _hear(self, event: EpisodeEvent) -> None:
        if event.source == RECORDER and event.episode_id == self._episode_id:
            self._heard[event.kind] = event.detail

    def _is_recorder_there(self) -> bool:
        return all(p.get_subscription_count() > 0 for p in self._topics.values())

    def _wait_until(self, due: float, is_stopped: Callable[[], bool]) -> None:
        while (left := due - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=min(left, POLL_S))
            self._check(is_stopped)

    def _wait(
        self, condition: Callable[[], bool], what: str, is_stopped: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + self.config.timeout_s
        while not condition():
            rclpy.spin_once(self, timeout_sec=POLL_S)
            self._check(is_stopped)
            if time.monotonic() > deadline:
                raise PlayerError(
                    f'no {what} within {self.config.timeout_s:g} s; is a recorder_node with the '
                    "bag's contract running in this ROS domain?"
                )

    def _check(self, is_stopped: Callable[[], bool]) -> None:
        if is_stopped():
            raise PlayerError('stopped before the end of the episode')
        if GUARD in self.get_node_names():
            raise PlayerError(
                f'{GUARD} is running in this ROS domain: the steps of the bag would be commands '
                'to its arm. Replay in a domain of its own (ROS_DOMAIN_ID).'
            )
        if EpisodeEvent.ERROR in self._heard:
            raise PlayerError(f'the recorder refused: {self._heard[EpisodeEvent.ERROR]}')


def main() -> None:
    """Play one bag; exit 1 where that fails."""
    stop = stop_on_signal()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    log = rclpy.logging.get_logger('player_node')
    try:
        node = PlayerNode()
        log.info(f'{node.config.bag} was recorded again: {node.play(stop.is_set)}')
    except (ValueError, PlayerError, ParameterException) as error:
        log.error(str(error))
        sys.exit(1)
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
