"""Many recorders in a row, each a process that can be killed, without importing it all each time.

    python test/recorder_forks.py

A line on stdin, a JSON list of arguments, forks a recorder with them; its process id goes to
stdout. Nothing of rclpy runs in the parent.
"""

import json
import os
import signal
import sys

from grape_episode import recorder_node


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    sys.stdout.write('ready\n')
    sys.stdout.flush()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sys.argv[1:] = json.loads(line)
            recorder_node.main()
            os._exit(0)
        sys.stdout.write(f'{pid}\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
