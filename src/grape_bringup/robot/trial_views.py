"""What people see of a trial: its state, the ghost of the start to restore, diagnostics."""

from __future__ import annotations

import math
import time

from grape.msg import TrialState
from rclpy.node import Node
from sensor_msgs.msg import Image

from grape_bringup.robot.initial_state import Start, ghost, pose_distance
from grape_bringup.robot.trial_flow import State, TrialFlow
from grape_bringup.robot.trial_topics import LATCHED, TrialTopics
from grape_episode import ros_diagnostics

STATE_PERIOD_S = 0.25


class TrialViews:
    """Publishes on timers of a node, and the state at every change too."""

    def __init__(
        self, node: Node, flow: TrialFlow, topics: TrialTopics, ghost_rate_hz: float
    ) -> None:
        self.reference: Start | None = None  # of the trial that is asked for
        self.late = 0  # observations, over all trials
        self._node = node
        self._flow = flow
        self._topics = topics
        self._state = node.create_publisher(TrialState, 'trial/state', LATCHED)
        self._ghost = node.create_publisher(Image, 'trial/ghost', 1)
        self._diagnostics = ros_diagnostics.publisher(node)
        node.create_timer(STATE_PERIOD_S, self.publish_state)
        node.create_timer(1 / ghost_rate_hz, self._publish_ghost)
        node.create_timer(ros_diagnostics.PERIOD_S, self._publish_diagnostics)
        self.publish_state()

    def start_distance(self) -> tuple[float, float] | None:
        """Return how far the arm is from the reference's start: m, rad; None: not known."""
        pose = self._topics.pose()
        if self.reference is None or pose is None:
            return None
        return pose_distance(*pose, self.reference)

    def publish_state(self) -> None:
        """Say where the trial is; any thread."""
        now = self._flow.snapshot()
        distance = self.start_distance() if now.state is State.RESETTING else None
        message = TrialState(
            state=int(now.state),
            prompt=now.prompt,
            step=now.step,
            pose_distance_m=math.nan if distance is None else distance[0],
            bag_path=now.bag,
        )
        if now.trial is not None:
            message.episode_id = now.trial.episode_id
            message.task = now.trial.task
            message.instruction = now.trial.instruction
            message.init_state = now.trial.init_state
            message.max_steps = now.trial.max_steps
            if self.reference is not None:
                message.reference_episode_id = self.reference.episode_id
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._state.publish(message)

    def _publish_ghost(self) -> None:
        """While the scene is put back: the start that it should have, over how it looks now."""
        if self.reference is None or self._flow.snapshot().state is not State.RESETTING:
            return
        live = self._topics.picture()
        mixed = None if live is None else ghost(live, self.reference.image)
        if mixed is None:
            return
        message = Image(
            height=mixed.shape[0],
            width=mixed.shape[1],
            encoding='rgb8',
            step=3 * mixed.shape[1],
            data=mixed.tobytes(),
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._topics.contract.policy_camera
        self._ghost.publish(message)

    def _publish_diagnostics(self) -> None:
        problems = self._topics.stale()
        now = self._flow.snapshot()
        values = {
            'state': now.state.name.lower(),
            'episode_id': now.trial.episode_id if now.trial else '',
            'steps': now.step,
            'observations_late': self.late,
            **{
                f'age_s {name}': f'{age:.3f}'
                for name, age in self._topics.sampler.ages_s(time.monotonic()).items()
            },
        }
        self._diagnostics.publish(
            ros_diagnostics.diagnostics(self._node, 'trials', values, warning='; '.join(problems))
        )
