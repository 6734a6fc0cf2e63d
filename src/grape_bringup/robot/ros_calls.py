"""Services and actions as pending answers (call_sequence.py): sent once the server is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.node import Node

from grape_bringup.robot.call_sequence import CallError

SUCCEEDED = 4  # action_msgs/GoalStatus


def on_executor(node: Node, function: Callable[[], None]) -> None:
    """Do something on the thread that spins a node; at once where nobody does.

    An action client that is destroyed while the executor of another thread collects what to wait
    for ends that executor.
    """
    if node.executor is None:
        function()
    else:
        node.executor.create_task(function)


class ServiceCall:
    """One request to a service."""

    def __init__(self, client: Client, request: Any) -> None:
        self._client = client
        self._request = request
        self._future = None

    def done(self) -> bool:
        """Send the request when the service is there; return whether the answer is."""
        if self._future is None:
            if not self._client.service_is_ready():
                return False
            self._future = self._client.call_async(self._request)
        return self._future.done()

    def result(self) -> Any:
        """Return the response."""
        return self._future.result()

    def missing(self) -> str:
        """Say whether nobody serves it or nobody answered."""
        if self._future is None:
            return f'there is no service {self._client.srv_name}'
        return f'no answer from the service {self._client.srv_name}'

    def abandon(self) -> None:
        """Drop the answer, should it still come."""
        if self._future is not None and not self._future.done():
            self._client.remove_pending_request(self._future)


class ActionCall:
    """One goal of an action, until its result."""

    def __init__(self, client: ActionClient, name: str, goal: Any) -> None:
        self._client = client
        self._name = name
        self._goal = goal
        self._sent = None
        self._result = None

    def done(self) -> bool:
        """Send the goal when the server is there; return whether it ended or was refused."""
        if self._sent is None:
            if not self._client.server_is_ready():
                return False
            self._sent = self._client.send_goal_async(self._goal)
        if self._result is None:
            if not self._sent.done():
                return False
            if not self._sent.result().accepted:
                return True
            self._result = self._sent.result().get_result_async()
        return self._result.done()

    def result(self) -> Any:
        """Return the action's result.

        Raises:
            CallError: refused, aborted or cancelled.

        """
        if self._result is None:
            raise CallError(f'the action {self._name} refused the goal')
        response = self._result.result()
        if response.status != SUCCEEDED:
            raise CallError(f'the action {self._name} ended with status {response.status}')
        return response.result

    def missing(self) -> str:
        """Say how far the goal came."""
        if self._sent is None:
            return f'there is no action server {self._name}'
        if self._result is None:
            return f'the action server {self._name} did not answer the goal'
        return f'the action {self._name} did not end'

    def abandon(self) -> None:
        """Nothing is cancelled: a recovery that still succeeds does no harm."""
