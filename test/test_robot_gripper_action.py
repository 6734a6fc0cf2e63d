"""The gripper behind ros2_control: real actions over DDS against a controller in a process."""

import os
import re
import sys
import threading
import time
from pathlib import Path

import driver_interfaces
import pytest
from test_robot_gripper_modbus import wait_for

from grape_bringup.robot.gripper import GripperError
from grape_bringup.robot.gripper_config import load_gripper_config

KINDS = ('gripper_command', 'parallel_gripper_command')
CLOSED_RAD = 0.7929


@pytest.fixture(scope='module')
def control_msgs(ros_env):
    """Let this process and its children import control_msgs."""
    with pytest.MonkeyPatch.context() as patch:
        driver_interfaces.install(patch)
        patch.setenv('PYTHONPATH', str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture
def node(ros_env):
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('gripper_test', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join(5)
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def controller(control_msgs, ros_process):
    """Return start(kind, **parameters) -> the controller's process."""
    return lambda kind, **parameters: ros_process('gripper_controller', parameters, [kind])


def make(node, **settings):
    from grape_bringup.robot.gripper_outputs import make_gripper_output

    return make_gripper_output(load_gripper_config('action').model_copy(update=settings), node)


def ready(output):
    wait_for(
        lambda: (state := output.state()) and not state.fault,
        lambda: f'not ready: {output.state()} {output.fault}',
    )


def rests_at(output, opening):
    wait_for(
        lambda: abs(output.state().opening - opening) < 0.01,
        lambda: f'{output.state()}, not {opening}',
    )


def goals(process):
    """What the controller was asked for, rad."""
    return [float(goal) for goal in re.findall(r'goal ([\d.]+)', process.output())]


@pytest.mark.parametrize('kind', KINDS)
def test_the_action_of_each_ros_is_found_in_the_graph_and_follows_the_opening(
    controller, node, kind
):
    process = controller(kind)
    output = make(node)
    ready(output)
    for opening in (0.0, 0.5, 1.0):
        output.command(opening)
        rests_at(output, opening)
    wait_for(lambda: len(goals(process)) == 3, 'a goal is missing')
    assert goals(process) == pytest.approx([CLOSED_RAD, CLOSED_RAD / 2, 0.0], abs=1e-3)


def test_one_goal_is_in_flight_and_the_newest_opening_is_next(controller, node):
    process = controller(KINDS[1], speed=0.5)
    output = make(node)
    ready(output)
    output.command(0.0)
    wait_for(lambda: output.state().opening < 0.95, 'never in motion')
    for opening in (0.9, 0.2, 0.7, 0.3, 0.6):
        output.command(opening)
        time.sleep(0.01)
    wait_for(lambda: len(goals(process)) > 1, 'the next goal never came')
    rests_at(output, 0.6)
    assert goals(process) == pytest.approx([CLOSED_RAD, 0.4 * CLOSED_RAD], abs=1e-3)
    assert 'running 2' not in process.output()


def test_closing_on_an_object_is_holding_and_not_a_fault(controller, node):
    controller(KINDS[1], object_at=0.4)
    output = make(node)
    ready(output)
    output.command(0.0)
    wait_for(lambda: output.state().is_holding, lambda: f'not holding: {output.state()}')
    assert output.state().fault == ''
    assert output.state().opening == pytest.approx(1 - 0.4 / CLOSED_RAD, abs=0.01)
    output.command(1.0)
    rests_at(output, 1.0)
    wait_for(lambda: not output.state().is_holding, 'still holding')


def test_a_missing_action_server_is_named_and_an_old_command_is_not_played_when_it_comes(
    control_msgs, controller, node
):
    output = make(node)
    wait_for(lambda: '/robotiq_gripper_controller/gripper_cmd' in output.fault, 'not named')
    assert output.state() is None
    output.command(0.0)
    process = controller(KINDS[1])
    ready(output)
    time.sleep(0.3)
    assert goals(process) == []
    process.kill()
    wait_for(lambda: output.state().fault, 'the loss is not said')


def test_a_goal_that_hangs_is_a_fault_until_somebody_recovers(controller, node):
    process = controller(KINDS[1], behaviour='hangs')
    output = make(node, goal_timeout_s=0.3)
    ready(output)
    output.command(0.0)
    wait_for(lambda: 'did not end' in output.state().fault, 'not said')
    output.command(1.0)
    time.sleep(0.2)
    assert len(goals(process)) == 1
    output.recover()
    ready(output)
    process.wait_for('reactivate')


@pytest.mark.parametrize(('behaviour', 'word'), [('refuses', 'refused'), ('aborts', 'gave up')])
def test_a_goal_that_the_controller_does_not_do_is_a_fault(controller, node, behaviour, word):
    controller(KINDS[0], behaviour=behaviour)
    output = make(node)
    ready(output)
    output.command(0.3)
    wait_for(lambda: word in output.state().fault, lambda: f'not said: {output.state()}')


def test_a_workstation_without_control_msgs_is_told_which_package_to_install(ros_env, monkeypatch):
    from grape_bringup.robot.gripper_action import import_action

    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    monkeypatch.setitem(sys.modules, 'control_msgs', None)
    monkeypatch.delitem(sys.modules, 'control_msgs.action', raising=False)
    with pytest.raises(GripperError, match='ros-jazzy-control-msgs'):
        import_action('GripperCommand')
