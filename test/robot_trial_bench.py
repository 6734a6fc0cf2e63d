"""A trial node and a recorder as processes, a robot that breaks on demand, and an operator."""

import time
from pathlib import Path

import yaml
from robot_peer import PolicyPeer, RobotPeer, wait_until, write_contract

from grape_episode.ros_qos import qos_profile

IDLE, RESETTING, RUNNING, PAUSED, TO_LABEL = range(5)


class Bench:
    """The robot, the policy, and the operator at the buttons."""

    def __init__(self, rclpy, folder, start, has_guard=True):
        from grape.action import RunEpisode
        from grape.msg import EpisodeEvent, TrialState
        from grape.srv import LabelEpisode
        from rclpy.action import ActionClient
        from std_srvs.srv import Trigger

        from grape_bringup.robot.trial_topics import LATCHED
        from grape_episode.contract import load_contract

        self.bags = folder / 'bags'
        self.contract_path = write_contract(folder / 'contract.yaml')
        self.contract = load_contract(self.contract_path)
        self.config_path = folder / 'trial.yaml'
        shipped = Path(__file__).parents[1] / 'config/robot/trial.yaml'
        # Looser than on a robot: test machines are busy, and an unwanted error tells nothing.
        looser = {'max_image_age_s': 1.5, 'max_state_age_s': 1.5, 'max_guard_age_s': 2.0}
        config = yaml.safe_load(shipped.read_text()) | looser
        self.config_path.write_text(yaml.safe_dump(config))
        self.robot = RobotPeer(rclpy, has_guard)
        self.policy = PolicyPeer(rclpy, self.contract)
        self._kinds = RunEpisode, LabelEpisode, Trigger
        node = self.robot.node
        self.states = []
        node.create_subscription(TrialState, 'trial/state', self.states.append, LATCHED)
        self.events = []
        topic = self.contract.topic('episode_event')
        node.create_subscription(EpisodeEvent, topic.name, self.events.append, qos_profile(topic))
        # Made at once: an answer to a client that its server has not seen yet is lost.
        names = ('next', 'ready', 'success', 'failure', 'discard', 'pause', 'resume', 'abort')
        self._buttons = {name: node.create_client(Trigger, f'trial/{name}') for name in names}
        self._labels = node.create_client(LabelEpisode, 'trial/label')
        self._action = ActionClient(node, RunEpisode, 'run_episode')
        self._start = start
        self.trial = self.recorder = None
        self.start_recorder()
        self.trial = start(
            'grape_bringup.robot.trial_node',
            {'contract': self.contract_path, 'config': self.config_path, 'bags': self.bags},
        )
        self._count = 0
        self.is_calibrated, self.refusal = False, (True, '')

    def start_recorder(self):
        self.recorder = self._start(
            'grape_episode.recorder_node',
            {'output_dir': self.bags, 'contract': self.contract_path, 'drain_timeout_s': 1.0},
        )

    def close(self):
        self.policy.close()
        self.robot.close()

    @property
    def state(self):
        return self.states[-1]

    def wait_for_graph(self):
        """Wait until everybody sees everybody."""
        node = self.robot.node
        wait_until(lambda: self.states, 30.0, 'no trial/state')
        names = [topic.name for topic in self.contract.topics if topic.per_step]
        wait_until(lambda: all(node.count_subscribers(n) for n in names), 20.0, 'no recorder')
        for client in (self._labels, *self._buttons.values()):
            wait_until(client.service_is_ready, 20.0)
        wait_until(self._action.server_is_ready, 20.0)
        if not self.is_calibrated:
            # The camera says where it stands before its trials begin, and only once.
            self.wait_state(IDLE)
            self.ask()
            time.sleep(0.5)
            self.refusal = self.press('ready')
            self.press('abort')
            self.wait_state(IDLE)
            self.robot.calibrate()
            self.is_calibrated = True
        time.sleep(0.5)  # and the trial node has pictures

    def press(self, name):
        """Press a button; returns (success, message)."""
        future = self._buttons[name].call_async(self._kinds[2].Request())
        answer = wait_until(future.result, 10.0, f'trial/{name} does not answer')
        return answer.success, answer.message

    def label(self, outcome, reason=''):
        request = self._kinds[1].Request(outcome=outcome, reason=reason, labeller='ada')
        answer = wait_until(self._labels.call_async(request).result)
        return answer.success, answer.message

    def ask(self, **goal):
        """Send a goal; returns a function that gives the result."""
        self._count += 1
        goal = {
            'task': 'table/0', 'episode_id': f't{self._count}', 'max_steps': 1000,
            'controller': 'policy', 'init_state': -1,
        } | goal  # fmt: skip
        sent = wait_until(self._action.send_goal_async(self._kinds[0].Goal(**goal)).result)
        assert sent.accepted
        self.wait_state(RESETTING, goal['episode_id'])
        future = sent.get_result_async()
        return lambda: wait_until(future.result, 20.0, 'no result').result

    def wait_state(self, state, episode=None):
        def reached():
            now = self.states[-1]
            return now.state == state and episode in (None, now.episode_id)

        wait_until(reached, 15.0, f'never in state {state}: {self.states[-1]}')

    def run(self, steps=8, **goal):
        """Have a trial running; returns its result's function."""
        result = self.ask(**goal)
        done = self.press('ready')
        assert done[0], done
        self.wait_state(RUNNING)
        wait_until(lambda: self.state.step >= steps or self.state.state != RUNNING)
        return result
