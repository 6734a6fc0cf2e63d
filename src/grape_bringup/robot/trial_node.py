"""The trial node: a robot behind the same topics as a simulator's bridge, and its operator.

RunEpisode, or the service trial/next, asks for a trial (trial_episode.py); services are the
operator's buttons (trial_flow.py), for a web page, Foxglove or a foot switch. Trials are played
on the main thread; rclpy spins in another.

    python -m grape_bringup.robot.trial_node --ros-args -p contract:=franka_openvla -p bags:=DIR
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grape.action import RunEpisode
from grape.srv import LabelEpisode
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from grape_bringup.robot.trial_asking import asked_of, next_goal, reset_prompt
from grape_bringup.robot.trial_config import load_trial_config
from grape_bringup.robot.trial_episode import Asked, Played, TrialEpisode, guard_problem
from grape_bringup.robot.trial_flow import RefusedError, TrialFlow, Verdict
from grape_bringup.robot.trial_topics import TrialTopics
from grape_bringup.robot.trial_views import TrialViews
from grape_episode.contract import load_contract
from grape_episode.label import append_label
from grape_episode.outcome import Outcome
from grape_episode.ros_main import made
from grape_episode.ros_signals import stop_on_signal

POLL_S = 0.1
CLOSE_S = 2.0


@dataclass(frozen=True)
class TrialNodeConfig:
    """The node's parameters.

    Attributes:
        contract: name in config/contract/ or path.
        config: name in config/robot/ or path of the trial configuration.
        bags: the recorder's output_dir, where references are looked for; required.

    """

    contract: str = 'franka_openvla'
    config: str = 'trial'
    bags: str = ''

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.bags:
            raise ValueError("parameter 'bags' is empty; expected the recorder's output_dir")


@dataclass(frozen=True)
class _Goal:
    """Who asked for a trial, and what."""

    asked: Asked
    is_cancelled: Callable[[], bool]
    feedback: Callable[[int], None]
    deliver: Callable[[Played], None]


class TrialNode(Node):
    """The action server and the operator's services; `serve` plays the trials on its caller."""

    def __init__(self, stopping: threading.Event) -> None:
        """Declare the parameters and open the topics; `stopping` ends `serve`.

        Raises:
            ValueError: a parameter, the contract or the configuration cannot be used.

        """
        super().__init__('trial_node')
        defaults = {n: f.default for n, f in TrialNodeConfig.__dataclass_fields__.items()}
        values = {n: self.declare_parameter(n, value).value for n, value in defaults.items()}
        self.parameters = TrialNodeConfig(**values)
        contract = load_contract(self.parameters.contract)
        self._config = load_trial_config(self.parameters.config, contract)
        self._bags = Path(self.parameters.bags).expanduser()
        self._topics = TrialTopics(self, contract, self._config)
        self._flow = TrialFlow(self._write_label)
        self._stopping = stopping
        self._goals: queue.Queue[_Goal] = queue.Queue()
        self._busy = threading.Lock()  # from a trial's acceptance to its end
        self._delivered = threading.Event()  # no result is under way
        self._delivered.set()
        self._views = TrialViews(self, self._flow, self._topics, self._config.ghost_rate_hz)
        self._offer_services()
        self._server = ActionServer(
            self,
            RunEpisode,
            'run_episode',
            self._deliver,
            goal_callback=self._accept,
            handle_accepted_callback=self._take_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )
        self.get_logger().info(f'trials are recorded below {self._bags}')

    def serve(self) -> None:
        """Play trials until told to stop; see BridgeNode.serve for the order of things."""
        while not self._stopping.is_set() and self.context.ok():
            try:
                goal = self._goals.get(timeout=POLL_S)
            except queue.Empty:
                continue
            asked = goal.asked
            episode = TrialEpisode(
                asked,
                self._topics,
                self._flow,
                self._config,
                goal.is_cancelled,
                self._stopping,
                goal.feedback,
            )
            try:
                played = episode.run()
            except Exception as error:  # noqa: BLE001 - one trial is lost, not the node
                self._flow.end('', f'the trial failed: {error!r}', is_judgeable=False)
                played = Played(Outcome.ERROR, 0, '', f'the trial failed: {error!r}')
            self._busy.release()
            self._views.publish_state()
            self._views.late += episode.late
            log = self.get_logger()
            said = f'{asked.trial.episode_id}: {played.outcome} {played.detail}'.rstrip()
            log.error(said) if played.outcome is Outcome.ERROR else log.info(said)
            goal.deliver(played)

    def close(self) -> None:
        """Wait until the last result is on its way."""
        self._delivered.wait(timeout=CLOSE_S)

    # What is asked for (executor's thread)

    def _accept(self, request: RunEpisode.Goal) -> GoalResponse:
        if not self._busy.acquire(blocking=False):
            self.get_logger().warning('a goal was rejected: a trial is asked for already')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _take_goal(self, handle: ServerGoalHandle) -> None:
        def deliver(played: Played) -> None:
            result = RunEpisode.Result(
                outcome=str(played.outcome),
                steps=played.steps,
                bag_path=played.bag,
                detail=played.detail,
            )
            self._delivered.clear()
            handle.execute(partial(self._deliver, result=result))

        try:
            asked = asked_of(handle.request, self._config, self._bags)
        except (RefusedError, ValueError, OSError) as error:
            self.get_logger().error(str(error))
            self._busy.release()
            deliver(Played(Outcome.ERROR, 0, '', str(error)))
            return
        self._begin(
            _Goal(
                asked,
                is_cancelled=lambda: handle.is_cancel_requested,
                feedback=lambda step: handle.publish_feedback(RunEpisode.Feedback(step=step)),
                deliver=deliver,
            )
        )

    def _deliver(self, handle: ServerGoalHandle, result: RunEpisode.Result) -> RunEpisode.Result:
        if result.outcome == str(Outcome.INTERRUPTED) and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.succeed()
        self._delivered.set()
        return result

    def _next(self) -> str:
        """Ask for a trial without an action client."""
        if not self._busy.acquire(blocking=False):
            raise RefusedError('a trial is asked for already; trial/abort ends it')
        try:
            asked = asked_of(next_goal(self._config, self._bags), self._config, self._bags)
        except (RefusedError, ValueError, OSError):
            self._busy.release()
            raise
        self._begin(_Goal(asked, lambda: False, lambda step: None, lambda played: None))
        return f'{asked.trial.episode_id}: {self._flow.snapshot().prompt}'

    def _begin(self, goal: _Goal) -> None:
        self._views.reference = goal.asked.reference
        self._flow.ask(goal.asked.trial, reset_prompt(goal.asked))
        self._goals.put(goal)
        self._views.publish_state()

    # The operator's buttons (executor's thread)

    def _offer_services(self) -> None:
        buttons = {
            'next': self._next,
            'ready': lambda: self._flow.ready(self._start_problems()),
            'success': lambda: self._flow.judge(self._verdict('success')),
            'failure': lambda: self._flow.judge(self._verdict('failure')),
            'discard': lambda: self._flow.judge(self._verdict('discard')),
            'pause': self._pause,
            'resume': self._resume,
            'abort': self._flow.abort,
        }
        for name, press in buttons.items():
            self.create_service(Trigger, f'trial/{name}', partial(self._press, press))
        self.create_service(LabelEpisode, 'trial/label', self._label)
        self._pause_guard = self.create_client(SetBool, 'guard/pause')

    def _press(
        self, press: Callable[[], str], _: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        try:
            response.message = press()
            response.success = True
        except (RefusedError, ValueError, OSError) as error:
            response.message = str(error)
        self._views.publish_state()
        return response

    def _label(
        self, request: LabelEpisode.Request, response: LabelEpisode.Response
    ) -> LabelEpisode.Response:
        """Judge the running or last trial with a reason and a name."""
        trial = self._flow.snapshot().trial
        try:
            if request.episode_id and (trial is None or trial.episode_id != request.episode_id):
                raise RefusedError(
                    f"'{request.episode_id}' is not the trial at hand; use the labelling page "
                    '(grape label) or recorder_node/label_episode'
                )
            verdict = Verdict(request.outcome, request.reason, request.labeller or self._person())
            response.message = self._flow.judge(verdict)
            response.success = True
        except RefusedError as error:
            response.message = str(error)
        self._views.publish_state()
        return response

    def _verdict(self, outcome: str) -> Verdict:
        return Verdict(outcome, labeller=self._person())

    def _person(self) -> str:
        return self._config.labeller or 'operator'

    def _write_label(self, bag: str, verdict: Verdict) -> None:
        append_label(bag, verdict.outcome, verdict.reason, verdict.labeller)

    def _pause(self) -> str:
        said = self._flow.pause()
        self._hold(True)
        return said

    def _resume(self) -> str:
        said = self._flow.resume()
        self._hold(False)
        return said

    def _hold(self, on: bool) -> None:
        """Tell the guard; whether it follows is seen in its state, and ends the trial if not."""
        if self._config.needs_guard:
            self._pause_guard.call_async(SetBool.Request(data=on))

    def _start_problems(self) -> list[str]:
        found = self._topics.problems()
        if self._config.needs_guard and (problem := guard_problem(self._topics, self._config)):
            found.append(problem)
        distance = self._views.start_distance()
        if distance is None:
            return found
        config = self._config
        for value, limit, unit in (
            (distance[0], config.max_start_distance_m, 'm'),
            (distance[1], config.max_start_rotation_rad, 'rad'),
        ):
            if limit and value > limit:
                found.append(
                    f'the arm is {value:.3f} {unit} from where '
                    f'{self._views.reference.episode_id} began; allowed are {limit:g} {unit}'
                )
        return found


def main() -> None:
    """Run the node until it is told to stop."""
    stopping = stop_on_signal()
    with made(lambda: TrialNode(stopping), 'trial_node') as (node, executor):
        closing = threading.Event()

        def spin() -> None:
            while not closing.is_set():
                executor.spin_once(timeout_sec=POLL_S)

        spinner = threading.Thread(target=spin, daemon=True)
        spinner.start()
        try:
            node.serve()
        finally:
            node.close()
            closing.set()
            spinner.join(timeout=CLOSE_S)


if __name__ == '__main__':
    main()
