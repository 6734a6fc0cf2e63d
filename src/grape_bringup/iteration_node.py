"""The iteration node: Algorithm 1 with the trainer node, for train.launch.py.

    python -m grape_bringup.iteration_node --ros-args -p tasks:=libero_object/0 -p output_dir:=bags

Plays each round's trials by RunEpisode, asks the trainer node for an update, which scores and
pairs them, trains, and switches the adapter into the policy node, and goes on with the next round.
It ends after the last one. `grape iterate` does the same in one process, evaluates between the
rounds and can be resumed; this node begins with an empty folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import rclpy
from grape.action import RunEpisode
from lifecycle_msgs.srv import GetState
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from grape_bringup.bag_names import free_bag_name
from grape_bringup.graph_setup import EpisodeRequest
from grape_bringup.pool_run import PLAYS
from grape_bringup.rollouts import check_cells, round_seed, trial_requests
from grape_episode.bag import BagError, find_bags
from grape_episode.outcome import Outcome
from grape_trainer.evaluation import parse_init_states

ASK_AGAIN_S = 2.0
WAITING_S = 10.0  # between two messages that say for whom


class RoundError(RuntimeError):
    """A round that cannot go on; the text says why."""


@dataclass(frozen=True)
class IterationNodeConfig:
    """The node's parameters.

    Attributes:
        tasks: <suite>/<index>, several with commas; required.
        init_states: such as 0-4,7.
        rounds, trials, temperature: K, N_t of each initial state, of sampling.
        seed: of the run; each round has seeds of its own, as in `grape iterate`.
        max_steps: 0: the suites' official limits.
        output_dir: the recorder's; required.

    """

    tasks: str = ''
    init_states: str = '0-4'
    rounds: int = 3
    trials: int = 5
    temperature: float = 1.0
    seed: int = 0
    max_steps: int = 0
    output_dir: str = ''

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('tasks', 'output_dir'):
            if not vars(self)[name]:
                raise ValueError(f"parameter '{name}' is empty; expected a value")
        for name, low in (('rounds', 1), ('trials', 2), ('seed', 0), ('max_steps', 0)):
            if vars(self)[name] < low:
                raise ValueError(
                    f"parameter '{name}' is {vars(self)[name]}; expected {low} or more"
                )
        if not self.temperature > 0.0:
            raise ValueError(
                f"parameter 'temperature' is {self.temperature}; expected above 0: greedy trials "
                'are equal'
            )

    def requests(self, round_: int) -> list[EpisodeRequest]:
        """Return the trials of round 1, 2 ..."""
        tasks = [task.strip() for task in self.tasks.split(',')]
        cells = check_cells(tasks, parse_init_states(self.init_states))
        seed = round_seed(self.seed, round_)
        return trial_requests(cells, self.trials, seed, self.temperature, self.max_steps)


class IterationNode(Node):
    """Asks the other nodes, one thing after the other, on the caller's thread."""

    def __init__(self) -> None:
        super().__init__('iteration_node')
        defaults = {n: f.default for n, f in IterationNodeConfig.__dataclass_fields__.items()}
        values = {n: self.declare_parameter(n, value).value for n, value in defaults.items()}
        self.config = IterationNodeConfig(**values)
        self._bags = Path(self.config.output_dir).resolve()
        if self._bags.is_dir() and find_bags(self._bags):
            raise ValueError(
                f"'{self._bags}' holds bags already; give another output_dir and out_dir. "
                "'grape iterate' is what can be resumed."
            )
        self._episodes = ActionClient(self, RunEpisode, 'run_episode')
        self._updates = self.create_client(Trigger, 'trainer_node/update')
        self._states = self.create_client(GetState, 'policy_node/get_state')
        self._result = Future()
        self.create_subscription(
            String, 'trainer_node/update_result', lambda said: self._result.set_result(said), 10
        )

    def run(self) -> None:
        """Play all rounds.

        Raises:
            RoundError: a trial cannot be played, or an update fails.

        """
        self._wait_for_nodes()
        for number in range(1, self.config.rounds + 1):
            requests = self.config.requests(number)
            self._say(f'round {number}: {len(requests)} trials')
            outcomes = Counter(str(self._play(request)) for request in requests)
            self._say(f'round {number}: {dict(outcomes)}; training')
            result = self._update()
            self._say(f'round {number}: adapter trained on {result["pairs"]} pairs acts now')

    def _wait_for_nodes(self) -> None:
        ready = {
            'bridge_node': self._episodes.server_is_ready,
            'trainer_node': self._updates.service_is_ready,
            'policy_node': self._states.service_is_ready,
        }
        while missing := [name for name, check in ready.items() if not check()]:
            self.get_logger().info(
                f'waiting for {", ".join(missing)}', throttle_duration_sec=WAITING_S
            )
            rclpy.spin_once(self, timeout_sec=0.1)
        # It answers once it is active; a first answer can be lost while both ends are new.
        while self._answer(self._states.call_async(GetState.Request()), ASK_AGAIN_S) is None:
            self.get_logger().info(
                'waiting for policy_node to be active', throttle_duration_sec=WAITING_S
            )

    def _play(self, request: EpisodeRequest) -> Outcome:
        """Play a trial; an infrastructure error once more."""
        for _ in range(PLAYS):
            name = free_bag_name(self._bags, request.episode_id)
            goal = RunEpisode.Goal(**asdict(replace(request, episode_id=name)))
            handle = self._answer(self._episodes.send_goal_async(goal))
            if not handle.accepted:
                raise RoundError(f'bridge_node refused trial {name}; is another one running?')
            found = self._answer(handle.get_result_async()).result
            if found.outcome == Outcome.INTERRUPTED:
                raise RoundError(f'trial {name} was interrupted: {found.detail}')
            if found.outcome != Outcome.ERROR:
                break
            self.get_logger().warning(f'trial {name} ended in an error: {found.detail}')
        return Outcome(found.outcome)

    def _update(self) -> dict[str, object]:
        self._result = Future()
        answer = self._answer(self._updates.call_async(Trigger.Request()))
        if not answer.success:
            raise RoundError(f'trainer_node refused the update: {answer.message}')
        result = json.loads(self._answer(self._result).data)
        if not result['success']:
            raise RoundError(f'the update failed: {result["message"]}')
        return result

    def _answer(self, future: Future, timeout_s: float | None = None) -> object:
        """Wait for an answer; None where it does not come in time."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not future.done() and (until is None or time.monotonic() < until):
            rclpy.spin_once(self, timeout_sec=0.1)
        return future.result() if future.done() else None

    def _say(self, text: str) -> None:
        self.get_logger().info(text)


def main() -> None:
    """Play the rounds; exit code 1 where they cannot be played to the end."""
    rclpy.init()
    try:
        IterationNode().run()
    except (ValueError, RoundError, BagError, OSError) as error:
        rclpy.logging.get_logger('iteration_node').error(str(error))
        sys.exit(1)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
