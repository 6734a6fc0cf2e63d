"""The robot workstation: cameras, recorder, guard, policy and trials, brought up in order.

ros2 launch grape robot.launch.py policy:=/models/openvla arm:=crisp gripper:=action

The arm's own driver and controllers (franka_ros2 with crisp_controllers, the Robotiq driver) are
started by themselves: what moves should be started on purpose. The guard comes up disarmed.
Without a robot: arm:=fake gripper:=fake cameras:=none; nothing is moved, all else is real.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARMS = ('crisp', 'servo_twist', 'servo_pose', 'fzi', 'fci', 'fake')
GRIPPERS = ('action', 'modbus', 'fake', 'none')
WRAPPER = 'realsense2_camera'
CAMERAS = (WRAPPER, 'direct', 'none')
TELEOP = ('none', 'spacemouse', 'joy')
SWITCH = ('true', 'false')

TRIALS = {'contract': 'contract', 'config': 'trial_config', 'bags': 'output_dir'}

# name: (default, None where required; what it says in --show-args; its choices, if there are any)
ARGUMENTS = {
    'policy': (None, 'policy folder (OpenVLA layout)', ()),
    'adapter': ('', 'LoRA adapter folder; empty: the base policy', ()),
    'contract': ('franka_openvla', 'name in config/contract/ or a YAML file', ()),
    'device': ('cuda', 'of the policy: cuda, cpu ...', ()),
    'output_dir': ('bags', 'folder for the bags, one an episode', ()),
    'namespace': ('', 'of all nodes and topics', ()),
    'arm': ('crisp', 'which controller takes the targets', ARMS),
    'gripper': ('action', "the Robotiq's ROS driver, or its serial line directly", GRIPPERS),
    'cameras': (WRAPPER, "the ROS wrapper, or this project's camera_node", CAMERAS),
    'dry_run': ('false', 'true: the guard decides everything and sends nothing', SWITCH),
    'guard_config': ('guard', 'limits: name in config/robot/ or a YAML file', ()),
    'trial_config': ('trial', 'topics and tasks: name in config/robot/ or a YAML file', ()),
    'camera_config': (
        '',
        'of camera_node: name in config/robot/ or a YAML; empty: its own',
        (),
    ),
    'front_serial': ('', 'of the front camera, for realsense2_camera; empty: any', ()),
    'wrist_serial': ('', 'of the wrist camera, for realsense2_camera; empty: any', ()),
    'teleop': ('none', 'what a person intervenes with (a keyboard: grape teleop)', TELEOP),
    'page': ('true', 'the page for labelling, on this machine only', SWITCH),
    'train': ('false', 'true: a trainer node scores every recorded trial', SWITCH),
    'objective': ('completion', 'of the trainer: completion, safety, efficiency or a YAML', ()),
    'out_dir': ('training', "the trainer's folder for scores.csv and adapters", ()),
}


def generate_launch_description() -> LaunchDescription:
    """Start the nodes; when the manager ends, all end."""
    arguments = [
        DeclareLaunchArgument(
            name,
            description=f'{text} ({", ".join(choices)})' if choices else text,
            **({} if default is None else {'default_value': default}),
            **({'choices': list(choices)} if choices else {}),
        )
        for name, (default, text, choices) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: object) -> list:
    """Return what the arguments ask for."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    is_wrapped = value['cameras'] == WRAPPER
    value['camera_config'] = value['camera_config'] or (
        'camera_realsense2' if is_wrapped else 'camera'
    )
    cameras = [realsense(name, value) for name in ('front', 'wrist') if is_wrapped]
    if value['cameras'] != 'none':  # beside the wrapper it watches, and says where they stand
        cameras.append(own('camera_node', value, {'config': 'camera_config'}))
    nodes = [
        *cameras,
        own('recorder_node', value, {'output_dir': 'output_dir', 'contract': 'contract'}),
        own(
            'guard_node',
            value,
            {'contract': 'contract', 'config': 'guard_config', 'arm': 'arm', 'gripper': 'gripper'},
            dry_run=value['dry_run'] == 'true',
        ),
        # Not autostarted: the manager configures and activates it in its turn.
        own(
            'policy_node',
            value,
            {name: name for name in ('policy', 'adapter', 'contract', 'device')},
        ),
        own(
            'trial_node',
            value,
            TRIALS,
        ),
    ]
    manager = own('manager_node', value, {}, **stack(value['cameras']))
    extras = []
    if value['teleop'] != 'none':
        extras.append(own('teleop_node', value, {'device': 'teleop'}))
    if value['page'] == 'true':
        extras.append(own('page_node', value, TRIALS))
    if value['train'] == 'true':
        learning = {name: name for name in ('policy', 'contract', 'objective', 'out_dir')}
        extras.append(own('trainer_node', value, learning | {'bags_dir': 'output_dir'}))
    stop = RegisterEventHandler(
        OnProcessExit(target_action=manager, on_exit=[EmitEvent(event=Shutdown())])
    )
    return [*nodes, *extras, stop, manager]


def stack(cameras: str) -> dict:
    """Return the manager's parameters: who comes up, in which order, and who says nothing."""
    wrapped = ['/camera/front', '/camera/wrist'] if cameras == WRAPPER else []
    watched = [] if cameras == 'none' else ['camera_node']
    nodes = [*wrapped, *watched, 'recorder_node', 'guard_node', 'policy_node', 'trial_node']
    return {'nodes': nodes} | ({'without_heartbeat': wrapped} if wrapped else {})


def own(executable: str, value: dict, names: dict, **fixed: object) -> Node:
    """Start a node of this package; `names` are its parameters and the arguments they take."""
    # As text: a folder called 2025 would arrive as a number, which the node refuses.
    parameters = {
        name: ParameterValue(value[argument], value_type=str) for name, argument in names.items()
    }
    return Node(
        package='grape',
        executable=executable,
        name=executable,
        namespace=value['namespace'],
        output='screen',
        parameters=[parameters | fixed] if parameters or fixed else [],
    )


def realsense(name: str, value: dict) -> Node:
    """Start a camera by realsense2_camera; two of them are told apart by their serial numbers."""
    return Node(
        package=WRAPPER,
        executable=f'{WRAPPER}_node',
        namespace='camera',
        name=name,
        output='screen',
        parameters=[
            {
                'camera_name': name,
                'serial_no': ParameterValue(value[f'{name}_serial'], value_type=str),
                'align_depth.enable': True,
                'rgb_camera.color_profile': '640x480x30',
                'depth_module.depth_profile': '640x480x30',
            }
        ],
    )
