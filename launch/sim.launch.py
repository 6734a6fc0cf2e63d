"""A policy in simulation: bridge, recorder and policy node; play episodes with RunEpisode.

ros2 launch grape sim.launch.py policy:=models/grape_tiny contract:=models/grape_tiny/contract.yaml
ros2 action send_goal /run_episode grape/action/RunEpisode
    "{task: libero_object/0, controller: policy, episode_id: first}"
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    'policy': (None, 'policy folder (OpenVLA layout)'),
    'adapter': ('', 'LoRA adapter folder; empty: the base policy'),
    'contract': ('libero', 'name in config/contract/ or a YAML file'),
    'rendering': ('auto', 'auto (stock where there is a GPU), fast or stock'),
    'mode': ('lockstep', 'lockstep, or realtime'),
    'output_dir': ('bags', 'folder for the bags, one an episode'),
    'device': ('cpu', 'of the policy: cpu, cuda ...'),
    'namespace': ('', 'of all nodes and topics'),
}


def generate_launch_description() -> LaunchDescription:
    """Start the nodes; when one ends, all end."""
    arguments = [
        DeclareLaunchArgument(name, description=text)
        if default is None
        else DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    nodes = [
        _node('bridge_node', 'contract', 'rendering', 'mode'),
        _node('recorder_node', 'contract', 'output_dir'),
        _node('policy_node', 'policy', 'adapter', 'contract', 'device', autostart=True),
    ]
    stop = [
        RegisterEventHandler(
            OnProcessExit(target_action=node, on_exit=[EmitEvent(event=Shutdown())])
        )
        for node in nodes
    ]
    return LaunchDescription([*arguments, *stop, *nodes])


def _node(executable: str, *arguments: str, **fixed: bool) -> Node:
    """Start the executable with the launch arguments as its parameters of the same names."""
    # As text: a folder called 2025 would arrive as a number, which the node refuses.
    parameters = {
        name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in arguments
    }
    return Node(
        package='grape',
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[parameters | fixed],
    )
