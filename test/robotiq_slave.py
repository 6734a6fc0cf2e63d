"""A Robotiq 2F on the other end of a serial line: a Modbus RTU slave on a pty, with faults.

It knows function codes 3, 4, 6, 16 and 23, unit 9, the six registers, an activation that takes
`ACTIVATION_S`, fingers of 20 to 150 mm/s over a stroke of 85 mm, and an object between them.
"""

import os
import pty
import select
import struct
import threading
import time
import tty
from pathlib import Path

UNIT = 9
OUTPUTS, INPUTS = 1000, 2000  # register numbers: what the master wants, what the gripper says
ACTIVATION_S = 0.3
STROKE_MM, SLOWEST_MM_S, FASTEST_MM_S = 85.0, 20.0, 150.0


def crc16(data: bytes) -> bytes:
    """Modbus's checksum, low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return struct.pack('<H', crc)


class Fingers:
    """The gripper itself: registers and motion."""

    def __init__(self, object_at=None, closed_at=255):
        self.wanted = [0, 0, 0]
        self.position = 0.0
        self.object_at, self.closed_at = object_at, closed_at
        self.fault = 0  # gFLT
        self.moves = []  # every position request, also one that was written again
        self.activations = 0
        self._object_state = 0  # gOBJ
        self._active_since = None
        self._then = time.monotonic()

    @property
    def is_active(self):
        return self._active_since is not None and self._then - self._active_since >= ACTIVATION_S

    def power_cycle(self):
        """Lose the power and get it back: not activated any more."""
        self.wanted, self._active_since = [0, 0, 0], None

    def read(self, address, count):
        self._advance()
        if address < INPUTS:
            registers, first = self.wanted, OUTPUTS
        else:
            go, active = self.wanted[0] >> 11 & 1, self.wanted[0] >> 8 & 1
            state = 3 if self.is_active else (1 if active else 0)
            status = self._object_state << 6 | state << 4 | go << 3 | active
            request = self.wanted[1] & 0xFF
            registers, first = (
                [status << 8, self.fault << 8 | request, int(self.position) << 8],
                INPUTS,
            )
        return [(registers + [0] * 16)[address - first + i] for i in range(count)]

    def write(self, address, values):
        self._advance()
        for i, value in enumerate(values):
            if 0 <= address - OUTPUTS + i < 3:
                self.wanted[address - OUTPUTS + i] = value
        if self.wanted[0] >> 8 & 1 and address <= OUTPUTS + 1 < address + len(values):
            self.moves.append(self.wanted[1] & 0xFF)
        if not self.wanted[0] >> 8 & 1:
            self._active_since, self._object_state, self.fault = None, 0, 0  # a reset

    def _advance(self):
        now = time.monotonic()
        passed, self._then = now - self._then, now
        if not self.wanted[0] >> 8 & 1:
            return
        if self._active_since is None:
            self._active_since = now
            self.activations += 1
        if not (self.is_active and self.wanted[0] >> 11 & 1):
            return
        target = min(self.wanted[1] & 0xFF, self.closed_at)
        speed = SLOWEST_MM_S + (FASTEST_MM_S - SLOWEST_MM_S) * (self.wanted[2] >> 8) / 255
        reach = speed / STROKE_MM * 255 * passed
        blocked = self.object_at is not None and target > self.object_at
        end = self.object_at if blocked else target
        if abs(end - self.position) <= reach:
            self.position = float(end)
            self._object_state = 2 if blocked else 3
        else:
            self.position += reach if end > self.position else -reach
            self._object_state = 0


class RobotiqSlave:
    """Fingers at a serial line whose name is a link, as udev makes it for a USB adapter."""

    def __init__(self, link: Path, **fingers):
        self.link = link
        self.fingers = Fingers(**fingers)
        self.dropped = 0  # how many of the next replies get lost
        self.is_silent = False  # the gripper has no power; the adapter is still there
        self._stop = threading.Event()
        self.plug_in()

    def plug_in(self):
        """Connect the adapter."""
        self._stop = threading.Event()
        self._master, self._slave = pty.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.ttyname(self._slave))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def unplug(self):
        """Pull the adapter out: the port is gone, and who has it open gets an error."""
        self._stop.set()
        self._thread.join()
        self.link.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)

    def _serve(self):
        waiting = b''
        while not self._stop.is_set():
            if not select.select([self._master], [], [], 0.02)[0]:
                continue
            waiting += os.read(self._master, 256)
            while (length := _frame_length(waiting)) and len(waiting) >= length:
                frame, waiting = waiting[:length], waiting[length:]
                if crc16(frame[:-2]) != frame[-2:]:
                    waiting = b''
                    break
                self._reply(frame)

    def _reply(self, frame):
        if self.is_silent or frame[0] != UNIT:
            return
        body = self._handle(frame)
        if self.dropped > 0:
            self.dropped -= 1
            return
        os.write(self._master, body + crc16(body))

    def _handle(self, frame):
        code = frame[1]
        if code in (3, 4):
            return self._answer(code, *struct.unpack('>HH', frame[2:6]))
        if code == 6:
            address, value = struct.unpack('>HH', frame[2:6])
            self.fingers.write(address, [value])
            return frame[:6]
        if code == 16:
            address, count, _ = struct.unpack('>HHB', frame[2:7])
            self.fingers.write(address, struct.unpack(f'>{count}H', frame[7 : 7 + 2 * count]))
            return frame[:6]
        if code == 23:
            at, count, to, number, _ = struct.unpack('>HHHHB', frame[2:11])
            self.fingers.write(to, struct.unpack(f'>{number}H', frame[11 : 11 + 2 * number]))
            return self._answer(code, at, count)
        return bytes([UNIT, code | 0x80, 1])

    def _answer(self, code, address, count):
        registers = self.fingers.read(address, count)
        return bytes([UNIT, code, 2 * count]) + struct.pack(f'>{count}H', *registers)


def _frame_length(data):
    """The length of the request that begins here; None when that is not known yet."""
    if len(data) < 2:
        return None
    if data[1] == 16:
        return 9 + data[6] if len(data) > 6 else None
    if data[1] == 23:
        return 13 + data[10] if len(data) > 10 else None
    return 8
