"""A gripper controller as ros2_control has it: the action of Humble or of Jazzy, and joint states.

    python test/gripper_controller.py gripper_command | parallel_gripper_command

The joint moves to the goal's position at `speed` rad/s, and stops at `object_at` rad (parameters).
"""

import contextlib
import sys
import threading
import time

import rclpy
from control_msgs import action
from rclpy.action import ActionServer, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

ACTION = '/robotiq_gripper_controller/gripper_cmd'
REACTIVATE = '/robotiq_activation_controller/reactivate_gripper'
JOINT = 'robotiq_85_left_knuckle_joint'
PERIOD_S = 0.01


class Controller(Node):
    """Moves a joint, and writes what it was asked for to stdout."""

    def __init__(self, kind):
        super().__init__('gripper_controller')
        self.is_parallel = kind == 'parallel_gripper_command'
        name = 'ParallelGripperCommand' if self.is_parallel else 'GripperCommand'
        self.action = getattr(action, name)
        self.declare_parameter('object_at', 9.9)
        self.declare_parameter('speed', 4.0)
        self.declare_parameter('behaviour', 'works')  # refuses, aborts, hangs
        self.position, self.running = 0.0, 0
        self._lock = threading.Lock()
        group = ReentrantCallbackGroup()
        self._joints = self.create_publisher(JointState, '/joint_states', 1)
        self.create_timer(PERIOD_S, self._say, callback_group=group)
        self.create_service(Trigger, REACTIVATE, self._reactivate, callback_group=group)
        self._server = ActionServer(
            self, self.action, ACTION, self._execute, goal_callback=self._goal,
            callback_group=group,
        )  # fmt: skip

    def _say(self):
        self._joints.publish(JointState(name=['other', JOINT], position=[1.0, self.position]))

    def _goal(self, _):
        refuses = self.get_parameter('behaviour').value == 'refuses'
        return GoalResponse.REJECT if refuses else GoalResponse.ACCEPT

    def _reactivate(self, _, response):
        sys.stdout.write('reactivate\n')
        response.success = True
        return response

    def _execute(self, handle):
        command = handle.request.command
        goal = command.position[0] if self.is_parallel else command.position
        with self._lock:
            self.running += 1
            sys.stdout.write(f'goal {goal:.4f} running {self.running}\n')
            sys.stdout.flush()
        behaviour = self.get_parameter('behaviour').value
        while behaviour == 'hangs' and rclpy.ok():
            time.sleep(PERIOD_S)
        stop = min(goal, self.get_parameter('object_at').value)
        while abs(stop - self.position) > 1e-6:
            reach = self.get_parameter('speed').value * PERIOD_S
            self.position += min(max(stop - self.position, -reach), reach)
            time.sleep(PERIOD_S)
        with self._lock:
            self.running -= 1
        result = self.action.Result(stalled=stop != goal, reached_goal=stop == goal)
        handle.abort() if behaviour == 'aborts' or stop != goal else handle.succeed()
        return result


def main():
    rclpy.init()
    executor = MultiThreadedExecutor(4)
    executor.add_node(Controller(sys.argv[1]))
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()


if __name__ == '__main__':
    main()
