"""Score a recorded episode from its replayed topics, as if it happened now.

ros2 launch grape replay.launch.py bag:=runs/demo/round_1/bags/libero_object_0-i00-t0-s1

The player sends the episode's START, waits for the recorder, then steps and STOP; the recorder
records them anew into output_dir, and the trainer node scores that and publishes the terms on
trial_score.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    'bag': (None, 'bag folder of one episode'),
    'contract': (
        'libero',
        'name in config/contract/ or a YAML file: the one it was recorded under',
    ),
    'objective': ('', 'completion, safety, efficiency or a YAML file; empty: completion'),
    'costs': ('', 'cost program, approved (grape costs review)'),
    'stages': ('', 'proposed stages (grape stages propose)'),
    'allow_unapproved': ('false', 'true: costs that nobody approved'),
    'keypoints': ('', 'scene, clicks or perceived (from cameras)'),
    'clicks': ('', 'of clicks: file or folder'),
    'numbers': ('', 'of perceived: file or folder'),
    'output_dir': ('replayed', 'folder for the bag that is recorded anew'),
    'out_dir': ('replayed_scores', 'folder for scores.csv'),
    'rate': ('1.0', 'speed of the replay'),
}
SCORING = ('contract', 'objective', 'costs', 'stages', 'keypoints', 'clicks', 'numbers', 'out_dir')


def generate_launch_description() -> LaunchDescription:
    """Start the nodes and the player."""
    arguments = [
        DeclareLaunchArgument(name, description=text)
        if default is None
        else DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    # As text: a folder called 2025 would arrive as a number, which the node refuses.
    text = {name: ParameterValue(value[name], value_type=str) for name in ARGUMENTS}
    recorder = Node(
        package='grape',
        executable='recorder_node',
        name='recorder_node',
        output='screen',
        parameters=[{name: text[name] for name in ('contract', 'output_dir')}],
    )
    trainer = Node(
        package='grape',
        executable='trainer_node',
        name='trainer_node',
        output='screen',
        parameters=[
            {name: text[name] for name in SCORING}
            | {
                'bags_dir': text['output_dir'],
                'allow_unapproved': ParameterValue(value['allow_unapproved'], value_type=bool),
            }
        ],
    )
    player = Node(
        package='grape',
        executable='player_node',
        name='player_node',
        output='screen',
        parameters=[
            {
                'bag': text['bag'],
                'rate': ParameterValue(value['rate'], value_type=float),
            }
        ],
    )
    return LaunchDescription([*arguments, recorder, trainer, player])
