"""The guard's side of the wire: what it hears goes to the inbox, what it says comes from its loop.

Callbacks run on the executor's thread and only leave values; `ticked` runs on the loop's.
"""

from __future__ import annotations

import time
from functools import partial

from geometry_msgs.msg import PoseStamped
from grape.msg import EpisodeEvent, GuardState, PolicyStep, TeleopCommand
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float32

from grape_bringup.robot import guard_messages as messages
from grape_bringup.robot.arm import ArmOutput
from grape_bringup.robot.guard import Guard
from grape_bringup.robot.guard_inbox import Inbox
from grape_bringup.robot.guard_inputs import (
    Deadman,
    EmergencyStop,
    EpisodeEnd,
    EpisodeStart,
    Observation,
)
from grape_bringup.robot.guard_loop import Snapshot
from grape_bringup.robot.guard_outputs import JointSource
from grape_bringup.robot.guard_watch import CameraWatch, picture_digest, picture_stamp_ns
from grape_episode.contract import Contract
from grape_episode.ros_qos import qos_profile

STATE_S = 0.1  # guard/state, and at every change
BODY_S = 0.02  # ee_pose, joint_states, gripper_opening
ONLY_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# An e-stop must be heard from whoever publishes it. A transient-local subscriber does not match a
# volatile publisher (`ros2 topic pub`), a reliable one no best-effort publisher, and a volatile
# one misses what was latched before: so all three listen.
ESTOP_QOS = (
    QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL),
    QoSProfile(depth=10),
    QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
)


class GuardTopics:
    """Publishers and subscribers of the guard."""

    def __init__(
        self,
        node: Node,
        contract: Contract,
        inbox: Inbox,
        cameras: tuple[CameraWatch, ...],
    ) -> None:
        """Open the topics; `cameras` are named after the topics that they watch."""
        self._node = node
        self._contract = contract
        self._inbox = inbox
        self._guard: Guard | None = None
        self._body: ArmOutput | None = None
        self._due = {'state': 0.0, 'body': 0.0}
        self._told: tuple[int, str] | None = None  # mode and rule of the last guard/state
        self._listen(cameras)
        executed = [topic for topic in contract.topics if topic.role == 'executed_step']
        name, qos = ('executed_step', QoSProfile(depth=50))
        if executed:
            name, qos = executed[0].name, qos_profile(executed[0])
        self._executed = node.create_publisher(PolicyStep, name, qos)
        events = contract.topic('episode_event')
        self._events = node.create_publisher(EpisodeEvent, events.name, qos_profile(events))
        self._state = node.create_publisher(GuardState, 'guard/state', 10)
        self._pose = node.create_publisher(PoseStamped, 'ee_pose', 10)
        self._opening = node.create_publisher(Float32, 'gripper_opening', 10)
        self._joints = None

    def serve(self, guard: Guard, body: ArmOutput) -> None:
        """Take whose state is published; `body` is the real arm, also in a dry run."""
        self._guard, self._body = guard, body
        if isinstance(body, JointSource):
            self._joints = self._node.create_publisher(JointState, 'joint_states', 10)

    # What comes in (executor's thread)

    def _listen(self, cameras: tuple[CameraWatch, ...]) -> None:
        node, contract = self._node, self._contract
        steps, events = contract.topic('policy_step'), contract.topic('episode_event')
        node.create_subscription(PolicyStep, steps.name, self._step, qos_profile(steps))
        node.create_subscription(EpisodeEvent, events.name, self._event, qos_profile(events))
        node.create_subscription(TeleopCommand, 'teleop/command', self._teleop, 10)
        node.create_subscription(Bool, 'deadman', self._deadman, ONLY_NEWEST)
        for qos in ESTOP_QOS:
            node.create_subscription(Bool, 'estop', self._estop, qos)
        policy_camera = contract.cameras[contract.policy_camera].topic
        known = {topic.name: topic for topic in contract.topics}
        watched = {camera.name: camera for camera in cameras}
        for name in {policy_camera: None} | dict.fromkeys(watched):
            qos = qos_profile(known[name]) if name in known else ONLY_NEWEST
            begins_step = name == policy_camera
            callback = partial(self._picture, watched.get(name), begins_step)
            node.create_subscription(Image, name, callback, qos, raw=True)

    def _step(self, message: PolicyStep) -> None:
        self._inbox.put(messages.step_of(message))

    def _event(self, event: EpisodeEvent) -> None:
        if event.kind == EpisodeEvent.START:
            self._inbox.put(EpisodeStart(event.episode_id, event.controller))
        elif event.kind == EpisodeEvent.STOP:
            self._inbox.put(EpisodeEnd(event.episode_id, ''))
        elif event.kind == EpisodeEvent.ERROR:
            self._inbox.put(EpisodeEnd(event.episode_id, f'{event.source}: {event.detail}'))

    def _teleop(self, message: TeleopCommand) -> None:
        try:
            teleop = messages.teleop_of(message, time.monotonic(), self._contract.base_frame)
        except messages.FrameError as error:
            self._node.get_logger().error(str(error), throttle_duration_sec=1.0)
        else:
            self._inbox.drive(teleop)

    def _deadman(self, message: Bool) -> None:
        self._inbox.press(Deadman(time.monotonic(), message.data))

    def _estop(self, message: Bool) -> None:
        if message.data:
            self._inbox.put(EmergencyStop('estop was published'))

    def _picture(self, watch: CameraWatch | None, begins_step: bool, cdr: bytes) -> None:
        stamp_ns = picture_stamp_ns(cdr)
        if watch is not None:
            watch.see(time.monotonic(), stamp_ns, picture_digest(cdr))
        if begins_step:
            self._inbox.put(Observation(stamp_ns))

    # What goes out (loop's thread)

    def ticked(self, seen: Snapshot) -> None:
        """Publish what a tick did: answers and events at once, states at their rates."""
        for done in seen.outcome.executed:
            self._executed.publish(messages.executed_step(done))
        for what, episode_id in seen.outcome.interventions:
            self._tell(EpisodeEvent.INTERVENTION, 'operator', episode_id, what, seen)
        told = (int(self._guard.mode), self._guard.reason.split(':')[0])
        if told != self._told or self._is_due('state', STATE_S, seen):
            if told != self._told:
                self._log_change()
            self._told = told
            self._state.publish(messages.guard_state(self._guard, seen, self._contract.base_frame))
        if self._is_due('body', BODY_S, seen):
            self._publish_body(seen)

    def failed(self, error: Exception) -> None:
        """Say that the loop has ended by an exception."""
        self._node.get_logger().fatal(f'the loop ended by {error!r}; the arm was told to hold')
        message = GuardState(mode=GuardState.FAULT, reason=f'loop: {error!r}')
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._state.publish(message)

    def _publish_body(self, seen: Snapshot) -> None:
        arm = self._body.state()
        if arm is not None and seen.now.monotonic_s - arm.stamp_s < 1.0:
            pose = messages.pose_stamped(arm.pose, seen.now.clock_ns, self._contract.base_frame)
            self._pose.publish(pose)
        if seen.gripper is not None:
            self._opening.publish(Float32(data=float(seen.gripper.opening)))
        joints = self._body.joints() if self._joints is not None else None
        if joints is not None:
            message = JointState(name=list(joints[0]), position=joints[1].tolist())
            message.header.stamp = messages.time_of(seen.now.clock_ns)
            self._joints.publish(message)

    def _tell(self, kind: int, source: str, episode_id: str, detail: str, seen: Snapshot) -> None:
        event = EpisodeEvent(kind=kind, source=source, episode_id=episode_id, detail=detail)
        event.header.stamp = messages.time_of(seen.now.clock_ns)
        self._events.publish(event)

    def _log_change(self) -> None:
        guard, log = self._guard, self._node.get_logger()
        if guard.reason:
            log.warning(f'{guard.mode.name}: {guard.reason}')
        else:  # on a line of its own: rclpy allows one severity for each place in the code
            log.info(guard.mode.name)

    def _is_due(self, what: str, period_s: float, seen: Snapshot) -> bool:
        if seen.now.monotonic_s < self._due[what]:
            return False
        self._due[what] = seen.now.monotonic_s + period_s
        return True
