"""The whole workstation but for its hardware: what robot.launch.py starts, brought up and down."""

from pathlib import Path

import pytest
from robot_peer import wait_until
from robot_trial_bench import IDLE, RUNNING, TO_LABEL, Bench
from test_robot_trial_guard import PATIENT

from grape_episode.bag import read_episode
from grape_episode.label import effective_outcome
from grape_policy_node.engine import Engine
from grape_trainer.dataset import load_trial

POLICY = Path(__file__).parents[1] / 'models' / 'grape_tiny'
NODES = ['recorder_node', 'guard_node', 'policy_node', 'trial_node']
DISARMED = 0
DIED = 30  # exit code of the manager: this and the node's place


@pytest.fixture(scope='module')
def stack(ros_processes, tmp_path_factory):
    """Our own cameras and the fake arm; everything else is real."""
    import rclpy
    from grape.msg import GuardState

    rclpy.init()
    bench = Bench(rclpy, tmp_path_factory.mktemp('stack'), ros_processes, has_guard=False)
    bench.policy.close()
    bench.guard_modes = []
    bench.robot.node.create_subscription(
        GuardState, 'guard/state', lambda state: bench.guard_modes.append(state.mode), 10
    )
    contract = {'contract': bench.contract_path}
    ros_processes(
        'grape_bringup.robot.guard_node', contract | PATIENT | {'arm': 'fake', 'gripper': 'fake'}
    )
    bench.policy_process = ros_processes(
        'grape_policy_node.policy_node', contract | {'policy': POLICY}
    )
    bench.manager = ros_processes('grape_bringup.robot.manager_node', {'nodes': NODES})
    bench.wait_for_graph()
    bench.manager.wait_for('the stack is up', 60.0)
    yield bench
    bench.robot.close()
    rclpy.try_shutdown()


def arm(bench):
    from std_srvs.srv import SetBool

    client = bench.robot.node.create_client(SetBool, 'guard/arm')
    assert client.wait_for_service(30.0)
    said = []

    def armed():
        answer = wait_until(client.call_async(SetBool.Request(data=True)).result)
        said.append(answer.message)
        return answer.success

    wait_until(armed, 40.0, said)


def test_a_real_policys_trial_is_judged_by_a_person_and_ready_to_learn_from(stack):
    arm(stack)
    stack.wait_state(IDLE)
    assert stack.press('next')[0]
    wait_until(lambda: stack.press('ready')[0], 20.0, 'never ready')
    stack.wait_state(RUNNING)
    wait_until(lambda: stack.state.step >= 8, 30.0)
    assert stack.press('failure')[0]
    wait_until(lambda: stack.state.state in (IDLE, TO_LABEL), 20.0)
    bag = wait_until(lambda: stack.state.bag_path, 20.0)
    episode = read_episode(bag)
    assert set(episode.sources) <= {'policy', 'hold'} and 'policy' in episode.sources
    assert effective_outcome(bag) == 'failure'
    engine = Engine.load(POLICY)
    trial = load_trial(Path(bag), engine.processor.pixels)
    again = engine.trajectory_log_probs(trial.images, trial.instruction, trial.token_ids)
    assert trial.steps == sum(source == 'policy' for source in episode.sources) >= 3
    assert again.detach().numpy() == pytest.approx(trial.log_probs.numpy(), abs=1e-3)


def test_a_killed_policy_brings_the_stack_down_with_the_guard_disarmed(stack):
    arm(stack)
    stack.policy_process.kill()
    code = stack.manager.popen.wait(30.0)
    assert code == DIED + NODES.index('policy_node'), stack.manager.output()
    wait_until(lambda: stack.guard_modes[-1] == DISARMED, 10.0, stack.guard_modes[-20:])
