"""Timers that go on when somebody sets the clock.

A timer of rclpy follows the node's clock, which is the wall clock: when that is set back by an
hour (NTP at the wrong moment, a person), the timer stands still for an hour, and with it
heartbeats, watchdogs and deadlines.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.timer import Timer


def steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Timer:
    """Return a timer of the monotonic clock."""
    return node.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))
