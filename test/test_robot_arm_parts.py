"""The arm outputs' pure parts: configuration, checks, modes, the order of calls, twists."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from grape_bringup.robot.arm import ArmMode, ArmState, ArmTarget, Pose
from grape_bringup.robot.arm_command import HoldPoint
from grape_bringup.robot.arm_config import KINDS, check_command_rate, load_arm_config
from grape_bringup.robot.call_sequence import CallError, CallSequence, Step, Until
from grape_bringup.robot.checked_yaml import RobotConfigError
from grape_bringup.robot.franka_modes import ROBOT_MODES, FrankaStatus, arm_mode
from grape_bringup.robot.franka_recovery import Component, recovery

HERE = Pose(np.array([0.4, 0.0, 0.5]), np.array([1.0, 0.0, 0.0, 0.0]))
THERE = Pose(np.array([0.5, 0.1, 0.4]), np.array([1.0, 0.0, 0.0, 0.0]))


def state(mode, pose=HERE):
    return ArmState(pose, mode, 0.0)


# Configuration


@pytest.mark.parametrize('kind', KINDS)
def test_shipped_configuration_loads(kind):
    assert load_arm_config(kind).kind == kind


def test_defaults_are_the_names_of_the_real_drivers():
    crisp, fzi = load_arm_config('crisp'), load_arm_config('fzi')
    assert (crisp.target.name, crisp.target.depth, crisp.base_frame) == ('target_pose', 1, 'base')
    assert fzi.target.name == '/cartesian_motion_controller/target_frame'
    assert fzi.pose.name == '/franka_robot_state_broadcaster/current_pose'
    assert fzi.pose.reliability == 'best_effort'  # a reliable subscriber hears nothing
    assert fzi.franka_ros2.robot_state.reliability == 'reliable'
    assert load_arm_config('servo_pose').pose_target.name == '/servo_node/pose_target_cmds'


def test_unknown_key_is_named():
    with pytest.raises(RobotConfigError, match='stifness'):
        load_arm_config('fci', stifness=3)


def test_unknown_arm_is_answered_with_the_known_ones():
    with pytest.raises(RobotConfigError, match='crisp, fzi, servo_pose, servo_twist, fci'):
        load_arm_config('polymetis')


@pytest.mark.parametrize(
    'changes',
    [{'max_velocity_m_s': 3.5}, {'state_timeout_s': 0.0}, {'leash_m': float('nan')}],
)
def test_value_outside_its_range_is_refused(changes):
    with pytest.raises(RobotConfigError, match=next(iter(changes))):
        load_arm_config('fci', **changes)


def test_thresholds_with_upper_below_lower_are_refused():
    entries = load_arm_config('fci').collision_behavior.model_dump()
    entries['upper_forces_n'] = (39.0,) * 6
    with pytest.raises(RobotConfigError, match='lower <= upper'):
        load_arm_config('fci', collision_behavior=entries)


def test_rate_at_which_servo_halts_between_commands_is_refused():
    servo = load_arm_config('servo_pose')
    with pytest.raises(RobotConfigError, match='at least 20 Hz'):
        check_command_rate(servo, 10.0)
    check_command_rate(servo, 50.0)
    check_command_rate(load_arm_config('crisp'), 10.0)  # holds by itself


def test_humble_servo_takes_no_poses(monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    with pytest.raises(RobotConfigError, match='servo_twist'):
        load_arm_config('servo_pose')
    assert not load_arm_config('servo_twist').has_command_types


# Modes


def test_every_robot_mode_has_a_meaning_and_only_two_take_targets():
    ready = {name for name in ROBOT_MODES if arm_mode(name, ()) is ArmMode.READY}
    assert ready == {'idle', 'move'}
    assert arm_mode('move', ('power_limit_violation',)) is ArmMode.REFLEX
    assert arm_mode('user_stopped', ()) is ArmMode.STOPPED  # sets no error
    assert arm_mode('a mode of next year', ()) is ArmMode.STOPPED


def test_silence_after_a_reflex_is_still_the_reflex():
    status = FrankaStatus('/robot_state', 0.2)
    status.hear('reflex', ('cartesian_reflex',), 10.0)
    mode, errors = status.read(13.0)
    assert mode is ArmMode.REFLEX
    assert errors == ('cartesian_reflex', 'nothing heard on /robot_state for 3.0 s')
    status.hear('move', (), 14.0)
    assert status.read(14.1)[0] is ArmMode.READY
    assert status.read(14.5)[0] is ArmMode.LOST


# Hold


def test_hold_before_any_target_is_nothing():
    assert HoldPoint().hold(state(ArmMode.READY)) is None


def test_hold_is_found_once_and_kept_until_the_next_target():
    point = HoldPoint()
    point.sent(THERE)
    sagged = Pose(HERE.position_m - [0.0, 0.0, 0.02], HERE.quaternion_xyzw)
    assert point.hold(state(ArmMode.READY)) is HERE
    assert point.hold(state(ArmMode.READY, sagged)) is HERE
    point.sent(THERE)
    assert point.hold(state(ArmMode.READY, sagged)) is sagged


def test_hold_of_a_silent_arm_is_the_last_target():
    point = HoldPoint()
    point.sent(THERE)
    assert point.hold(state(ArmMode.LOST)) is THERE


@pytest.mark.parametrize('mode', [ArmMode.REFLEX, ArmMode.STOPPED, ArmMode.GUIDED])
def test_hold_of_before_a_stop_is_forgotten(mode):
    """Else it would be a jump once the controller is back."""
    point = HoldPoint()
    point.sent(THERE)
    assert point.hold(state(mode)) is None
    assert point.hold(state(ArmMode.READY)) is None


# Recovery


class Answer:
    def __init__(self, value, is_done=True):
        self.value, self.is_done, self.is_abandoned = value, is_done, False

    def done(self):
        return self.is_done

    def result(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def missing(self):
        return 'no answer'

    def abandon(self):
        self.is_abandoned = True


class RecordingCalls:
    """FrankaCalls of a robot in reflex that writes down what is asked of it."""

    def __init__(self, component=1, controllers='inactive', **answers):
        self.asked = []
        self._component = component
        self._states = dict.fromkeys(['state', 'motion'], controllers)
        self._answers = answers

    def _answer(self, name, value, *asked):
        self.asked.append((name, *asked))
        return self._answers.get(name, Answer(value))

    def recover_errors(self):
        return self._answer('recover_errors', None)

    def components(self):
        found = (Component('grip', 'robotiq', 3), Component('arm', 'franka', self._component))
        return self._answer('components', found)

    def activate_component(self, name):
        return self._answer('activate_component', (True, 3), name)

    def controllers(self):
        return Answer(dict(self._states))

    def switch(self, activate, deactivate):
        self._states.update(dict.fromkeys(activate, 'active') | dict.fromkeys(deactivate, 'off'))
        return self._answer('switch', (True, ''), activate, deactivate)

    def set_collision_behavior(self):
        return self._answer('set_collision_behavior', (True, ''))

    def idle(self):
        return self._answer('idle', None)

    def ready(self):
        return self._answer('ready', None)


def driver(**changes):
    return load_arm_config('crisp').franka_ros2.model_copy(
        update={
            'hardware_plugin': 'franka',
            'controllers': ('state',),
            'motion_controller': 'motion',
            **changes,
        }
    )


def play(calls, has_error=True, **changes):
    sequence = CallSequence('recovery', recovery(calls, driver(**changes), has_error), 2.0)
    for tick in range(20):
        sequence.tick(tick * 0.05)
    return sequence


def test_recovery_goes_in_the_only_order_that_works():
    calls = RecordingCalls()
    sequence = play(calls)
    assert (sequence.is_over, sequence.error) == (True, '')
    assert calls.asked == [
        ('recover_errors',),
        ('components',),
        ('activate_component', 'arm'),
        ('switch', ('state',), ()),
        ('idle',),
        ('set_collision_behavior',),
        ('switch', ('motion',), ()),
        ('ready',),
    ]


def test_running_controller_is_paused_for_the_thresholds_and_no_error_is_cleared():
    calls = RecordingCalls(component=3, controllers='active')
    play(calls, has_error=False)
    assert calls.asked == [
        ('components',),
        ('switch', (), ('motion',)),
        ('idle',),
        ('set_collision_behavior',),
        ('switch', ('motion',), ()),
        ('ready',),
    ]


@pytest.mark.parametrize(
    ('failing', 'answer', 'text'),
    [
        ('recover_errors', Answer(CallError('aborted')), "'error_recovery': aborted"),
        ('components', Answer(()), "no hardware component has the plugin 'franka'"),
        ('activate_component', Answer((True, 2)), "'arm' is in lifecycle state 2; expected 3"),
        ('switch', Answer((False, 'busy')), 'did not activate state: busy'),
        ('set_collision_behavior', Answer((False, '')), 'refused the thresholds'),
    ],
)
def test_failing_step_ends_the_recovery_and_is_named(failing, answer, text):
    calls = RecordingCalls(**{failing: answer})
    sequence = play(calls)
    assert sequence.is_over
    assert text in sequence.error
    assert calls.asked[-1][0] == failing  # nothing after it


def test_step_without_an_answer_ends_at_its_deadline_and_is_let_go():
    late = Answer((True, 3), is_done=False)
    sequence = CallSequence(
        'recovery', recovery(RecordingCalls(activate_component=late), driver(), True), 2.0
    )
    sequence.tick(0.0)
    sequence.tick(1.9)
    assert not sequence.is_over
    sequence.tick(2.1)
    assert "step 'set_hardware_component_state': after 2 s: no answer" in sequence.error
    assert late.is_abandoned
    late.is_done = True
    sequence.tick(2.2)
    assert sequence.is_over and sequence.error


def test_sequence_never_waits_for_a_condition():
    done = []

    def steps():
        yield Step('wait', Until(lambda: bool(done), 'it did not come'))
        done.append('after')

    sequence = CallSequence('a sequence', steps(), 1.0)
    sequence.tick(0.0)
    assert sequence.step == 'wait' and not sequence.is_over
    done.append('now')
    sequence.tick(0.5)
    assert done == ['now', 'after'] and not sequence.error


# Twists


def twist(target, measured, **changes):
    pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')
    from grape_bringup.robot.arm_servo_twist import twist_towards

    return twist_towards(target, measured, load_arm_config('servo_twist', **changes))


def moving(pose, linear=(0.0, 0.0, 0.0), angular=(0.0, 0.0, 0.0)):
    return ArmTarget(pose, np.array(linear), np.array(angular))


def test_twist_is_the_targets_velocity_and_what_the_arm_is_behind():
    behind = Pose(HERE.position_m + [0.02, 0.0, 0.0], HERE.quaternion_xyzw)
    linear, angular = twist(
        moving(behind, (0.0, 0.1, 0.0)),
        HERE,
        command_in_type='speed_units',
        position_gain_per_s=3.0,
    )
    np.testing.assert_allclose(linear, [0.06, 0.1, 0.0])
    np.testing.assert_allclose(angular, 0.0, atol=1e-12)


def test_twist_turns_in_the_base_frame_the_short_way():
    turned = Rotation.from_rotvec([0.0, 0.0, 0.1]) * Rotation.from_quat(HERE.quaternion_xyzw)
    far = Pose(HERE.position_m, -turned.as_quat())  # the same rotation
    _, angular = twist(moving(far), HERE, command_in_type='speed_units', position_gain_per_s=2.0)
    np.testing.assert_allclose(angular, [0.0, 0.0, 0.2], atol=1e-9)


def test_unitless_twist_never_exceeds_one():
    """MoveIt Servo drops a unitless command with a component above 1."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        target = moving(
            Pose(generator.uniform(-2, 2, 3), Rotation.random(rng=generator).as_quat()),
            generator.uniform(-5, 5, 3),
            generator.uniform(-5, 5, 3),
        )
        linear, angular = twist(target, HERE, max_linear_m_s=1.7, max_angular_rad_s=2.5)
        assert np.linalg.norm(linear) <= 1.0 + 1e-9
        assert np.linalg.norm(angular) <= 1.0 + 1e-9
