"""The command line's end of one graph of nodes: a rclpy node on the graph's own ROS domain.

Several graphs live in one process, each with its rclpy context; a client is used by one thread at
a time and spins only inside its own calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from grape_bringup.ros_environment import ros_environment
from grape_episode.contract import Contract
from grape_episode.ros_qos import qos_profile

POLL_S = 0.1
ASK_AGAIN_S = 2.0


def prepare_process() -> None:
    """Give this process the variables of its nodes, except the domain; before rclpy's import.

    Raises:
        ImportError: ROS 2 or the generated interfaces are missing; says what to do.

    """
    variables = ros_environment(0)
    del variables['ROS_DOMAIN_ID']
    os.environ.update(variables)
    try:
        import grape.msg  # noqa: F401
        import rclpy  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ROS 2 is not usable from this Python ({error}). Run: make setup, or source the '
            'install/setup.bash of the workspace; then: grape doctor'
        ) from error


class GraphClient:
    """Calls the nodes' action and services; remembers which bags the recorder closed."""

    def __init__(self, domain_id: int, contract: Contract) -> None:
        prepare_process()
        import rclpy
        from grape.action import RunEpisode
        from grape.msg import EpisodeEvent
        from grape.srv import LabelEpisode, LoadAdapter
        from lifecycle_msgs.srv import GetState
        from rclpy.action import ActionClient
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        self._context = rclpy.Context()
        rclpy.init(
            args=[],
            context=self._context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,  # Ctrl-C is the pool's affair
        )
        self._node = rclpy.create_node(
            f'grape_cli_{domain_id}',
            context=self._context,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.recorded: dict[str, str] = {}  # episode id -> bag
        self.last_sign_of_life = time.monotonic()
        self._asked = 0.0
        self._answer = None  # the policy node's, to a question that only waits for it
        self._actions = ActionClient(self._node, RunEpisode, 'run_episode')
        self._adapters = self._node.create_client(LoadAdapter, 'policy_node/load_adapter')
        self._states = self._node.create_client(GetState, 'policy_node/get_state')
        self._labels = self._node.create_client(LabelEpisode, 'recorder_node/label_episode')
        topic = contract.topic('episode_event')
        self._node.create_subscription(
            EpisodeEvent, topic.name, self._on_event, qos_profile(topic)
        )
        self._events = self._node.create_publisher(EpisodeEvent, topic.name, qos_profile(topic))
        self._recorded_kind = EpisodeEvent.RECORDED

    def close(self) -> None:
        """Leave the domain."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def spin_while(self, condition: Callable[[], bool]) -> None:
        """Handle what comes in while the condition holds; it is looked at 10 times a second."""
        while condition():
            self._executor.spin_once(timeout_sec=POLL_S)

    def bridge_is_ready(self) -> bool:
        """Say whether the bridge takes goals."""
        return self._actions.server_is_ready()

    def recorder_is_ready(self) -> bool:
        """Say whether the recorder answers."""
        return self._labels.service_is_ready()

    def policy_is_ready(self) -> bool:
        """Say whether the policy node's services are there."""
        return self._states.service_is_ready() and self._adapters.service_is_ready()

    def policy_answers(self) -> bool:
        """Say whether the policy node has answered; asks it, and again when nothing comes.

        A service seen here may not yet have seen this client: its first answer can be lost.
        """
        from lifecycle_msgs.srv import GetState

        if self._answer is not None and self._answer.done():
            return True
        if self._answer is None or time.monotonic() - self._asked > ASK_AGAIN_S:
            if self._answer is not None:
                self._states.remove_pending_request(self._answer)
            self._answer = self._states.call_async(GetState.Request())
            self._asked = time.monotonic()
        return False

    def load_adapter(self, path: str) -> object:
        """Return the future of LoadAdapter; '' is the base."""
        from grape.srv import LoadAdapter

        return self._adapters.call_async(LoadAdapter.Request(path=path))

    def send_goal(self, **fields: object) -> object:
        """Return the future of the goal's handle."""
        from grape.action import RunEpisode

        self.last_sign_of_life = time.monotonic()
        return self._actions.send_goal_async(
            RunEpisode.Goal(**fields), feedback_callback=self._on_feedback
        )

    def report_error(self, episode_id: str, detail: str) -> None:
        """Say that an episode cannot go on; the bridge ends it."""
        from grape.msg import EpisodeEvent

        event = EpisodeEvent(
            kind=EpisodeEvent.ERROR, source='operator', episode_id=episode_id, detail=detail
        )
        event.header.stamp = self._node.get_clock().now().to_msg()
        self._events.publish(event)

    @contextmanager
    def listening(self, episode_id: str) -> Iterator[None]:
        """Remember this episode's bag for as long as the block lasts."""
        self.recorded.pop(episode_id, None)
        try:
            yield
        finally:
            self.recorded.clear()

    def _on_feedback(self, _: object) -> None:
        self.last_sign_of_life = time.monotonic()

    def _on_event(self, event: object) -> None:
        if event.kind == self._recorded_kind:
            self.recorded[event.episode_id] = event.detail
