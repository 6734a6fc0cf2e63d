"""Simulation as in sim.launch.py, and a trainer node that scores each trial when it is recorded.

ros2 launch grape train.launch.py policy:=models/grape_tiny
    contract:=models/grape_tiny/contract.yaml
ros2 service call /trainer_node/update std_srvs/srv/Trigger
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

OWN = {
    'objective': ('completion', 'completion, safety, efficiency or a YAML file'),
    'tpo': ('', 'YAML of the training; empty: the values of the paper'),
    'out_dir': ('training', 'folder for scores.csv and the trained adapters'),
}
SHARED = {
    'policy': (None, 'policy folder (OpenVLA layout)'),
    'adapter': ('', 'LoRA adapter folder; empty: the base policy'),
    'contract': ('libero', 'name in config/contract/ or a YAML file'),
    'output_dir': ('bags', 'folder for the bags, one an episode'),
    'namespace': ('', 'of all nodes and topics'),
}


def generate_launch_description() -> LaunchDescription:
    """Include sim.launch.py and add the trainer."""
    arguments = [
        DeclareLaunchArgument(name, description=text)
        if default is None
        else DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in (SHARED | OWN).items()
    ]
    simulation = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare('grape'), 'launch', 'sim.launch.py'])
        ),
        launch_arguments=[(name, LaunchConfiguration(name)) for name in SHARED],
    )
    names = ('policy', 'adapter', 'contract', 'objective', 'tpo', 'out_dir')
    trainer = Node(
        package='grape',
        executable='trainer_node',
        name='trainer_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[{name: _text(name) for name in names} | {'bags_dir': _text('output_dir')}],
    )
    return LaunchDescription([*arguments, simulation, trainer])


def _text(argument: str) -> ParameterValue:
    """Pass a launch argument on as text, even where it reads like a number."""
    return ParameterValue(LaunchConfiguration(argument), value_type=str)
