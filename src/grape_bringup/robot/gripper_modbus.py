"""A Robotiq 2F over Modbus RTU (`pyrobotiqgripper`), in a thread of its own.

A thread, because an exchange with a gripper that does not answer blocks for 4 s (three retries of
1 s) and then raises pymodbus's error, not the package's own. `state()` says so after `stale_s`.

Activation lets the fingers travel. It is done at the start, and from then on only by `recover`:
a gripper that lost its power, or is in a fault, stays as it is until somebody asks. So does one
whose line was lost and is back: commands of the time between are dropped.

Register names are those of Robotiq's manual of the 2F-85 (Modbus RTU, "Register mapping").
"""

from __future__ import annotations

import threading
import time

from pymodbus.exceptions import ModbusException
from pyrobotiqgripper import RobotiqGripper
from pyrobotiqgripper.exceptions import GripperTimeoutError, RobotiqGripperError
from rclpy.impl.rcutils_logger import RcutilsLogger

from grape_bringup.robot.gripper import GripperState
from grape_bringup.robot.gripper_command import KeptState, NewestCommand
from grape_bringup.robot.gripper_config import ModbusGripper

ACTIVE = 3  # gSTA
AT_OBJECT = (1, 2)  # gOBJ: stopped while opening, while closing
FAULTS = {  # gFLT
    0x05: 'the action waits for an activation',
    0x07: 'it is not activated',
    0x08: 'it is too hot (above 85 degrees Celsius); let it cool',
    0x09: 'no communication for a second',
    0x0A: 'the supply voltage is too low',
    0x0B: 'it releases automatically',
    0x0C: 'internal fault',
    0x0D: 'the activation failed; see that the fingers are free',
    0x0E: 'the current is too high',
    0x0F: 'it released automatically',
}
PASSING = (0x08, 0x09)  # these end by themselves, and leave the activation as it is
LINE_ERRORS = (ModbusException, RobotiqGripperError, OSError)  # serial errors are OSErrors
CLOSE_S = 1.0


class GripperModbus:
    """A GripperOutput; see robot/gripper.py."""

    def __init__(self, config: ModbusGripper, logger: RcutilsLogger) -> None:
        """Begin to connect."""
        self._config = config
        self._logger = logger
        self._commands = NewestCommand(config.min_change)
        self._kept = KeptState(
            config.stale_s, lambda long: f'no answer from the gripper at {config.where} {long}'
        )
        self._may_activate = config.activate_at_start
        self._needs_recovery = ''  # why, until recover() is called
        self._recover = threading.Event()
        self._stop = threading.Event()
        self._asked_counts: int | None = None
        self._thread = threading.Thread(target=self._run, name='gripper', daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str:
        """What is wrong now, also before the first state; empty while it works."""
        return self._kept.fault

    def state(self) -> GripperState | None:
        """Return the latest state; None before the first one."""
        return self._kept.get()

    def command(self, opening: float) -> None:
        """Ask for an opening; dropped while the line is lost or the gripper in a fault.

        Raises:
            GripperError: not a number from 0 to 1.

        """
        self._commands.offer(opening)

    def recover(self) -> None:
        """Begin to clear a fault by an activation: the fingers travel."""
        self._recover.set()

    def close(self) -> None:
        """End the thread; the gripper stays as it is."""
        self._stop.set()
        self._thread.join(CLOSE_S)  # it may hang in a lost exchange; it is a daemon

    def _run(self) -> None:
        wait_s = self._config.reconnect_s
        while not self._stop.is_set():
            gripper = None
            try:
                gripper = self._connect()
                wait_s = self._config.reconnect_s
                self._serve(gripper)
            except LINE_ERRORS as error:
                self._lose(error)
            finally:
                self._commands.block()
                if gripper is not None:
                    gripper.disconnect()
            self._stop.wait(wait_s)
            wait_s = min(2 * wait_s, self._config.reconnect_max_s)

    def _connect(self) -> RobotiqGripper:
        config = self._config
        return RobotiqGripper(
            com_port=config.port,
            device_id=config.device_id,
            connection_type=config.connection,
            tcp_host=config.tcp_host,
            tcp_port=config.tcp_port,
            baudrate=config.baudrate,
        )

    def _lose(self, error: Exception) -> None:
        first_line = (str(error).splitlines() or [''])[0]
        fault = (
            f'the gripper at {self._config.where} is lost ({type(error).__name__}: {first_line}); '
            'see its power, its cable and who else has the port open'
        )
        if self._kept.set_fault(fault):
            self._logger.error(fault)

    def _serve(self, gripper: RobotiqGripper) -> None:
        """Exchange with a connected gripper until it is lost or the output is closed."""
        self._logger.info(f'gripper: connected at {self._config.where}')
        self._recover.clear()  # who asked a lost gripper to recover does not mean this one
        while not self._stop.is_set():
            if self._recover.is_set() or (self._may_activate and not self._is_active(gripper)):
                self._activate(gripper)
            self._may_activate = False
            self._take_status(gripper.status(refreshStatus=False))
            opening = None if self._kept.fault else self._commands.take()
            if opening is not None:
                self._move(gripper, opening)
            gripper.readStatus(raiseOnFault=False)
            self._stop.wait(1.0 / self._config.poll_hz)

    def _is_active(self, gripper: RobotiqGripper) -> bool:
        return bool(gripper.isActivated(refreshStatus=False))

    def _activate(self, gripper: RobotiqGripper) -> None:
        self._commands.block()
        self._recover.clear()
        self._kept.set_fault('it is being activated; the fingers travel')
        self._asked_counts = None
        try:
            gripper.activate(reset=True, start=False)
        except GripperTimeoutError as error:
            self._needs_recovery = f'{error} See that the fingers are free, then recover'
        else:
            self._needs_recovery = ''
            self._logger.info('gripper: activated')

    def _move(self, gripper: RobotiqGripper, opening: float) -> None:
        config = self._config
        self._asked_counts = config.to_counts(opening)
        gripper.move(
            self._asked_counts,
            config.speed,
            config.force,
            wait=False,
            readStatus=False,
            start=True,
        )

    def _take_status(self, status: dict[str, float]) -> None:
        code = int(status['gFLT'])
        text = f'gripper fault 0x{code:02X}: {FAULTS.get(code, "see its manual")}' if code else ''
        if code and code not in PASSING:
            self._needs_recovery = f'{text}; recover re-activates it, and the fingers travel'
        elif int(status['gSTA']) != ACTIVE and not self._needs_recovery:
            self._needs_recovery = (
                'the gripper is not activated (it lost its power, or was reset); recover '
                'activates it, and the fingers travel'
            )
        fault = self._needs_recovery or text
        # Before it is said: who sees a gripper without a fault may command it.
        self._commands.block() if fault else self._commands.unblock()
        # An answer about the move before says nothing of the object that this one meets.
        is_own = self._asked_counts is None or int(status['gPR']) == self._asked_counts
        self._kept.put(
            GripperState(
                opening=self._config.to_opening(status['gPO']),
                is_holding=is_own and not fault and int(status['gOBJ']) in AT_OBJECT,
                stamp_s=time.monotonic(),
            )
        )
        if self._kept.set_fault(fault):
            self._logger.error(fault) if fault else self._logger.info('gripper: ready')
