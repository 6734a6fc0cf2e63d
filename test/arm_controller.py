"""Controllers of an arm under franka_ros2, in a process of their own, that write down what comes.

    python test/arm_controller.py

One arm of which only the pose moves, behind what config/robot/*.yaml names: crisp's target_pose,
FZI's target_frame, MoveIt Servo, and the driver with its controller manager. As the real ones,
crisp drops everything while there is a second publisher, FZI drops foreign frames, Servo drops
what it was not told to expect and halts 0.1 s after the last command, and a recovery works in one
order only. It reads lines of JSON on stdin for what to do wrong, and writes one on stdout for all
that comes in.
"""

import json
import os
import sys
import threading
import time

import numpy as np
import rclpy
from controller_manager_msgs.msg import ControllerState, HardwareComponentState
from controller_manager_msgs.srv import (
    ListControllers,
    ListHardwareComponents,
    SetHardwareComponentState,
    SwitchController,
)
from franka_msgs.action import ErrorRecovery
from franka_msgs.msg import FrankaRobotState
from franka_msgs.srv import SetFullCollisionBehavior
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import State
from moveit_msgs.srv import ServoCommandType
from rclpy.action import ActionServer
from rclpy.executors import MultiThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from scipy.spatial.transform import Rotation
from std_srvs.srv import SetBool, Trigger

PERIOD_S = 0.01
SPEED_M_S = 0.03  # towards a pose: on its way whenever it is told to hold
SERVO_TIMEOUT_S = 0.1
SERVO_SCALES = (0.4, 0.8)  # m/s and rad/s of a unitless command
HOME = ([0.4, 0.0, 0.5], [0.9238795, -0.3826834, 0.0, 0.0])
IDLE, MOVE, REFLEX = 1, 2, 4
MOTION_CONTROLLERS = (
    'cartesian_impedance_controller',
    'cartesian_motion_controller',
    'fr3_arm_controller',
)
DRIVER_STATE = 'franka_robot_state_broadcaster'
BROADCASTERS = ('joint_state_broadcaster', DRIVER_STATE, 'pose_broadcaster')
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Arm:
    """The arm and what is to go wrong with it."""

    def __init__(self):
        self.reset()

    def reset(self):
        """Put everything right: at home, controllers active, nothing wrong."""
        self.position, self.rotation = np.array(HOME[0]), Rotation.from_quat(HOME[1])
        self.goal = None
        self.twist, self.twist_s = np.zeros(6), 0.0
        self.mode, self.errors = MOVE, []
        self.component = 3
        self.controllers = dict.fromkeys(MOTION_CONTROLLERS, 'inactive')
        self.controllers |= dict.fromkeys([*BROADCASTERS, MOTION_CONTROLLERS[0]], 'active')
        self.command_type = 0
        self.silent, self.frame = False, ''
        self.fail = {}  # call -> 'refuse' or 'hang'

    def step(self):
        """Move for one period."""
        if self.mode != MOVE:
            self.goal = None
            return
        if self.goal is not None:
            way = self.goal[0] - self.position
            far = np.linalg.norm(way)
            self.position = self.position + way * min(1.0, SPEED_M_S * PERIOD_S / max(far, 1e-9))
            self.rotation = self.goal[1]
        elif time.monotonic() - self.twist_s < SERVO_TIMEOUT_S:
            v = self.twist * np.repeat(SERVO_SCALES, 3) * PERIOD_S
            self.position = self.position + v[:3]
            self.rotation = Rotation.from_rotvec(v[3:]) * self.rotation

    def stop_with(self, error):
        """Do as a reflex does: hardware and controllers go down with the broadcasters."""
        self.mode, self.errors, self.component = REFLEX, [error], 1
        self.controllers = dict.fromkeys(self.controllers, 'inactive')


class Controllers:
    """All ROS ends of the arm."""

    def __init__(self, node):
        self.node, self.arm, self.lock = node, Arm(), threading.Lock()
        self.out = threading.Lock()
        self.poses = [
            (broadcaster, frame, node.create_publisher(PoseStamped, topic, BEST_EFFORT))
            for broadcaster, frame, topic in (
                ('pose_broadcaster', 'base', '/current_pose'),
                (DRIVER_STATE, 'fr3_link0', f'/{DRIVER_STATE}/current_pose'),
            )
        ]
        self.state = node.create_publisher(FrankaRobotState, f'/{DRIVER_STATE}/robot_state', 1)
        for topic, kind, take, depth in (
            ('/target_pose', PoseStamped, self.crisp, 1),
            ('/cartesian_motion_controller/target_frame', PoseStamped, self.fzi, 3),
            ('/servo_node/pose_target_cmds', PoseStamped, self.servo_pose, 10),
            ('/servo_node/delta_twist_cmds', TwistStamped, self.servo_twist, 10),
        ):
            node.create_subscription(kind, topic, take, depth)
        manager = '/controller_manager'
        for kind, name, serve in (
            (ServoCommandType, '/servo_node/switch_command_type', self.command_type),
            (SetBool, '/servo_node/pause_servo', self.pause_servo),
            (Trigger, '/servo_node/start_servo', self.start_servo),
            (ListHardwareComponents, f'{manager}/list_hardware_components', self.components),
            (SetHardwareComponentState, f'{manager}/set_hardware_component_state', self.component),
            (ListControllers, f'{manager}/list_controllers', self.controllers),
            (SwitchController, f'{manager}/switch_controller', self.switch),
            (
                SetFullCollisionBehavior,
                '/service_server/set_full_collision_behavior',
                self.thresholds,
            ),
        ):
            node.create_service(kind, name, serve)
        ActionServer(node, ErrorRecovery, '/action_server/error_recovery', self.error_recovery)
        node.create_timer(PERIOD_S, self.tick)

    def say(self, **entry):
        with self.out:
            sys.stdout.write(json.dumps(entry) + '\n')
            sys.stdout.flush()

    def obey(self, order):
        """Do what a line on stdin says."""
        with self.lock:
            if order.pop('reset', False):
                self.arm.reset()
            if error := order.pop('reflex', ''):
                self.announce_reflex(error)
            for name, value in order.items():
                assert hasattr(self.arm, name), name
                setattr(self.arm, name, np.array(value) if name == 'position' else value)
        rotation = self.arm.rotation.as_quat().tolist()
        self.say(done=True, position=self.arm.position.tolist(), quaternion=rotation)

    def announce_reflex(self, error):
        self.arm.stop_with(error)
        self.publish_state()

    # Commands

    def pose_command(self, topic, message):
        p, q = message.pose.position, message.pose.orientation
        position, quaternion = [p.x, p.y, p.z], [q.x, q.y, q.z, q.w]
        self.say(
            command=topic,
            frame=message.header.frame_id,
            position=position,
            quaternion=quaternion,
        )
        with self.lock:
            self.arm.goal = (np.array(position), Rotation.from_quat(quaternion))

    def crisp(self, message):
        if self.node.count_publishers('/target_pose') <= 1:
            self.pose_command('crisp', message)

    def fzi(self, message):
        if message.header.frame_id == 'fr3_link0':
            self.pose_command('fzi', message)

    def servo_pose(self, message):
        if self.arm.command_type == ServoCommandType.Request.POSE:
            self.pose_command('servo_pose', message)

    def servo_twist(self, message):
        if self.arm.command_type != ServoCommandType.Request.TWIST:
            return
        t = message.twist
        twist = [t.linear.x, t.linear.y, t.linear.z, t.angular.x, t.angular.y, t.angular.z]
        if max(map(abs, twist)) > 1.0:
            return
        self.say(command='servo_twist', frame=message.header.frame_id, twist=twist)
        with self.lock:
            self.arm.goal = None
            self.arm.twist, self.arm.twist_s = np.array(twist), time.monotonic()

    # Services

    def served(self, call, **given):
        """Note a call; returns what to do wrong."""
        self.say(call=call, **given)
        fail = self.arm.fail.get(call, '')
        if fail == 'hang':
            time.sleep(3.0)
        return fail

    def command_type(self, request, response):
        refused = self.served('switch_command_type', type=request.command_type)
        response.success = not refused
        if not refused:
            self.arm.command_type = request.command_type
        return response

    def pause_servo(self, request, response):
        response.success = not self.served('pause_servo', data=request.data)
        return response

    def start_servo(self, _, response):
        response.success = not self.served('start_servo')
        self.arm.command_type = ServoCommandType.Request.TWIST  # Humble knows no other
        return response

    async def error_recovery(self, goal):
        refused = self.served('error_recovery')
        with self.lock:
            if refused or self.arm.mode == MOVE:
                goal.abort()
            else:
                self.arm.mode, self.arm.errors = IDLE, []
                goal.succeed()
        return ErrorRecovery.Result()

    def components(self, _, response):
        self.served('list_hardware_components')
        response.component = [
            HardwareComponentState(name='gripper', plugin_name='robotiq_driver/Gripper'),
            HardwareComponentState(
                name='FrankaHardwareInterface',
                plugin_name='franka_hardware/FrankaHardwareInterface',
                state=State(id=self.arm.component),
            ),
        ]
        return response

    def component(self, request, response):
        refused = self.served('set_hardware_component_state', name=request.name)
        with self.lock:
            response.ok = not refused and self.arm.mode == IDLE
            if response.ok:
                self.arm.component = request.target_state.id
            response.state = State(id=self.arm.component)
        return response

    def controllers(self, _, response):
        response.controller = [
            ControllerState(name=name, state=state) for name, state in self.arm.controllers.items()
        ]
        return response

    def switch(self, request, response):
        on, off = list(request.activate_controllers), list(request.deactivate_controllers)
        refused = self.served('switch_controller', activate=on, deactivate=off)
        states = self.arm.controllers
        with self.lock:
            wrong = [n for n in on if states[n] == 'active' or self.arm.component != 3]
            if refused or wrong:
                response.ok, response.message = False, f'cannot activate {wrong}'
                return response
            states.update(dict.fromkeys(on, 'active') | dict.fromkeys(off, 'inactive'))
            is_moved = any(states[name] == 'active' for name in MOTION_CONTROLLERS)
            self.arm.mode = MOVE if is_moved else IDLE
            self.arm.goal = None
            response.ok = True
        return response

    def thresholds(self, request, response):
        refused = self.served(
            'set_collision_behavior', force=list(request.upper_force_thresholds_nominal)
        )
        response.success = not refused and self.arm.mode == IDLE
        if not response.success:
            response.error = 'command not possible in the current mode'
        return response

    # State

    def tick(self):
        with self.lock:
            arm = self.arm
            arm.step()
            if arm.silent:
                return
            if arm.controllers[DRIVER_STATE] == 'active':
                self.publish_state()
            self.publish_poses()

    def publish_state(self):
        message = FrankaRobotState(robot_mode=self.arm.mode)
        for error in self.arm.errors:
            setattr(message.current_errors, error, True)
        self.state.publish(message)

    def publish_poses(self):
        for broadcaster, frame, publisher in self.poses:
            if self.arm.controllers[broadcaster] != 'active':
                continue
            message = PoseStamped()
            message.header.frame_id = self.arm.frame or frame
            p, q = self.arm.position.tolist(), self.arm.rotation.as_quat().tolist()
            message.pose.position.x, message.pose.position.y, message.pose.position.z = p
            o = message.pose.orientation
            o.x, o.y, o.z, o.w = q
            publisher.publish(message)


def main():
    rclpy.init()
    node = rclpy.create_node('arm_controller')
    controllers = Controllers(node)
    executor = MultiThreadedExecutor(4)
    executor.add_node(node)

    def spin():
        try:
            executor.spin()
        finally:
            os._exit(1)  # no controller is left: the test is to see it at once

    threading.Thread(target=spin, daemon=True).start()
    controllers.say(ready=True)
    for line in sys.stdin:
        controllers.obey(json.loads(line))
    os._exit(0)


if __name__ == '__main__':
    main()
