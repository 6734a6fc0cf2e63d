"""How a node's process begins and ends: made, or ended with the reason; spun; shut down last."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

UNUSABLE = (ValueError, RuntimeError, ImportError, OSError, ParameterException)

AnyNode = TypeVar('AnyNode', bound=Node)


@contextmanager
def made(
    make: Callable[[], AnyNode], name: str, args: list[str] | None = None
) -> Iterator[tuple[AnyNode, SingleThreadedExecutor]]:
    """Make a node and its executor; shut rclpy down after the block.

    Signals are left to `stop_on_signal` (ros_signals.py), which is called before this.

    Raises:
        SystemExit: 1, after the reason was logged: a parameter, or something that it names,
            cannot be used.

    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make()
    except UNUSABLE as error:
        rclpy.logging.get_logger(name).error(str(error))
        rclpy.try_shutdown()
        sys.exit(1)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        rclpy.try_shutdown()
