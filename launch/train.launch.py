"""Algorithm 1 in simulation: sim.launch.py, a trainer node, and who plays the rounds.

ros2 launch grape train.launch.py policy:=models/grape_tiny
    contract:=models/grape_tiny/contract.yaml tasks:=libero_object/0 rounds:=3

drive:=false starts no rounds: play trials by RunEpisode; each is scored when it is recorded, and
ros2 service call /trainer_node/update std_srvs/srv/Trigger trains on them.
"""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ROUNDS = {
    'tasks': ('libero_object/0', '<suite>/<index>, several with commas', str),
    'init_states': ('0-4', 'such as 0-4,7', str),
    'rounds': ('3', 'K of Algorithm 1', int),
    'trials': ('5', 'N_t, of each initial state and round', int),
    'temperature': ('1.0', 'of sampling', float),
    'seed': ('0', 'of the run', int),
    'max_steps': ('0', "0: the suites' official limits", int),
}
OWN = {
    'objective': ('completion', 'completion, safety, efficiency or a YAML file'),
    'tpo': ('', 'YAML of the training; empty: the values of the paper'),
    'out_dir': ('training', 'folder for scores.csv and the trained adapters'),
    'drive': ('true', 'false: trials and updates are asked for by hand'),
}
SHARED = {
    'policy': (None, 'policy folder (OpenVLA layout)'),
    'adapter': ('', 'LoRA adapter folder; empty: the base policy'),
    'contract': ('libero', 'name in config/contract/ or a YAML file'),
    'rendering': ('auto', 'auto (stock where there is a GPU), fast or stock'),
    'device': ('cpu', 'of the acting policy: cpu, cuda ...'),
    'output_dir': ('bags', 'folder for the bags, one an episode'),
    'namespace': ('', 'of all nodes and topics'),
}


def generate_launch_description() -> LaunchDescription:
    """Include sim.launch.py, add the trainer and the rounds; all end after the last round."""
    declared = SHARED | OWN | {name: found[:2] for name, found in ROUNDS.items()}
    arguments = [
        DeclareLaunchArgument(name, description=text)
        if default is None
        else DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in declared.items()
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
        parameters=[{name: _value(name) for name in names} | {'bags_dir': _value('output_dir')}],
    )
    rounds = Node(
        package='grape',
        executable='iteration_node',
        name='iteration_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        condition=IfCondition(LaunchConfiguration('drive')),
        parameters=[
            {name: _value(name, kind) for name, (_, _, kind) in ROUNDS.items()}
            | {'output_dir': _value('output_dir')}
        ],
    )
    stop = RegisterEventHandler(
        OnProcessExit(target_action=rounds, on_exit=[EmitEvent(event=Shutdown())])
    )
    return LaunchDescription([*arguments, simulation, trainer, stop, rounds])


def _value(argument: str, kind: type = str) -> ParameterValue:
    """Pass a launch argument on with its type: a folder called 2025 stays a text."""
    return ParameterValue(LaunchConfiguration(argument), value_type=kind)
