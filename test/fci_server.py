"""The Franka Control Interface simulator on one loopback address (runs in .venv-franka-sim).

    .venv-franka-sim/bin/python test/fci_server.py 127.0.0.2 [--comm]

Its own command line binds all addresses of the machine. The FCI's port 1337 is fixed in every
client, so servers side by side need addresses of their own. `--comm` also enforces the limits on
lost packets, which a busy machine can break by itself. SIGUSR1 is a push against the arm: the
simulator has no contact forces, so it takes the reflex of one from here.
"""

import argparse
import logging
import os
import signal
import threading

from franka_sim import FrankaSimServer

END_S = 5.0  # after which a server that does not stop is ended
CARTESIAN_REFLEX = 7  # research_interface::robot::Error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('host')
    parser.add_argument('--comm', action='store_true')
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    server = FrankaSimServer(
        host=options.host,
        enable_gripper=False,
        enforce_motion_limits=True,
        enforce_comm_constraints=options.comm,
    )

    def stop(*_: object) -> None:
        threading.Thread(target=server.stop, daemon=True).start()
        threading.Timer(END_S, lambda: os._exit(0)).start()

    def push(*_: object) -> None:
        server._abort_with_error(CARTESIAN_REFLEX, 'a push against the arm')

    signal.signal(signal.SIGUSR1, push)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.start()


if __name__ == '__main__':
    main()
