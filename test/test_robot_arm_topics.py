"""The outputs over ROS topics, against controllers in another process over DDS."""

import sys
import threading
import time

import driver_interfaces
import pytest
from arm_conformance import ArmConformance, distance, send_until, target_at, wait_mode, wait_until
from arm_rigs import ControllerProcess, TopicRig, TwistRig, on_node

from grape_bringup.robot.arm import ArmError, ArmMode
from grape_bringup.robot.arm_config import load_arm_config

KINDS = ('crisp', 'fzi', 'servo_pose', 'servo_twist')


@pytest.fixture(scope='module')
def interfaces(ros_env):
    with pytest.MonkeyPatch.context() as patch:
        driver_interfaces.install(patch)
        yield


@pytest.fixture(scope='module')
def controllers(interfaces, tmp_path_factory):
    process = ControllerProcess(tmp_path_factory.mktemp('controllers') / 'controllers.log')
    yield process
    process.stop()


@pytest.fixture(scope='module')
def node(interfaces):
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('guard_node', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join(5.0)
    node.destroy_node()
    rclpy.shutdown(context=context)


def make_rig(kind, controllers, node):
    controllers.order(reset=True)
    return (TwistRig if kind == 'servo_twist' else TopicRig)(kind, controllers, node)


class TestOverTopics(ArmConformance):
    @pytest.fixture(params=KINDS)
    def rig(self, request, controllers, node):
        return make_rig(request.param, controllers, node)


@pytest.fixture
def crisp(controllers, node):
    """Crisp's rig: opens outputs with changes of the driver's part, and closes them."""
    rig = make_rig('crisp', controllers, node)
    opened = []

    def open_output(**driver):
        from grape_bringup.robot.arm_outputs import make_arm_output

        config = rig.config()
        changed = config.franka_ros2.model_copy(update=driver)
        config = config.model_copy(update={'franka_ros2': changed})
        opened.append(on_node(node, lambda: make_arm_output(config, node)))
        return opened[-1]

    rig.open_output = open_output
    yield rig
    for output in opened:
        output.close()
    rig.shut(None)


def in_reflex(rig, **driver):
    """Return an output whose arm has had a reflex, and where the log of calls begins."""
    output = rig.open_output(**driver)
    wait_until(output.state, 'a state')
    rig.reflex()
    wait_until(lambda: 'cartesian_reflex' in output.state().errors, lambda: output.state())
    return output, len(rig.controllers.heard)


def wait_failed(output, text):
    """Wait for a recovery that failed and says why; the arm still takes no targets."""

    def said():
        state = output.state()
        if state is None or state.mode is ArmMode.RECOVERING:
            return False
        return any(text in error for error in state.errors)

    wait_until(said, lambda: output.state(), 10.0)
    assert output.state().mode is ArmMode.REFLEX
    with pytest.raises(ArmError):
        output.send(target_at(output.state().pose))


def thresholds():
    return load_arm_config('crisp').franka_ros2.collision_behavior


def test_recovery_clears_the_error_then_brings_up_component_then_controllers(crisp):
    output, since = in_reflex(crisp, collision_behavior=thresholds())
    output.recover()
    wait_mode(output, ArmMode.READY)
    calls = crisp.controllers.calls(since)
    assert [call['call'] for call in calls] == [
        'error_recovery',
        'list_hardware_components',
        'set_hardware_component_state',
        'switch_controller',
        'set_collision_behavior',
        'switch_controller',
    ]
    assert calls[2]['name'] == 'FrankaHardwareInterface'  # found by its plugin
    first, second = calls[3]['activate'], calls[5]['activate']
    assert first == [
        'joint_state_broadcaster',
        'franka_robot_state_broadcaster',
        'pose_broadcaster',
    ]
    assert second == ['cartesian_impedance_controller']


def test_refused_error_recovery_is_named_and_leaves_the_arm_in_reflex(crisp):
    output, since = in_reflex(crisp)
    crisp.controllers.order(fail={'error_recovery': 'refuse'})
    output.recover()
    wait_failed(output, "step 'error_recovery'")
    assert [call['call'] for call in crisp.controllers.calls(since)] == ['error_recovery']
    crisp.controllers.order(fail={})
    output.recover()
    wait_mode(output, ArmMode.READY)


def test_component_that_does_not_come_back_ends_the_recovery_at_its_deadline(crisp):
    output, _ = in_reflex(crisp, step_timeout_s=0.5)
    crisp.controllers.order(fail={'set_hardware_component_state': 'hang'})
    began = time.monotonic()
    output.recover()
    assert time.monotonic() - began < 0.5
    wait_failed(output, '/controller_manager/set_hardware_component_state')
    crisp.controllers.order(fail={})


def test_refused_controller_switch_is_named(crisp):
    output, _ = in_reflex(crisp)
    crisp.controllers.order(fail={'switch_controller': 'refuse'})
    output.recover()
    wait_failed(output, "step 'switch_controller'")


def test_controller_that_is_not_loaded_is_named_with_those_that_are(crisp):
    output, _ = in_reflex(crisp, motion_controller='my_impedance_controller')
    output.recover()
    wait_failed(
        output, 'not loaded: my_impedance_controller; there are: cartesian_impedance_controller'
    )


def test_missing_action_server_is_named(crisp):
    output, _ = in_reflex(crisp, error_recovery='/elsewhere/error_recovery', step_timeout_s=0.5)
    output.recover()
    wait_failed(output, 'there is no action server /elsewhere/error_recovery')


def test_collision_behavior_is_set_in_idle_before_the_first_target(crisp):
    crisp.controllers.order(mode=1)
    since = len(crisp.controllers.heard)
    output = crisp.open_output(collision_behavior=thresholds())
    wait_mode(output, ArmMode.READY)
    (call,) = crisp.controllers.calls(since)
    assert call['call'] == 'set_collision_behavior'
    assert call['force'] == [40.0, 40.0, 40.0, 35.0, 35.0, 35.0]


def test_collision_behavior_waits_for_a_recovery_while_a_controller_runs(crisp):
    since = len(crisp.controllers.heard)
    output = crisp.open_output(collision_behavior=thresholds())
    state = wait_mode(output, ArmMode.REFLEX)
    assert 'only while the robot is idle' in ' '.join(state.errors)
    assert not crisp.controllers.calls(since)
    output.recover()
    wait_mode(output, ArmMode.READY)
    calls = crisp.controllers.calls(since)
    assert [call['call'] for call in calls] == [
        'list_hardware_components',
        'switch_controller',
        'set_collision_behavior',
        'switch_controller',
    ]
    assert calls[1]['deactivate'] == ['cartesian_impedance_controller']


def test_refused_collision_behavior_keeps_the_arm_from_taking_targets(crisp):
    crisp.controllers.order(mode=1, fail={'set_collision_behavior': 'refuse'})
    output = crisp.open_output(collision_behavior=thresholds())
    wait_failed(output, 'command not possible in the current mode')


@pytest.mark.parametrize(
    ('robot_mode', 'mode'), [(0, 'stopped'), (3, 'guided'), (5, 'stopped'), (6, 'recovering')]
)
def test_robot_mode_without_an_error_stops_the_targets(crisp, robot_mode, mode):
    output = crisp.open_output()
    here = wait_mode(output, ArmMode.READY)
    crisp.controllers.order(mode=robot_mode)
    wait_mode(output, ArmMode(mode))
    with pytest.raises(ArmError, match=mode):
        output.send(target_at(here.pose))


def test_second_publisher_on_the_target_stops_ours_and_is_named(crisp):
    """crisp_controllers would drop the messages of both without a word."""
    import rclpy
    from geometry_msgs.msg import PoseStamped

    output = crisp.open_output()
    here = wait_mode(output, ArmMode.READY)
    send_until(output, target_at(here.pose), lambda: crisp.commands())
    other = rclpy.create_node('teleop_of_somebody', context=crisp.node.context)
    other.create_publisher(PoseStamped, '/target_pose', 1)
    with pytest.raises(ArmError, match='/teleop_of_somebody.*Only the guard'):
        send_until(output, target_at(here.pose), lambda: False, 'it was not noticed')
    other.destroy_node()
    before = crisp.commands()

    def sent():
        try:
            output.send(target_at(here.pose))
        except ArmError:
            return False
        return crisp.commands() > before

    wait_until(sent, 'ours alone again')


def test_topic_without_a_controller_is_named(controllers, node):
    from grape_bringup.robot.arm_outputs import make_arm_output

    rig = make_rig('crisp', controllers, node)
    config = rig.config(target={'name': 'nobody/target_pose'})
    output = on_node(node, lambda: make_arm_output(config, node))
    try:
        here = wait_mode(output, ArmMode.READY)
        with pytest.raises(ArmError, match='nobody listens to /nobody/target_pose'):
            output.send(target_at(here.pose))
    finally:
        output.close()
        rig.shut(output)


def test_pose_in_another_frame_makes_the_arm_lost(crisp):
    output = crisp.open_output()
    wait_mode(output, ArmMode.READY)
    crisp.controllers.order(frame='world')
    state = wait_mode(output, ArmMode.LOST)
    assert "frame 'world', but base_frame is 'base'" in ' '.join(state.errors)


@pytest.mark.parametrize('kind', KINDS)
def test_command_is_in_the_frame_that_the_controller_expects(kind, controllers, node):
    rig = make_rig(kind, controllers, node)
    output = rig.open()
    try:
        here = wait_mode(output, ArmMode.READY)
        send_until(output, target_at(here.pose, (0.01, 0.0, 0.0)), lambda: rig.commands())
    finally:
        output.close()
        rig.shut(output)
    frames = {entry['frame'] for entry in controllers.commands(kind)}
    assert frames == {'base' if kind == 'crisp' else 'fr3_link0'}


def test_servo_is_told_the_type_of_command_and_a_refusal_is_named(controllers, node):
    rig = make_rig('servo_pose', controllers, node)
    controllers.order(fail={'switch_command_type': 'refuse'})
    output = rig.open()
    try:
        state = wait_mode(output, ArmMode.LOST)
        wait_until(
            lambda: 'switch_command_type refused' in ' '.join(output.state().errors), 'the refusal'
        )
        with pytest.raises(ArmError, match='MoveIt Servo does not listen'):
            output.send(target_at(state.pose))
        controllers.order(fail={})
        since = len(controllers.heard)
        output.recover()
        wait_mode(output, ArmMode.READY)
        (switched,) = [c for c in controllers.calls(since) if c['call'] == 'switch_command_type']
        assert switched['type'] == 2  # POSE
    finally:
        output.close()
        rig.shut(output)


def test_humble_servo_is_started_and_takes_twists(controllers, node):
    rig = make_rig('servo_twist', controllers, node)
    since = len(controllers.heard)
    output = rig.open(interface='start_servo')
    try:
        here = wait_mode(output, ArmMode.READY)
        wait_until(lambda: controllers.calls(since), 'start_servo')
        assert {call['call'] for call in controllers.calls(since)} == {'start_servo'}
        before = rig.commands()
        there = target_at(here.pose, (0.02, 0.0, 0.0))
        send_until(output, there, lambda: rig.commands() > before)
    finally:
        output.close()
        rig.shut(output)


def test_last_twist_is_no_motion(controllers, node):
    rig = make_rig('servo_twist', controllers, node)
    output = rig.open()
    here = wait_mode(output, ArmMode.READY)
    before = rig.commands()
    there = target_at(here.pose, (0.1, 0.0, 0.0))
    send_until(output, there, lambda: rig.commands() > before)
    output.close()
    rig.shut(output)
    wait_until(lambda: not any(controllers.commands('servo_twist')[-1]['twist']), 'a zero twist')
    assert distance(controllers.order(), here.pose)[0] < 0.05


@pytest.mark.parametrize(
    ('kind', 'package'), [('crisp', 'franka-msgs'), ('servo_pose', 'moveit-msgs')]
)
def test_missing_message_package_is_named_with_its_apt_package(
    kind, package, controllers, node, monkeypatch
):
    from grape_bringup.robot.ros_interface import MissingInterfaceError

    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    name = package.replace('-', '_')
    for module in [m for m in sys.modules if m.split('.')[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingInterfaceError, match=f'sudo apt install ros-jazzy-{package}'):
        make_rig(kind, controllers, node).open()
