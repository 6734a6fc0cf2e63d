"""The policy node: one camera image in, one PolicyStep out.

A lifecycle node; it commands only while active. Configuring loads the checkpoint, or connects to
the server that has it, so that a wrong one fails there and not in the first episode. An episode
begins with EpisodeEvent START (for controller 'policy'), which is answered with READY, and ends
with STOP. An Actor plays it (acting.py); how an action is chosen is the backend's affair
(backend.py). An adapter is switched between two steps. An error in a step ends the episode by
EpisodeEvent ERROR and leaves the node running.

    python -m grape_policy_node.policy_node --ros-args -p policy:=DIR -p contract:=libero
"""

from __future__ import annotations

import logging
import sys

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from grape.msg import EpisodeEvent, PolicyStep
from grape.srv import LoadAdapter
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from grape_episode.contract import Contract, TopicSpec, load_contract
from grape_episode.ros_qos import qos_profile
from grape_episode.ros_timer import steady_timer
from grape_policy_node import messages
from grape_policy_node.acting import Actor
from grape_policy_node.backend import Backend
from grape_policy_node.node_config import PolicyNodeConfig, make_backend
from grape_policy_node.observed_state import StateError
from grape_policy_node.safety import Bounds

DIAGNOSTICS_PERIOD_S = 1.0


class PolicyNode(LifecycleNode):
    """Puts an Actor behind the topics of the contract."""

    def __init__(self) -> None:
        super().__init__('policy_node')
        for name, field in PolicyNodeConfig.__dataclass_fields__.items():
            self.declare_parameter(name, field.default)
        self.declare_parameter('autostart', False)
        self._backend: Backend | None = None
        self._actor: Actor | None = None
        self._instruction = ''
        self._entities: list = []

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the contract and the policy, and listen."""
        try:
            values = {
                n: self.get_parameter(n).value for n in PolicyNodeConfig.__dataclass_fields__
            }
            config = PolicyNodeConfig(**values)
            contract = load_contract(config.contract)
            bounds = Bounds(
                contract.action.max_translation_m,
                contract.action.max_rotation_rad,
                config.max_image_age_s,
            )
            self._backend = make_backend(config)
            self._connect(contract, bounds)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            self.get_logger().error(f'policy_node cannot be configured: {error}')
            return TransitionCallbackReturn.FAILURE
        statistics = self._backend.describe().get('unnorm_key', 'unknown')
        self.get_logger().info(
            f'policy {config.where} (adapter {self._backend.adapter_id or "none"}, statistics '
            f'{statistics}) is loaded'
        )
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act."""
        self._actor.activate()
        self.get_logger().info('policy_node is active')
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the step in progress and say no more; a running episode ends with an error."""
        self._actor.deactivate('policy_node was deactivated')
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the policy."""
        self._forget()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from any state."""
        if self._actor is not None:
            self._actor.deactivate('policy_node was shut down')
        self._forget()
        return TransitionCallbackReturn.SUCCESS

    def _connect(self, contract: Contract, bounds: Bounds) -> None:
        topics = {topic.role: topic for topic in contract.topics}
        camera = contract.cameras[contract.policy_camera]
        image_topic = next(topic for topic in contract.topics if topic.name == camera.topic)
        listen = [
            (EpisodeEvent, topics['episode_event'], self._on_event),
            (String, topics['instruction'], self._on_instruction),
            (Image, image_topic, self._on_image),
        ]
        if self._backend.needs_state:
            listen.append((PoseStamped, contract.topic('ee_pose'), self._on_pose))
            listen.append((JointState, contract.topic('joint_state'), self._on_joints))
        steps = self.create_lifecycle_publisher(PolicyStep, *_name_and_qos(topics['policy_step']))
        # Not managed: an inactive node must be able to answer START with ERROR.
        events = self.create_publisher(EpisodeEvent, *_name_and_qos(topics['episode_event']))
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._actor = Actor(
            self._backend, contract, bounds, steps.publish, events.publish, self.get_logger()
        )
        self._entities = [
            (self.destroy_subscription, self.create_subscription(
                kind, topic.name, callback, qos_profile(topic)
            ))
            for kind, topic, callback in listen
        ]  # fmt: skip
        self._entities += [
            (self.destroy_service, self.create_service(
                LoadAdapter, '~/load_adapter', self._on_load_adapter
            )),
            (self.destroy_timer, steady_timer(
                self, DIAGNOSTICS_PERIOD_S, self._publish_diagnostics
            )),
            (self.destroy_publisher, events),
            (self.destroy_publisher, self._diagnostics_publisher),
            (self.destroy_lifecycle_publisher, steps),
        ]  # fmt: skip

    def _forget(self) -> None:
        for destroy, entity in self._entities:
            destroy(entity)
        self._entities = []
        self.close()
        self._actor = self._backend = None

    def close(self) -> None:
        """Finish the step in progress, end the worker thread and let go of a server."""
        if self._actor is not None:
            self._actor.close()
        if self._backend is not None:
            self._backend.close()

    # What comes in

    def _on_event(self, event: EpisodeEvent) -> None:
        if event.source == messages.SOURCE:
            return
        if event.kind == EpisodeEvent.START:
            self._actor.start(event, self._instruction)
        elif event.kind == EpisodeEvent.STOP:
            self._actor.stop(event)

    def _on_instruction(self, message: String) -> None:
        self._instruction = message.data

    def _on_image(self, message: Image) -> None:
        self._actor.take(message)

    def _on_pose(self, message: PoseStamped) -> None:
        self._actor.states.put_pose(
            messages.stamp_ns(message), *messages.position_and_quaternion(message)
        )

    def _on_joints(self, message: JointState) -> None:
        try:
            self._actor.states.put_joints(
                messages.stamp_ns(message), message.name, message.position
            )
        except StateError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)

    def _on_load_adapter(
        self, request: LoadAdapter.Request, response: LoadAdapter.Response
    ) -> LoadAdapter.Response:
        """Switch adapters; the step in progress is finished with the old one."""
        try:
            name = self._backend.load_adapter(request.path)
        except (ValueError, OSError, RuntimeError) as error:
            self.get_logger().error(f'adapter {request.path} was not loaded: {error}')
            response.message = str(error)
        else:
            self.get_logger().info(f'adapter {name} acts from now on')
            response.success = True
        response.adapter_id = self._backend.adapter_id
        return response

    # What goes out beside steps and events

    def _publish_diagnostics(self) -> None:
        actor, health = self._actor, self._backend.health()
        values = {
            'active': actor.is_active,
            'images_replaced': actor.replaced,
            'adapter_id': self._backend.adapter_id,
            'episode_id': actor.episode_id,
            **actor.statistics.values(),
            **health.values,
        }
        problem = actor.statistics.problems(health)
        array = messages.diagnostics(health.hardware, problem, values)
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(array)


def _name_and_qos(topic: TopicSpec) -> tuple:
    return topic.name, qos_profile(topic)


def main(args: list[str] | None = None) -> int:
    """Run the node; returns 1 where autostart could not configure or activate it."""
    logging.basicConfig(level=logging.WARNING, format='[%(levelname)s] [%(name)s] %(message)s')
    logging.getLogger('grape_policy_node').setLevel(logging.INFO)
    rclpy.init(args=args)
    node = PolicyNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.get_parameter('autostart').value:
            for transition in (node.trigger_configure, node.trigger_activate):
                if transition() != TransitionCallbackReturn.SUCCESS:
                    return 1
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        node.get_logger().info('policy_node ends')
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
