"""The bridge as a process, with a real recorder and a policy that does what the test wants."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from recorder_peer import wait_until

from grape_bringup.node_process import NodeProcess, NodeSpec
from grape_episode.bag import read_episode, read_info
from grape_episode.contract import load_contract
from grape_episode.outcome import Outcome

pytestmark = pytest.mark.sim

TASK = 'libero_object/0'
CONTRACT = load_contract('libero').with_camera_size(64)
READY_TIMEOUT_S, STEP_TIMEOUT_S = 3.0, 2.0


class Stage:
    """Bridge and recorder as processes, and in this one an action client and a policy."""

    def __init__(self, rclpy, environment, root):
        from grape.action import RunEpisode
        from grape.msg import EpisodeEvent, PolicyStep
        from rclpy.action import ActionClient
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image

        from grape_episode.ros_qos import qos_profile

        contract = root / 'contract.yaml'
        contract.write_text(yaml.safe_dump(CONTRACT.to_dict()))
        self.root, self._environment = root, environment
        bridge = {
            'contract': str(contract),
            'rendering': 'fast',
            'ready_timeout_s': READY_TIMEOUT_S,
            'step_timeout_s': STEP_TIMEOUT_S,
            'recorded_timeout_s': 10.0,
        }
        recorder = {'contract': str(contract), 'output_dir': str(root / 'bags')}
        self._specs = {
            'bridge': NodeSpec('bridge_node', 'sim_bridge.bridge_node', bridge),
            'recorder': NodeSpec('recorder_node', 'grape_episode.recorder_node', recorder),
        }
        self.processes = {}
        self.node = rclpy.create_node('policy_node')
        qos = {topic.role: qos_profile(topic) for topic in CONTRACT.topics}
        self.kinds, self._step, self._goal = EpisodeEvent, PolicyStep, RunEpisode.Goal
        self._client = ActionClient(self.node, RunEpisode, 'run_episode')
        self._events = self.node.create_publisher(
            EpisodeEvent, 'episode_event', qos['episode_event']
        )
        self._steps = self.node.create_publisher(PolicyStep, 'policy_step', qos['policy_step'])
        self.node.create_subscription(
            EpisodeEvent, 'episode_event', self._on_event, qos['episode_event']
        )
        topic = CONTRACT.cameras['agentview'].topic
        self.node.create_subscription(Image, topic, self._on_image, qos['image'])
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        threading.Thread(target=self._executor.spin, daemon=True).start()
        self.manner, self.episode, self.pictures = 'absent', '', 0

    def ready(self, manner='absent'):
        """Start what does not run; the policy behaves in this manner from now on."""
        self.manner = manner
        for name, spec in self._specs.items():
            old = self.processes.get(name)
            if old is None or old.returncode is not None:
                self.processes[name] = NodeProcess(
                    spec, {**os.environ, **self._environment}, self.root / 'logs'
                )
        wait_until(self._client.server_is_ready, 60.0)
        names = {t.name for t in CONTRACT.topics}
        wait_until(lambda: all(self._sees_recorder(name) for name in names), 20.0)
        time.sleep(0.3)  # and they each other
        return self

    def _sees_recorder(self, topic):
        found = self.node.get_subscriptions_info_by_topic(topic)
        return 'recorder_node' in {info.node_name for info in found}

    def send(self, name, **fields):
        """Send a goal; returns its handle."""
        fields = {'task': TASK, 'controller': 'policy', 'max_steps': 200, 'seed': 5} | fields
        future = self._client.send_goal_async(self._goal(episode_id=name, **fields))
        return wait_until(future.result, 20.0)

    def result(self, handle):
        """Return (result, status of the action)."""
        answer = wait_until(handle.get_result_async().result, 90.0)
        return answer.result, answer.status

    def play(self, name, **fields):
        return self.result(self.send(name, **fields))[0]

    def close(self):
        for process in self.processes.values():
            process.stop()
        self._executor.shutdown()
        self.node.destroy_node()

    # The policy.

    def _say(self, kind, name, **fields):
        event = self.kinds(kind=kind, source='policy', episode_id=name, **fields)
        self._events.publish(event)

    def _on_event(self, event):
        if event.kind == self.kinds.START:
            self.episode, self.pictures = event.episode_id, 0
            if self.manner != 'absent' and event.controller == 'policy':
                self._say(self.kinds.READY, event.episode_id, adapter_id='base')

    def _on_image(self, message):
        self.pictures += 1
        if self.manner == 'fails':
            self._say(self.kinds.ERROR, self.episode, detail='out of memory')
        if self.manner == 'acts':
            stamp, step = message.header.stamp, self.pictures - 1
            self._act(
                self.episode, 10**6, stamp.sec + 99, stamp.nanosec, 0.05
            )  # another picture's
            self._act('another', step, stamp.sec, stamp.nanosec, 0.05)
            self._act(self.episode, step, stamp.sec, stamp.nanosec, 0.0)

    def _act(self, name, step, sec, nanosec, move_m):
        answer = self._step(episode_id=name, step=step, gripper_opening=1.0, source='policy')
        answer.header.stamp.sec, answer.header.stamp.nanosec = sec, nanosec
        answer.delta_translation.x = move_m
        self._steps.publish(answer)


@pytest.fixture(scope='module')
def stage(ros_env, tmp_path_factory):
    import rclpy

    rclpy.init()
    stage = Stage(rclpy, ros_env, tmp_path_factory.mktemp('bridge'))
    yield stage
    stage.close()
    rclpy.try_shutdown()


def test_the_expert_records_a_success_with_one_more_state_than_steps(stage):
    """And the recorded actions are the intended ones, without the noise that was executed."""
    done = stage.ready().play('expert', controller='expert', action_noise=0.1, max_steps=0)
    assert (done.outcome, done.detail) == ('success', '')
    episode = read_episode(done.bag_path)
    steps = done.steps
    assert episode.info.steps == steps == len(episode.images['agentview']) > 50
    assert len(episode.scene.success) == steps + 1 and episode.info.lost == {}
    assert episode.scene.success.tolist() == [False] * steps + [True]
    assert episode.stamps_ns.tolist() == [50_000_000 * step for step in range(steps)]
    assert set(episode.sources) == {'expert'} and episode.action_token_ids.shape == (steps, 0)
    assert np.abs(episode.policy_actions()[:, :6]).max() <= 1.0 + 1e-9
    told = episode.info.environment
    assert told['target'] == 'alphabet_soup_1' and told['max_steps'] == told['suite_limit'] == 280
    assert told['settings']['rendering'] == 'fast' and told['action_noise'] == pytest.approx(0.1)
    assert (told['cameras']['agentview']['height'], told['cameras']['agentview']['width']) == (
        episode.images['agentview'].shape[1:3]
    )


def test_the_same_seed_gives_the_same_episode_bit_for_bit(stage):
    stage.ready()
    fields = {'controller': 'expert', 'action_noise': 0.25, 'max_steps': 25}
    first, again, other = (
        read_episode(stage.play(name, seed=seed, **fields).bag_path)
        for name, seed in (('seed_a', 7), ('seed_b', 7), ('seed_c', 8))
    )
    for field in ('ee_position_m', 'joint_positions', 'translation_m'):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert np.array_equal(first.images['agentview'], again.images['agentview'])
    assert not np.array_equal(first.ee_position_m, other.ee_position_m)


def test_only_the_step_of_this_picture_and_episode_is_executed(stage):
    done = stage.ready('acts').play('lockstep', max_steps=6)
    assert (done.outcome, done.steps) == ('failure', 6)
    assert done.detail == 'not done within 6 steps'
    episode = read_episode(done.bag_path)
    assert np.abs(np.diff(episode.ee_position_m[:, 0])).max() < 0.002  # 0.05 m was never executed
    assert episode.info.adapter_id == 'base'


def test_a_silent_policy_is_an_error_after_the_step_timeout(stage):
    began = time.monotonic()
    done = stage.ready('silent').play('silent')
    assert time.monotonic() - began < STEP_TIMEOUT_S + 10
    assert (done.outcome, done.steps) == ('error', 0)
    assert done.detail == 'no PolicyStep for step 0 within 2 s'
    info = read_info(done.bag_path)
    assert (info.outcome, info.detail, info.lost) == (Outcome.ERROR, done.detail, {})


def test_a_policy_that_fails_ends_the_episode_with_its_reason(stage):
    done = stage.ready('fails').play('fails')
    assert (done.outcome, done.detail) == ('error', 'policy: out of memory')
    assert read_info(done.bag_path).outcome is Outcome.ERROR


def test_a_missing_participant_is_named_after_the_ready_timeout(stage):
    done = stage.ready('absent').play('alone')
    assert done.outcome == 'error' and 'no READY from policy within 3 s' in done.detail
    assert read_info(done.bag_path).outcome is Outcome.ERROR


@pytest.mark.parametrize(
    ('fields', 'word'),
    [
        ({'task': 'nope/0'}, 'libero_spatial'),
        ({'init_state': 50}, r'0..49'),
        ({'controller': 'teleop'}, 'policy, expert, operator'),
        ({'controller': 'expert', 'expert_attempt': 9}, 'attempt 9'),
        ({'action_noise': -1.0}, 'expected 0 or more'),
    ],
)
def test_a_goal_that_cannot_be_played_is_an_error_with_the_choices_and_no_bag(stage, fields, word):
    done = stage.ready('silent').play('wrong', **fields)
    assert (done.outcome, done.bag_path) == ('error', '') and word in done.detail
    assert not (stage.root / 'bags' / 'wrong').exists()


def test_a_taken_episode_id_ends_at_once_with_the_recorders_reason(stage):
    stage.ready()
    fields = {'controller': 'expert', 'max_steps': 2}
    first = stage.play('taken', **fields)
    began = time.monotonic()
    done = stage.play('taken', **fields)
    assert time.monotonic() - began < 8 and done.outcome == 'error'
    assert 'recorder: There is a bag' in done.detail and 'never overwritten' in done.detail
    assert read_info(first.bag_path).outcome is Outcome.FAILURE


def test_cancelling_interrupts_an_episode_and_the_wait_for_a_policy(stage):
    from action_msgs.msg import GoalStatus

    for name, manner in (('cancelled', 'acts'), ('waiting', 'absent')):
        handle = stage.ready(manner).send(name)
        time.sleep(1.5)
        handle.cancel_goal_async()
        result, status = stage.result(handle)
        assert status == GoalStatus.STATUS_CANCELED
        assert (result.outcome, result.detail) == ('interrupted', 'cancelled')
        assert read_info(result.bag_path).outcome is Outcome.INTERRUPTED


def test_a_second_goal_is_rejected_while_an_episode_runs(stage):
    first = stage.ready('acts').send('first')
    assert first.accepted and not stage.send('second').accepted
    first.cancel_goal_async()
    assert stage.result(first)[0].outcome == 'interrupted'
    assert not (stage.root / 'bags' / 'second').exists()


def test_a_killed_recorder_ends_the_episode_before_its_limit(stage):
    handle = stage.ready('acts').send('unrecorded', max_steps=5000)
    wait_until(lambda: stage.episode == 'unrecorded' and stage.pictures > 5, 20.0)
    stage.processes['recorder'].kill()
    result, _ = stage.result(handle)
    assert result.outcome == 'error'
    assert result.detail == 'recorder_node is not there any more; look at its log'
    assert result.bag_path == '' and result.steps < 5000


def test_a_stopped_bridge_ends_its_episode_as_interrupted(stage):
    handle = stage.ready('acts').send('stopped', max_steps=5000)
    assert handle.accepted
    wait_until(lambda: stage.episode == 'stopped' and stage.pictures > 5, 20.0)
    os.kill(stage.processes['bridge'].pid, signal.SIGTERM)
    bag = stage.root / 'bags' / 'stopped'
    wait_until(lambda: read_info(bag).detail == 'the bridge was stopped', 20.0)
    assert read_info(bag).outcome is Outcome.INTERRUPTED
    assert wait_until(lambda: stage.processes['bridge'].returncode is not None, 20.0)
    assert stage.processes['bridge'].returncode == 0, Path(stage.root / 'logs').iterdir()


def test_a_contract_that_the_bridge_cannot_serve_ends_it_with_the_reason(ros_process, tmp_path):
    wide = CONTRACT.to_dict()
    wide['cameras']['agentview'].update(width=80)
    path = tmp_path / 'wide.yaml'
    path.write_text(yaml.safe_dump(wide))
    for parameters, word in (
        ({'contract': str(path)}, "one square 'agentview'"),
        ({'mode': 'fast'}, 'lockstep, realtime'),
        ({'step_timeout_s': 0.0}, 'step_timeout_s'),
    ):
        process = ros_process('sim_bridge.bridge_node', parameters)
        assert process.popen.wait(30) == 1 and word in process.output()
        assert 'Traceback' not in process.output()
