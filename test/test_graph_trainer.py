"""The trainer node in a real ROS graph: scores as trials are recorded, trains when asked."""

import json
import threading

import graph_run
import pytest
from report_runs import write_round

from grape_trainer.scoring.score_table import read_scores

pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')

# The trials are made up: their tokens were not sampled by this policy.
TPO = 'verify_log_probs: false\nlora_rank: 4\nlora_alpha: 4\nbatch_size: 2\n'


class Peer:
    """A recorder and a policy node as the trainer sees them."""

    def __init__(self):
        import rclpy
        from grape.msg import EpisodeEvent
        from grape.srv import LoadAdapter
        from rclpy.executors import SingleThreadedExecutor
        from std_msgs.msg import String
        from std_srvs.srv import Trigger

        from grape_episode.contract import load_contract
        from grape_episode.ros_qos import qos_profile

        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('peer', context=self._context)
        self.scores, self.results, self.loaded = [], [], []
        topic = load_contract('libero').topic('episode_event')
        self.events = self._node.create_publisher(EpisodeEvent, topic.name, qos_profile(topic))
        self._node.create_subscription(String, 'trial_score', self.scores.append, 10)
        self._node.create_subscription(
            String, 'trainer_node/update_result', self.results.append, 10
        )
        self._node.create_service(LoadAdapter, 'policy_node/load_adapter', self._load)
        self.update = self._node.create_client(Trigger, 'trainer_node/update')
        self._request, self._event = Trigger.Request, EpisodeEvent
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def _load(self, request, response):
        self.loaded.append(request.path)
        response.success = True
        return response

    def recorded(self, bag):
        event = self._event(kind=self._event.RECORDED, source='recorder', detail=str(bag))
        self.events.publish(event)

    def ask_for_update(self):
        return graph_run.wait_until(self.update.call_async(self._request()).result)

    def close(self):
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture
def peer(ros_env):
    made = Peer()
    yield made
    made.close()


def start(ros_process, peer, tmp_path, **parameters):
    write_round(tmp_path / 'round')
    (tmp_path / 'tpo.yaml').write_text(TPO)
    defaults = {
        'bags_dir': tmp_path / 'round' / 'bags',
        'out_dir': tmp_path / 'out',
        'tpo': tmp_path / 'tpo.yaml',
    }
    process = ros_process('grape_trainer.trainer_node', defaults | parameters)
    assert peer.update.wait_for_service(60.0)
    graph_run.wait_until(lambda: peer.events.get_subscription_count() > 0)
    return process


def test_a_recorded_trial_is_scored_and_its_terms_are_published(ros_process, peer, tmp_path):
    start(ros_process, peer, tmp_path)
    bag = tmp_path / 'round' / 'bags' / 'trial-0-0'
    peer.recorded(bag)
    graph_run.wait_until(lambda: peer.scores)
    said = json.loads(peer.scores[0].data)
    row = next(r for r in read_scores(tmp_path / 'out' / 'scores.csv') if r.bag == bag)
    assert said['episode_id'] == 'trial-0-0' and said['r_gcpg'] == row.r_gcpg
    assert said['stage_costs'] == row.stage_costs and said['cost_sha256'] == row.cost_sha256


def test_an_update_trains_an_adapter_and_switches_it_into_the_policy_node(
    ros_process, peer, tmp_path
):
    policy = graph_run.write_policy(tmp_path / 'policy')
    start(ros_process, peer, tmp_path, policy=policy)
    assert peer.ask_for_update().success
    again = peer.ask_for_update()
    assert not again.success and 'is running' in again.message
    result = json.loads(graph_run.wait_until(lambda: peer.results)[0].data)
    assert result['success'], result
    adapter = tmp_path / 'out' / 'update_1' / 'tpo'
    assert peer.loaded == [str(adapter)]
    assert (adapter / 'adapter_model.safetensors').is_file()
    assert result['start'] == 'base' and result['pairs'] == 2


def test_an_update_without_a_policy_is_refused_with_the_parameter(ros_process, peer, tmp_path):
    start(ros_process, peer, tmp_path)
    answer = peer.ask_for_update()
    assert not answer.success and "parameter 'policy' is empty" in answer.message
