"""The policy node: one camera image in, one PolicyStep out.

A lifecycle node; it commands only while active. Configuring loads the checkpoint, so that a wrong
folder fails there and not in the first episode. An episode begins with EpisodeEvent START (for
controller 'policy'), which is answered with READY, and ends with STOP. Each image is acted on by
a worker thread that always takes the newest one. An adapter is switched between two steps. An
error in a step ends the episode by EpisodeEvent ERROR and leaves the node running.

    python -m grape_policy_node.policy_node --ros-args -p policy:=DIR -p contract:=libero
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from grape.msg import EpisodeEvent, PolicyStep
from grape.srv import LoadAdapter
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image
from std_msgs.msg import String

from grape_episode.action import from_policy_units
from grape_episode.contract import Contract, TopicSpec, load_contract
from grape_episode.ros_qos import qos_profile
from grape_policy_node import messages
from grape_policy_node.adapters import BASE
from grape_policy_node.engine import Engine
from grape_policy_node.messages import RunningEpisode
from grape_policy_node.safety import Bounds, gate
from grape_policy_node.worker import NewestWorker

DIAGNOSTICS_PERIOD_S = 1.0
LATENCIES_KEPT = 1000


@dataclass(frozen=True)
class PolicyNodeConfig:
    """The node's parameters.

    Attributes:
        policy: checkpoint folder; required.
        adapter: LoRA adapter folder; empty: the base.
        unnorm_key: which action statistics; empty: the only ones.
        contract: name in config/contract/ or path.
        device: 'cpu', 'cuda' ...
        torch_threads: threads of one operation; 0: torch's own choice.
        max_image_age_s: observations older than this are not acted on; 0: any age (lockstep).
        dump_tensors: folder for each step's pixel tensor as npy; empty: none.
    """

    policy: str = ''
    adapter: str = ''
    unnorm_key: str = ''
    contract: str = 'libero'
    device: str = 'cpu'
    torch_threads: int = 1
    max_image_age_s: float = 0.0
    dump_tensors: str = ''

    def __post_init__(self) -> None:
        if not self.policy:
            raise ValueError(
                "parameter 'policy' is empty; expected a checkpoint folder: -p policy:=DIR"
            )
        if self.torch_threads < 0:
            raise ValueError(f'torch_threads is {self.torch_threads}; expected 0 or more')


class PolicyNode(LifecycleNode):
    """Runs the engine behind the topics of the contract."""

    def __init__(self) -> None:
        super().__init__('policy_node')
        for name, field in PolicyNodeConfig.__dataclass_fields__.items():
            self.declare_parameter(name, field.default)
        self.declare_parameter('autostart', False)
        self._config: PolicyNodeConfig | None = None
        self._contract: Contract | None = None
        self._engine: Engine | None = None
        self._bounds: Bounds | None = None
        self._worker: NewestWorker[tuple[Image, float]] | None = None
        self._engine_lock = threading.Lock()  # the step in progress, or a switch of adapters
        self._episode: RunningEpisode | None = None
        self._instruction = ''
        self._steps = 0
        self._errors = 0
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._entities: list = []

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load contract and checkpoint, and listen."""
        try:
            values = {
                n: self.get_parameter(n).value for n in PolicyNodeConfig.__dataclass_fields__
            }
            self._config = config = PolicyNodeConfig(**values)
            self._contract = contract = load_contract(config.contract)
            self._bounds = Bounds(
                contract.action.max_translation_m,
                contract.action.max_rotation_rad,
                config.max_image_age_s,
            )
            if config.torch_threads:
                torch.set_num_threads(config.torch_threads)
            self._engine = Engine.load(
                config.policy,
                unnorm_key=config.unnorm_key or None,
                adapter=config.adapter or None,
                device=config.device,
            )
        except (ValueError, OSError, RuntimeError) as error:
            self.get_logger().error(f'policy_node cannot be configured: {error}')
            return TransitionCallbackReturn.FAILURE
        self._connect(contract)
        self.get_logger().info(
            f'policy {config.policy} (adapter {self._engine.adapter_id}, statistics '
            f'{self._engine.unnorm_key}) is loaded'
        )
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act."""
        self._worker = NewestWorker(self._act_or_report, 'policy_inference')
        self.get_logger().info('policy_node is active')
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the step in progress and say no more; a running episode ends with an error."""
        self._stop_acting('policy_node was deactivated')
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the checkpoint."""
        self._disconnect()
        self._engine = None
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from any state."""
        self._stop_acting('policy_node was shut down')
        self._disconnect()
        return TransitionCallbackReturn.SUCCESS

    def _connect(self, contract: Contract) -> None:
        topics = {topic.role: topic for topic in contract.topics}
        camera = contract.cameras[contract.policy_camera]
        image_topic = next(topic for topic in contract.topics if topic.name == camera.topic)
        self._steps_publisher = self.create_lifecycle_publisher(
            PolicyStep, *_name_and_qos(topics['policy_step'])
        )
        # Not managed: an inactive node must be able to answer START with ERROR.
        self._events_publisher = self.create_publisher(
            EpisodeEvent, *_name_and_qos(topics['episode_event'])
        )
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        listen = (
            (EpisodeEvent, topics['episode_event'], self._on_event),
            (String, topics['instruction'], self._on_instruction),
            (Image, image_topic, self._on_image),
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
            (self.destroy_timer, self.create_timer(
                DIAGNOSTICS_PERIOD_S, self._publish_diagnostics
            )),
            (self.destroy_publisher, self._events_publisher),
            (self.destroy_publisher, self._diagnostics_publisher),
            (self.destroy_lifecycle_publisher, self._steps_publisher),
        ]  # fmt: skip

    def _disconnect(self) -> None:
        for destroy, entity in self._entities:
            destroy(entity)
        self._entities = []

    def close(self) -> None:
        """Finish the step in progress and end the worker thread."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _stop_acting(self, reason: str) -> None:
        self.close()
        if self._episode is not None:
            self._fail_episode(self._episode, reason)

    # What comes in (executor thread)

    def _on_event(self, event: EpisodeEvent) -> None:
        if event.source == messages.SOURCE:
            return
        if event.kind == EpisodeEvent.START:
            self._start(event)
        elif event.kind == EpisodeEvent.STOP and self._episode is not None:
            if self._episode.episode_id == event.episode_id:
                self._episode = None

    def _start(self, event: EpisodeEvent) -> None:
        """Answer START for controller 'policy'; another controller ends our episode."""
        self._episode = None
        if event.controller != 'policy':
            return
        engine = self._engine
        with self._engine_lock:
            config = {
                **engine.describe(),
                'contract': self._contract.name,
                'bounds': asdict(self._bounds),
            }
        try:
            if self._worker is None:
                raise RuntimeError('policy_node is inactive: activate it before an episode')
            episode = RunningEpisode.from_start(event, self._instruction)
            engine.processor.prompt_ids(episode.instruction)
        except (ValueError, RuntimeError) as error:
            self.get_logger().error(f'episode {event.episode_id}: {error}')
            self._events_publisher.publish(
                messages.answer(event, EpisodeEvent.ERROR, engine.adapter_id, config, str(error))
            )
            return
        self._episode = episode
        self._events_publisher.publish(
            messages.answer(event, EpisodeEvent.READY, engine.adapter_id, config)
        )

    def _on_instruction(self, message: String) -> None:
        self._instruction = message.data

    def _on_image(self, message: Image) -> None:
        if self._worker is not None and self._episode is not None:
            self._worker.put((message, time.monotonic()))

    def _on_load_adapter(
        self, request: LoadAdapter.Request, response: LoadAdapter.Response
    ) -> LoadAdapter.Response:
        """Switch adapters; the step in progress is finished with the old one."""
        engine = self._engine
        try:
            with self._engine_lock:
                name = engine.load_adapter(request.path) if request.path else BASE
                engine.set_adapter(name)
        except (ValueError, OSError, RuntimeError) as error:
            self.get_logger().error(f'adapter {request.path} was not loaded: {error}')
            response.message = str(error)
        else:
            self.get_logger().info(f'adapter {name} acts from now on')
            response.success = True
        response.adapter_id = engine.adapter_id
        return response

    # Acting (worker thread)

    def _act_or_report(self, item: tuple[Image, float]) -> None:
        episode = self._episode
        if episode is None:
            return
        try:
            self._act(episode, *item)
        except Exception as error:  # whatever it is, it ends this episode and not the node
            self._fail_episode(episode, f'step {episode.step}: {type(error).__name__}: {error}')

    def _act(self, episode: RunningEpisode, message: Image, received_s: float) -> None:
        contract, engine = self._contract, self._engine
        camera = contract.policy_camera
        raw = messages.image_array(message, contract.cameras[camera].encoding)
        pixels = engine.processor.pixel_values([contract.apply_image(camera, raw)])
        with self._engine_lock:
            adapter_id = engine.adapter_id
            prediction = engine.predict_pixels(
                pixels, [episode.instruction], episode.temperature, [episode.generator]
            )[0]
        if self._config.dump_tensors:
            self._dump(episode, pixels[0].numpy())
        proposed = from_policy_units(prediction.action, contract.action)
        age_s = time.monotonic() - received_s
        gated = gate(proposed, self._bounds, age_s, episode.gripper_opening)
        step = messages.policy_step(
            message.header.stamp, contract.action.frame, episode, prediction, gated, adapter_id
        )
        if self._episode is not episode:
            return  # STOP came meanwhile: a command now would belong to no episode
        episode.gripper_opening = step.gripper_opening
        episode.step += 1
        step.latency_ms = (time.monotonic() - received_s) * 1000.0
        self._steps_publisher.publish(step)
        self._steps += 1
        self._latencies_ms.append(step.latency_ms)
        if gated.reason:
            self.get_logger().warning(
                f'episode {episode.episode_id} step {step.step}: {gated.verdict.name}: '
                f'{gated.reason}',
                throttle_duration_sec=1.0,
            )

    def _dump(self, episode: RunningEpisode, pixels: np.ndarray) -> None:
        folder = Path(self._config.dump_tensors) / episode.episode_id
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f'{episode.step:06d}.npy', pixels)

    def _fail_episode(self, episode: RunningEpisode, detail: str) -> None:
        self._errors += 1
        if self._episode is episode:
            self._episode = None
        self.get_logger().error(f'episode {episode.episode_id}: {detail}')
        self._events_publisher.publish(
            messages.error_event(episode, self._engine.adapter_id, detail)
        )

    # What goes out beside commands

    def _publish_diagnostics(self) -> None:
        latencies = np.array(self._latencies_ms or [0.0])
        episode, worker = self._episode, self._worker
        values = {
            'active': worker is not None,
            'steps': self._steps,
            'latency_p50_ms': f'{np.percentile(latencies, 50):.2f}',
            'latency_p99_ms': f'{np.percentile(latencies, 99):.2f}',
            'images_replaced': worker.replaced if worker else 0,
            'errors': self._errors,
            'adapter_id': self._engine.adapter_id,
            'policy_sha256': self._engine.policy_sha256,
            'episode_id': episode.episode_id if episode else '',
        }
        status = DiagnosticStatus()
        status.name = 'policy_node: inference'
        status.hardware_id = str(self._engine.model.device)
        status.level = DiagnosticStatus.WARN if self._errors else DiagnosticStatus.OK
        status.message = f'{self._errors} errors' if self._errors else 'ok'
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(array)


def _name_and_qos(topic: TopicSpec) -> tuple:
    return topic.name, qos_profile(topic)


def main(args: list[str] | None = None) -> int:
    """Run the node; returns 1 where autostart could not configure or activate it."""
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
