"""The environment of node processes: confined, complete, and one domain a run."""

import subprocess
import sys

import pytest

from grape_bringup.ros_environment import (
    DOMAIN_IDS,
    DomainError,
    claim_domain_id,
    config_file,
    ros_environment,
)


def test_processes_stay_on_this_machine_and_in_their_domain():
    environment = ros_environment(7, base={})
    assert environment['ROS_DOMAIN_ID'] == '7'
    assert environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert environment['FASTDDS_DEFAULT_PROFILES_FILE'] == str(config_file('fastdds.xml'))


def test_a_sourced_workspace_and_a_chosen_renderer_are_kept():
    base = {'AMENT_PREFIX_PATH': '/opt/ros/jazzy', 'MUJOCO_GL': 'egl', 'OMP_NUM_THREADS': '4'}
    environment = ros_environment(7, base)
    assert environment['AMENT_PREFIX_PATH'].startswith('/opt/ros/jazzy')
    assert 'MUJOCO_GL' not in environment
    assert environment['OMP_NUM_THREADS'] == '4'


def test_a_domain_outside_the_allowed_range_is_refused():
    with pytest.raises(DomainError, match=r'102 is not in 0\.\.101'):
        ros_environment(102, base={})


def test_a_missing_configuration_says_where_it_was_looked_for():
    with pytest.raises(FileNotFoundError, match=r'config/none\.xml.*make setup'):
        config_file('none.xml')


def test_two_claims_get_two_domains():
    with claim_domain_id() as first, claim_domain_id() as second:
        assert first != second
        assert {first, second} <= set(DOMAIN_IDS)


def test_a_killed_process_frees_its_domain():
    program = (
        'import time\n'
        'from grape_bringup.ros_environment import claim_domain_id\n'
        'with claim_domain_id() as domain_id:\n'
        '    import sys; sys.stdout.write(f"{domain_id}\\n"); sys.stdout.flush(); time.sleep(60)\n'
    )
    child = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
    held = int(child.stdout.readline())
    with claim_domain_id() as own:
        assert own != held
    child.kill()
    child.communicate()
    claims = [claim_domain_id() for _ in DOMAIN_IDS]
    taken = []
    try:
        for claim in claims:
            taken.append(claim.__enter__())
    except DomainError:
        pass  # another run on this machine holds one
    finally:
        for claim in claims[: len(taken)]:
            claim.__exit__(None, None, None)
    assert held in taken


@pytest.mark.parametrize('package', ['std_msgs', 'grape'])
def test_a_node_process_finds_its_interfaces(ros_env, package):
    program = f"""
from ament_index_python import get_package_share_directory
import rclpy
from {package} import msg
get_package_share_directory('{package}')
rclpy.init(); rclpy.create_node('probe').destroy_node(); rclpy.shutdown()
"""
    subprocess.run([sys.executable, '-c', program], check=True, timeout=60)


def test_two_node_processes_find_each_other(ros_process, tmp_path):
    (tmp_path / 'talker.py').write_text("""
import rclpy
from std_msgs.msg import String
rclpy.init(); node = rclpy.create_node('talker')
publisher = node.create_publisher(String, 'word', 1)
timer = node.create_timer(0.05, lambda: publisher.publish(String(data='grape')))
rclpy.spin(node)
""")
    (tmp_path / 'listener.py').write_text("""
import rclpy, sys
from std_msgs.msg import String
rclpy.init(); node = rclpy.create_node('listener')
node.create_subscription(String, 'word', lambda m: sys.stdout.write(f'heard {m.data}\\n'), 1)
rclpy.spin(node)
""")
    where = {'PYTHONPATH': str(tmp_path)}
    ros_process('talker', environment=where)
    listener = ros_process('listener', environment=where)
    listener.wait_for('heard grape', timeout_s=20)
    listener.kill()
