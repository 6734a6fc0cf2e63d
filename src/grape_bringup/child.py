"""Run a module in a process that does not outlive the one that started it.

    python -m grape_bringup.child PARENT_PID MODULE [ARGUMENTS...]

A killed command line (SIGKILL, closed terminal, out of memory) can end nobody. Its nodes notice
within half a second, end as on Ctrl-C (the recorder closes its bag), and by force after ten.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

POLL_S = 0.5
GRACE_S = 10.0


def main() -> None:
    """Start the watch, then become the module."""
    parent, module, *arguments = sys.argv[1:]
    # What a Ray worker starts inherits that SIGINT is blocked there.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_watch, args=(int(parent),), name='parent_watch', daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == '__main__':
    main()
