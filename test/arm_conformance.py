"""What every arm output does, whichever controller is behind it.

A test module subclasses ArmConformance and gives a fixture `rig`; each test opens an output of
its own on it.
"""

import time
from typing import Protocol

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmError, ArmMode, ArmOutput, ArmState, ArmTarget, Pose

AT_ONCE_S = 0.05  # what a call may take; a busy machine may add to one, not to the median
NOT_AT_ONCE_S = 0.5  # a call that waited for the other side takes seconds
MOTION_M = 0.003  # less is noise of a compliant arm


class Rig(Protocol):
    """An arm's controller in another process, and ways to spoil it."""

    reached_m: float  # how near the controller's command comes to a target

    def open(self) -> ArmOutput:
        """Return an output that nothing was sent through; `shut` ends it."""
        ...

    def commanded(self) -> Pose | None:
        """Return where the controller is going, None before it was told anything."""
        ...

    def commands(self) -> int:
        """Count the commands that have reached the controller."""
        ...

    def silence(self, is_silent: bool) -> None:
        """Stop the arm's state, and let it come again."""
        ...

    def reflex(self) -> None:
        """Have the arm stop as after a collision."""
        ...

    def drag(self, offset_m: tuple[float, float, float]) -> None:
        """Pull the arm off its target, where that can be done."""
        ...

    def shut(self, output: ArmOutput) -> None:
        """Wait until a closed output has let go."""
        ...


def wait_until(condition, what, timeout_s=40.0):
    """Return the first true value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f'not in time: {what() if callable(what) else what}'
        time.sleep(0.01)
    return value


def wait_mode(output: ArmOutput, *modes: ArmMode, timeout_s=40.0) -> ArmState:
    """Wait for a mode; the message says which one it stayed in."""

    def state():
        found = output.state()
        return found if found is not None and found.mode in modes else None

    return wait_until(state, lambda: f'{modes}, found {output.state()}', timeout_s)


def target_at(pose: Pose, offset_m=(0.0, 0.0, 0.0), turn_rad=(0.0, 0.0, 0.0)) -> ArmTarget:
    """Return a resting target beside a pose."""
    rotation = Rotation.from_rotvec(turn_rad) * Rotation.from_quat(pose.quaternion_xyzw)
    there = Pose(pose.position_m + np.array(offset_m), rotation.as_quat())
    return ArmTarget(there, np.zeros(3), np.zeros(3))


def distance(one: Pose, other: Pose) -> tuple[float, float]:
    """Return m and rad between two poses."""
    turn = Rotation.from_quat(one.quaternion_xyzw).inv() * Rotation.from_quat(
        other.quaternion_xyzw
    )
    return float(np.linalg.norm(one.position_m - other.position_m)), float(turn.magnitude())


def send_until(output: ArmOutput, target: ArmTarget, condition, what='nothing came'):
    """Send a target again and again, as the guard does, until something holds.

    An arm that is silent for a moment, as on a starved machine, is waited for.
    """

    def sent():
        try:
            output.send(target)
        except ArmError:
            if output.state().mode is not ArmMode.LOST:
                raise
        return condition()

    return wait_until(sent, what)


def spoilt(target: ArmTarget) -> dict[str, ArmTarget]:
    """Return targets that no arm may get."""
    p, q, zero = target.pose.position_m, target.pose.quaternion_xyzw, np.zeros(3)
    nan, inf = p.copy(), p.copy()
    nan[1], inf[2] = np.nan, np.inf
    return {
        'NaN position': ArmTarget(Pose(nan, q), zero, zero),
        'infinite position': ArmTarget(Pose(inf, q), zero, zero),
        'NaN quaternion': ArmTarget(Pose(p, q * np.nan), zero, zero),
        'NaN velocity': ArmTarget(Pose(p, q), zero * np.nan, zero),
        'quaternion of norm 2': ArmTarget(Pose(p, 2 * q), zero, zero),
        'zero quaternion': ArmTarget(Pose(p, 0 * q), zero, zero),
        'four numbers for a position': ArmTarget(Pose(np.append(p, 0.0), q), zero, zero),
    }


class ArmConformance:
    """The suite; `rig` is the subclass's fixture."""

    @pytest.fixture
    def output(self, rig):
        output = rig.open()
        yield output
        output.close()
        rig.shut(output)

    def test_state_is_none_before_the_first_message(self, rig):
        rig.silence(True)
        output = rig.open()
        try:
            time.sleep(0.3)
            assert output.state() is None
            with pytest.raises(ArmError, match='not said anything'):
                output.send(target_at(Pose(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))))
        finally:
            output.close()
            rig.silence(False)
            rig.shut(output)

    def test_nothing_is_commanded_before_the_first_target(self, rig, output):
        before = rig.commands()
        wait_mode(output, ArmMode.READY)
        output.hold()
        output.hold()
        time.sleep(0.2)
        assert rig.commands() == before

    def test_controller_receives_the_target(self, rig, output):
        """Position and quaternion in the base frame, x y z w: four different numbers."""
        here = wait_mode(output, ArmMode.READY)
        target = target_at(here.pose, (0.01, -0.02, 0.03), (0.05, 0.02, -0.1))

        def near():
            commanded = rig.commanded()
            if commanded is None:
                return False
            metres, radians = distance(commanded, target.pose)
            return metres <= rig.reached_m and radians <= max(rig.reached_m, 1e-6)

        send_until(output, target, near, lambda: f'{rig.commanded()} for {target}')

    def test_spoilt_target_is_refused_and_named(self, rig, output):
        here = wait_mode(output, ArmMode.READY)
        before = rig.commands()
        for name, target in spoilt(target_at(here.pose)).items():
            with pytest.raises(ArmError, match='target'):
                output.send(target)
                pytest.fail(f'{name} was sent')
        time.sleep(0.2)
        assert rig.commands() == before

    def test_silent_arm_is_lost_and_takes_no_target(self, rig, output):
        here = wait_mode(output, ArmMode.READY)
        rig.silence(True)
        try:
            lost = wait_mode(output, ArmMode.LOST)
            assert lost.errors
            with pytest.raises(ArmError, match='lost'):
                output.send(target_at(here.pose))
        finally:
            rig.silence(False)
        wait_mode(output, ArmMode.READY)

    def test_hold_stays_where_the_arm_was(self, rig, output):
        """A second hold sends the same pose: one that followed the arm would let it sink."""
        here = wait_mode(output, ArmMode.READY)
        target = target_at(here.pose, (0.1, 0.0, 0.0))
        before = rig.commands()
        send_until(output, target, lambda: rig.commands() > before)
        output.hold()
        wait_until(lambda: distance(rig.commanded(), target.pose)[0] > MOTION_M, 'the hold')
        first = rig.commanded()
        rig.drag((0.0, 0.0, -0.03))
        for _ in range(5):
            output.hold()
            time.sleep(0.05)
        metres, _ = distance(first, rig.commanded())
        assert metres < MOTION_M

    def test_reflex_is_told_and_recovery_moves_nothing(self, rig, output):
        here = wait_mode(output, ArmMode.READY)
        target = target_at(here.pose, (0.02, 0.0, 0.0))
        before = rig.commands()
        send_until(output, target, lambda: rig.commands() > before)
        rig.reflex()
        told = wait_mode(output, ArmMode.REFLEX)
        assert any('reflex' in error for error in told.errors), told
        with pytest.raises(ArmError, match='recover'):
            output.send(target)
        output.hold()
        time.sleep(0.2)  # what was on its way
        stopped, before = output.state().pose, rig.commands()
        output.recover()
        recovered = wait_mode(output, ArmMode.READY)
        output.hold()  # of the time before: forgotten
        time.sleep(0.3)
        assert rig.commands() == before
        assert distance(output.state().pose, stopped)[0] < MOTION_M, (stopped, recovered)

    def test_hold_is_the_last_command_and_close_can_be_repeated(self, rig, output):
        here = wait_mode(output, ArmMode.READY)
        target = target_at(here.pose, (0.0, 0.1, 0.0))
        before = rig.commands()
        send_until(output, target, lambda: rig.commands() > before)
        output.close()
        rig.shut(output)
        time.sleep(0.2)
        metres, _ = distance(rig.commanded(), target.pose)
        assert metres > 0.05, 'the arm was told to stay, not to go on to its target'
        count = rig.commands()
        output.close()
        output.hold()
        with pytest.raises(ArmError):
            output.send(target)
        assert rig.commands() == count

    @pytest.mark.parametrize('is_silent', [False, True])
    def test_no_call_waits_for_the_other_side(self, rig, output, is_silent):
        here = wait_mode(output, ArmMode.READY)
        target = target_at(here.pose)
        send_until(output, target, lambda: rig.commands() > 0)
        if is_silent:
            rig.silence(True)
            wait_mode(output, ArmMode.LOST)
        took_s = []

        def call(method, *arguments):
            began = time.monotonic()
            try:
                method(*arguments)
            except ArmError:
                assert is_silent or method == output.send
            took_s.append(time.monotonic() - began)

        try:
            for _ in range(20):
                call(output.send, target)
                call(output.state)
            call(output.hold)
            call(output.recover)
            call(output.close)
        finally:
            rig.silence(False)
        assert np.median(took_s) < AT_ONCE_S
        assert max(took_s) < NOT_AT_ONCE_S, took_s
