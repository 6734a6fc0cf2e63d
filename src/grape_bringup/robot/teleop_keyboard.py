"""A terminal as a teleop device: hold a key to move, let go to give the arm back.

A terminal reports key presses and, while a key is held, repeats; never a release, and only of
the key that was pressed last. So each event moves the arm for a moment (motion_s) and keeps the
person engaged for a longer one (engage_s): a tap is a small step, a held key is a step, the pause
before the terminal repeats, and then steady motion; half a second after the release the policy
has the arm again. It works over ssh; a dropped connection ends it like a release.
"""

from __future__ import annotations

import math
import os
import termios
import tty

import numpy as np

from grape_bringup.robot.teleop_command import Command, DeviceLostError
from grape_bringup.robot.teleop_config import AXES, KeyboardConfig

NAMES = {
    ' ': 'space',
    '\r': 'enter',
    '\n': 'enter',
    '\x7f': 'backspace',
    '\b': 'backspace',
    '\x1b': 'escape',
    '\t': 'tab',
    '\x1b[A': 'up',
    '\x1b[B': 'down',
    '\x1b[C': 'right',
    '\x1b[D': 'left',
}
READ_BYTES = 1024


class KeyboardTeleop:
    """Key events with their times -> the command now."""

    def __init__(self, config: KeyboardConfig) -> None:
        self._config = config
        self._action = ''  # of the newest key
        self._at_s = -math.inf
        self._opening = math.nan

    def press(self, key: str, now_s: float) -> str:
        """Take a key event; return the service that it calls, '' for none."""
        action = self._config.keys.get(key, '')
        if action:
            self._action, self._at_s = action, now_s
            if action in ('open', 'close'):
                self._opening = 1.0 if action == 'open' else 0.0
        return self._config.services.get(key, '')

    def command(self, now_s: float) -> Command:
        """Return the command at a moment (monotonic)."""
        since_s = now_s - self._at_s
        if since_s > self._config.engage_s:
            self._opening = math.nan
            return Command(False)
        speeds = np.zeros(len(AXES))
        if since_s <= self._config.motion_s and self._action[0] in '+-':
            speeds[AXES.index(self._action[1:])] = 1.0 if self._action[0] == '+' else -1.0
        return Command(True, speeds[:3], speeds[3:], self._opening)


class Terminal:
    """A terminal without line editing or echo, for as long as the block lasts."""

    def __init__(self, descriptor: int) -> None:
        """Take a terminal's file descriptor.

        Raises:
            DeviceLostError: it is no terminal.

        """
        if not os.isatty(descriptor):
            raise DeviceLostError(
                'the keyboard device needs a terminal on its standard input; run `grape teleop` '
                'in one, or choose --device spacemouse or joy'
            )
        self._descriptor = descriptor

    def __enter__(self) -> Terminal:
        """Switch the terminal over; Ctrl-C keeps its meaning."""
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        os.set_blocking(self._descriptor, False)
        return self

    def __exit__(self, *_: object) -> None:
        """Put it back as it was, if it is still there."""
        try:
            os.set_blocking(self._descriptor, True)
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
        except (termios.error, OSError):
            return

    def keys(self) -> list[str]:
        """Return the key events since the last call.

        Raises:
            DeviceLostError: the terminal was closed.

        """
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise DeviceLostError(f'the terminal is gone ({error.strerror})') from error
        if not data:
            raise DeviceLostError('the terminal was closed')
        return split_keys(data.decode(errors='replace'))


def split_keys(text: str) -> list[str]:
    """Return the names of the keys that a terminal sent as one text."""
    found, at = [], 0
    while at < len(text):
        sequence = text[at : at + 3]
        size = 3 if sequence in NAMES else 1
        key = text[at : at + size]
        found.append(NAMES.get(key, key))
        at += size
    return found
