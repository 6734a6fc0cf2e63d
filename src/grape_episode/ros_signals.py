"""Ctrl-C and SIGTERM as a request, so that a node can finish its episode and say so.

rclpy's own handlers shut the context down at once, after which nothing can be published any more,
and a KeyboardInterrupt may fall into the middle of a write.
"""

from __future__ import annotations

import signal
import threading


def stop_on_signal() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; a second one of either kills.

    Call it on the main thread, with `rclpy.init(signal_handler_options=SignalHandlerOptions.NO)`.
    """
    stop = threading.Event()

    def request(*_: object) -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request)
    return stop
