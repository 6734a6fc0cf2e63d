"""An arm by the Franka Control Interface itself: franka-rs, without a ROS driver.

The 1 kHz loop is a thread of the library that never waits for Python. `send` writes the newest
target into it (30 us) and the library leads the arm there within its budget of velocity,
acceleration and jerk. Whatever waits for the robot (connecting, reading the state, starting and
stopping a motion, error recovery) is done on one worker thread here.

A motion that ended in any way but ours leaves a fault that only `recover` clears, also after the
connection came back: nothing resumes by itself.

The library waits without end for a robot that takes a request and does not answer it. `recover`
replaces a worker that is stuck so, and it does not keep the process from ending.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmError, ArmMode, ArmState, ArmTarget, Pose
from grape_bringup.robot.arm_command import HoldPoint, check_ready, checked
from grape_bringup.robot.arm_config import FciConfig
from grape_bringup.robot.franka_modes import arm_mode

STATE_PERIOD_S = 0.01
JOINTS = tuple(f'fr3_joint{number}' for number in range(1, 8))
STUCK_S = 5.0  # without a sign of life from the worker
EXIT_S = 3.0  # for the motion to come to rest when the process ends


def load_franka() -> Any:
    """Return franka-rs's module.

    Raises:
        ArmError: it is not installed.

    """
    try:
        import franka
    except ImportError as error:
        raise ArmError(
            f"arm 'fci' needs franka-rs ({error}): pip install -c constraints.txt '.[robot]'"
        ) from error
    return franka


class FciOutput:
    """ArmOutput over a robot's network address."""

    def __init__(self, config: FciConfig, logger: RcutilsLogger) -> None:
        """Begin to connect.

        Raises:
            ArmError: franka-rs is not installed.

        """
        self._franka = load_franka()
        self._config, self._logger = config, logger
        self._lock = threading.Lock()  # of all below; held for moments only
        self._closing = threading.Event()
        self._state: ArmState | None = None
        self._problem = f'not connected to {config.host} yet'
        self._fault = ''  # why a motion ended, or did not begin; until recover()
        self._wants_recovery = False
        self._motion: Any = None
        self._first: Pose | None = None  # the target that a motion is to begin with
        self._hold = HoldPoint()
        self._robot_time_s = -1.0
        self._joints_rad: np.ndarray | None = None  # (7,)
        self.success_rate = 0.0  # of the last 100 control commands, as the robot counts
        self.sent = 0  # poses given to the library
        self.commanded: Pose | None = None  # the last of them
        self._start_worker()
        atexit.register(self.join, EXIT_S)

    def joints(self) -> tuple[tuple[str, ...], np.ndarray] | None:
        """Return the joints' names and positions, rad; None before the first state."""
        with self._lock:
            return None if self._joints_rad is None else (JOINTS, self._joints_rad)

    # ArmOutput

    def state(self) -> ArmState | None:
        """Return what the robot last said; LOST once that is too old."""
        with self._lock:
            state, fault, problem = self._state, self._fault, self._problem
            recovering = self._wants_recovery
        if state is None:
            return None
        age_s = time.monotonic() - state.stamp_s
        mode, errors = state.mode, state.errors
        if age_s > self._config.state_timeout_s:
            mode, errors = ArmMode.LOST, (problem or f'no state for {age_s:.1f} s',)
        elif recovering:
            mode = ArmMode.RECOVERING
        elif fault and mode is ArmMode.READY:
            mode = ArmMode.REFLEX
        return ArmState(state.pose, mode, state.stamp_s, (*errors, *((fault,) if fault else ())))

    def send(self, target: ArmTarget) -> None:
        """Lead the arm to a target; the first one starts the motion.

        Raises:
            ArmError: it is not finite, or the arm takes none.

        """
        target = checked(target)
        check_ready(self.state())
        with self._lock:
            if self._closing.is_set():
                raise ArmError('the connection to the robot is closed')
            self._hold.sent(target.pose)
            if self._motion is None:
                self._first = target.pose
            else:
                self._move(target.pose)

    def hold(self) -> None:
        """Lead the arm to where it is; nothing if no target was sent."""
        state = self.state()
        with self._lock:
            self._send_hold(state)

    def recover(self) -> None:
        """Have the worker clear the errors; the arm does not move."""
        with self._lock:
            if self._motion is None:
                self._wants_recovery = True
            is_stuck = time.monotonic() - self._alive_s > STUCK_S
            if is_stuck and not self._closing.is_set():
                self._logger.warning(f'{self._config.host} did not answer: connecting again')
                self._start_worker()

    def close(self) -> None:
        """Hold; the worker then ends the motion and the connection."""
        state = self.state()
        with self._lock:
            if not self._closing.is_set():
                self._send_hold(state)
                self._closing.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the connection after close; returns whether it has ended."""
        if self._closing.is_set():
            self._worker.join(timeout_s)
        return not self._worker.is_alive()

    def _send_hold(self, state: ArmState | None) -> None:
        pose = self._hold.hold(state)
        self._first = None
        if pose is not None and self._motion is not None:
            with suppress(ArmError):  # a motion that has ended has stopped
                self._move(pose)

    def _move(self, pose: Pose) -> None:
        try:
            self._motion.move_to([*pose.position_m.tolist(), *pose.quaternion_xyzw.tolist()])
        except self._franka.FrankaError as error:
            raise ArmError(f'the motion has ended: {error}') from error
        self.sent += 1
        self.commanded = pose

    def _start_worker(self) -> None:
        self._alive_s = time.monotonic()
        self._worker = threading.Thread(target=self._run, name='fci', daemon=True)
        self._worker.start()

    # The worker

    def _run(self) -> None:
        while not self._is_over():
            try:
                robot = self._franka.Robot(self._config.host, realtime=self._config.realtime)
                self._serve(robot)
            except Exception as error:  # whatever it is, the worker stays and tries again
                self._lose(error)
                self._closing.wait(self._config.reconnect_s)

    def _is_over(self) -> bool:
        """Whether this worker is to end: all does, or another one has taken its place."""
        self._alive_s = time.monotonic()
        return self._closing.is_set() or self._worker is not threading.current_thread()

    def _wait(self) -> bool:
        """Wait until the next state is due; returns whether to go on."""
        self._closing.wait(STATE_PERIOD_S)
        return not self._is_over()

    def _serve(self, robot: Any) -> None:
        model = robot.model()
        self._take(robot.read_once(), model)
        with self._lock:
            self._problem = ''
        self._logger.info(f'connected to the robot at {self._config.host}')
        self._set_collision_behavior(robot)
        while self._wait():
            with self._lock:
                wants_recovery, first = self._wants_recovery, self._first
            if wants_recovery:
                self._clear(robot)
            elif first is not None:
                self._play(robot, model)
            else:
                self._take(robot.read_once(), model)

    def _play(self, robot: Any, model: Any) -> None:
        """Run one motion to its end."""
        try:
            motion = self._start(robot)
        except self._franka.FrankaError as error:
            self._end(f'the motion did not begin: {error}')
            self._check_connection(error)
            return
        with self._lock:
            self._motion = motion
            first, self._first = self._first, None
            if first is not None:  # hold() takes it back
                with suppress(ArmError):  # of a motion that has ended: said below
                    self._move(first)
        while motion.running and self._wait():
            self._take(motion.state(), model)
        try:
            motion.stop()  # comes to rest at the last target; raises why the loop had ended
        except self._franka.FrankaError as error:
            self._end(f'the motion ended: {error}')
            self._check_connection(error)
        else:
            self._end('' if self._closing.is_set() else 'the motion ended: somebody stopped it')

    def _start(self, robot: Any) -> Any:
        given = self._config
        compliance: dict[str, Any] = {}
        if given.backend == 'impedance':
            compliance = {
                'cartesian_stiffness': given.stiffness_n_m,
                'leash': (given.leash_m, given.leash_rad),
            }
        return robot.cartesian_targets(
            max_velocity=given.max_velocity_m_s,
            max_acceleration=given.max_acceleration_m_s2,
            max_jerk=given.max_jerk_m_s3,
            max_deviation=given.max_deviation_m,
            max_angular_velocity=given.max_angular_velocity_rad_s,
            max_angular_acceleration=given.max_angular_acceleration_rad_s2,
            max_angular_jerk=given.max_angular_jerk_rad_s3,
            max_angular_deviation=given.max_angular_deviation_rad,
            backend=given.backend,
            limit_rate=given.limit_rate,
            **compliance,
        )

    def _clear(self, robot: Any) -> None:
        """Clear the errors, and set the thresholds again while the robot is idle."""
        fault = ''
        try:
            robot.automatic_error_recovery()
        except self._franka.FrankaError as error:
            fault = f'error recovery failed: {error}'
            self._check_connection(error)
        with self._lock:
            self._fault, self._wants_recovery = fault, False
        if fault:
            self._logger.error(fault)
        else:
            self._set_collision_behavior(robot)

    def _set_collision_behavior(self, robot: Any) -> None:
        """Set the thresholds in idle; the robot answers each request, a refusal raises."""
        given = self._config.collision_behavior
        mode = robot.read_once().robot_mode
        fault = ''
        if mode != 'idle':
            fault = f"the robot is in mode '{mode}', and takes them only while idle"
        else:
            try:
                robot.set_collision_behavior_simple(
                    list(given.lower_torques_nm),
                    list(given.upper_torques_nm),
                    list(given.lower_forces_n),
                    list(given.upper_forces_n),
                )
            except self._franka.FrankaError as error:
                fault = str(error)
                self._check_connection(error)
        if fault:
            self._end(f'collision_behavior is not set: {fault}; call guard/recover')

    def _end(self, fault: str) -> None:
        with self._lock:
            self._motion = self._first = None
            self._fault = fault or self._fault
        if fault:
            self._logger.error(fault)

    def _check_connection(self, error: Exception) -> None:
        """Leave the connection where it is broken.

        Raises:
            FrankaError: the one given.

        """
        if error.kind not in ('command', 'control'):
            raise error

    def _lose(self, error: Exception) -> None:
        if self._is_over():
            return
        problem = f'{self._config.host}: {error}'
        with self._lock:
            is_news = problem != self._problem
            self._problem = problem
            self._motion = self._first = None
            self._wants_recovery = False
        if is_news:
            self._logger.error(f'the robot is lost: {problem}')

    def _take(self, state: Any, model: Any) -> None:
        """Keep a state, unless the robot's clock has not moved since the last."""
        if state.time == self._robot_time_s:
            return
        # From the joints: the frame that the library's targets are in, whichever O_T_EE is.
        matrix = model.pose('ee', state.q, state.F_T_EE, state.EE_T_K)
        pose = Pose(matrix[:3, 3].copy(), Rotation.from_matrix(matrix[:3, :3]).as_quat())
        errors = tuple(state.current_errors)
        mode = arm_mode(state.robot_mode, errors)
        if not np.isfinite(pose.position_m).all():
            mode, errors = ArmMode.LOST, ('the joint positions are not numbers',)
        self.success_rate = state.control_command_success_rate
        with self._lock:
            self._robot_time_s = state.time
            self._joints_rad = np.array(state.q)
            self._state = ArmState(pose, mode, time.monotonic(), errors)
