"""Franka's robot modes and errors as ArmMode."""

from __future__ import annotations

from grape_bringup.robot.arm import ArmMode

ROBOT_MODES = (  # FrankaRobotState.robot_mode counts them; franka-rs names them so
    'other',
    'idle',
    'move',
    'guiding',
    'reflex',
    'user_stopped',
    'automatic_error_recovery',
)
_MODES = {
    'other': ArmMode.STOPPED,  # brakes closed, or the FCI is not active in Desk
    'idle': ArmMode.READY,
    'move': ArmMode.READY,
    'guiding': ArmMode.GUIDED,
    'reflex': ArmMode.REFLEX,
    # A user stop sets no error: only the mode tells.
    'user_stopped': ArmMode.STOPPED,
    'automatic_error_recovery': ArmMode.RECOVERING,
}


def arm_mode(robot_mode: str, errors: tuple[str, ...]) -> ArmMode:
    """Return what a robot mode means for whoever commands the arm.

    Args:
        robot_mode: one of ROBOT_MODES; an unknown one counts as stopped.
        errors: names of the active errors; with one, the arm takes no targets.

    """
    mode = _MODES.get(robot_mode, ArmMode.STOPPED)
    return ArmMode.REFLEX if errors and mode is ArmMode.READY else mode


def robot_mode_name(number: int) -> str:
    """Return the name of FrankaRobotState's robot_mode."""
    return ROBOT_MODES[number] if 0 <= number < len(ROBOT_MODES) else f'unknown ({number})'


class FrankaStatus:
    """What the robot last said of itself, and how that reads once it has fallen silent.

    A reflex deactivates the broadcaster of the state too: what was heard last is then the reflex,
    and silence does not make it a lost robot.
    """

    def __init__(self, topic: str, timeout_s: float) -> None:
        self._topic = topic
        self._timeout_s = timeout_s
        self._heard_s: float | None = None
        self.robot_mode = ''  # one of ROBOT_MODES; empty before the first message
        self.errors: tuple[str, ...] = ()

    def hear(self, robot_mode: str, errors: tuple[str, ...], now_s: float) -> float:
        """Take a message; returns how long it was silent before."""
        silent_s = now_s - self._heard_s if self._heard_s is not None else 0.0
        self.robot_mode, self.errors, self._heard_s = robot_mode, errors, now_s
        return silent_s

    def is_fresh(self, now_s: float) -> bool:
        """Whether the last message is young enough to act on."""
        return self._heard_s is not None and now_s - self._heard_s <= self._timeout_s

    def read(self, now_s: float) -> tuple[ArmMode, tuple[str, ...]]:
        """Return the mode and the names of the errors now."""
        mode = arm_mode(self.robot_mode, self.errors)
        if self.is_fresh(now_s):
            return mode, self.errors
        if self._heard_s is None:
            return ArmMode.LOST, (f'nothing heard on {self._topic} yet',)
        silence = f'nothing heard on {self._topic} for {now_s - self._heard_s:.1f} s'
        is_reflex = mode is ArmMode.REFLEX
        return (ArmMode.REFLEX if is_reflex else ArmMode.LOST), (*self.errors, silence)
