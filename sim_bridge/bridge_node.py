"""The bridge node: a simulator behind the same topics as a robot.

RunEpisode plays one episode: START, wait until policy and recorder are READY, then control steps,
STOP, and wait for RECORDED. In lockstep the simulator waits for the PolicyStep whose stamp is its
observation's, so that results do not depend on the machine's speed. All simulation and rendering
is done on the main thread (an OpenGL context belongs to one thread); rclpy spins in another.

    python -m sim_bridge.bridge_node --ros-args -p contract:=libero -p rendering:=fast
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass

import numpy as np
import rclpy
from grape.action import RunEpisode
from grape.msg import EpisodeEvent, PolicyStep
from grape_episode.contract import Contract, ContractError, load_contract
from grape_episode.outcome import Outcome
from grape_episode.ros_qos import qos_profile
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import String

from sim_bridge import ros_messages
from sim_bridge.environment import Environment, Observation, SimulatorError, UnknownTaskError
from sim_bridge.expert import Expert
from sim_bridge.libero import TESTED_MUJOCO, LiberoEnvironment
from sim_bridge.rollout import ActuationNoise

SOURCE = 'bridge'
FEEDBACK_EVERY = 10  # steps
MODES = ('lockstep', 'realtime')


@dataclass(frozen=True)
class BridgeConfig:
    """The node's parameters.

    Attributes:
        contract: name in config/contract/ or path.
        rendering: auto, fast or stock.
        image_size: px; 0: the contract's.
        participants: who must be READY before the first step.
        mode: lockstep, or realtime (a step takes 1 / control rate; a missing action holds).
        ready_timeout_s, step_timeout_s, recorded_timeout_s: then the episode is an error.

    """

    contract: str = 'libero'
    rendering: str = 'auto'
    image_size: int = 0
    participants: tuple[str, ...] = ('policy', 'recorder')
    mode: str = 'lockstep'
    ready_timeout_s: float = 30.0
    step_timeout_s: float = 30.0
    recorded_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.mode not in MODES:
            raise ValueError(f"mode '{self.mode}' is not one of: {', '.join(MODES)}.")


class EpisodeError(RuntimeError):
    """The infrastructure failed; never a policy failure."""


class CancelledError(RuntimeError):
    """The goal was cancelled."""


class BridgeNode(Node):
    """Publishers, subscribers and the action server; `serve` runs episodes on its caller."""

    def __init__(self) -> None:
        super().__init__('bridge_node')
        values = {}
        for name, entry in BridgeConfig.__dataclass_fields__.items():
            default = list(entry.default) if isinstance(entry.default, tuple) else entry.default
            value = self.declare_parameter(name, default).value
            values[name] = tuple(value) if isinstance(entry.default, tuple) else value
        self.config = BridgeConfig(**values)
        contract = load_contract(self.config.contract)
        if self.config.image_size:
            contract = contract.with_camera_size(self.config.image_size)
        self.contract: Contract = contract
        camera = contract.cameras[contract.policy_camera]
        self._env: Environment = LiberoEnvironment(camera.height, self.config.rendering)
        self._goals: queue.Queue[tuple[RunEpisode.Goal, object, Future]] = queue.Queue()
        self._busy = threading.Lock()
        self._events: queue.Queue[EpisodeEvent] = queue.Queue()
        self._steps: queue.Queue[PolicyStep] = queue.Queue()
        self._open_topics()
        group = ReentrantCallbackGroup()
        self._server = ActionServer(
            self,
            RunEpisode,
            'run_episode',
            self._execute,
            callback_group=group,
            goal_callback=self._accept,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )
        self._warn_about_versions()

    # Everything below to `serve` runs on the executor's threads.

    def _open_topics(self) -> None:
        contract = self.contract
        kinds = {
            'joint_state': ros_messages.JointState,
            'ee_pose': ros_messages.PoseStamped,
            'scene_state': ros_messages.SceneState,
            'episode_event': EpisodeEvent,
            'instruction': String,
            'policy_step': PolicyStep,
        }
        self._publish: dict[str, Publisher] = {
            role: self.create_publisher(
                kind, contract.topic(role).name, qos_profile(contract.topic(role))
            )
            for role, kind in kinds.items()
        }
        image = next(t for t in contract.topics if t.role == 'image')
        self._publish['image'] = self.create_publisher(
            ros_messages.Image, image.name, qos_profile(image)
        )
        events, steps = contract.topic('episode_event'), contract.topic('policy_step')
        self.create_subscription(EpisodeEvent, events.name, self._events.put, qos_profile(events))
        self.create_subscription(PolicyStep, steps.name, self._steps.put, qos_profile(steps))

    def _accept(self, _: RunEpisode.Goal) -> GoalResponse:
        if self._busy.locked():
            self.get_logger().warning('a goal was rejected: an episode is running')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _execute(self, handle: object) -> RunEpisode.Result:
        with self._busy:
            done: Future = Future()
            self._goals.put((handle.request, handle, done))
            result: RunEpisode.Result = done.result()
        if handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.succeed()
        return result

    def _warn_about_versions(self) -> None:
        found = self._env.describe()['versions'].get('mujoco', 'none')
        if found != TESTED_MUJOCO:
            self.get_logger().warning(
                f'mujoco {found} is installed; LIBERO was measured with {TESTED_MUJOCO} and newer '
                'ones change its pictures and a task'
            )

    # The main thread.

    def serve(self) -> None:
        """Run goals until rclpy is shut down."""
        while self.context.ok():
            try:
                goal, handle, done = self._goals.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                done.set_result(self._run(goal, handle))
            except BaseException as error:
                done.set_exception(error)
                raise

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()

    def _run(self, goal: RunEpisode.Goal, handle: object) -> RunEpisode.Result:
        result = RunEpisode.Result()
        _drain(self._events)
        _drain(self._steps)
        try:
            observation = self._env.reset(goal.task, goal.init_state, goal.seed)
        except UnknownTaskError as error:
            result.outcome, result.detail = str(Outcome.ERROR), str(error)
            return result
        except Exception as error:  # noqa: BLE001 - a simulator raises anything; the node lives on
            self.get_logger().error(f'reset failed: {error!r}')
            result.outcome, result.detail = str(Outcome.ERROR), f'reset failed: {error!r}'
            return result
        progress = _Progress(goal, observation)
        try:
            self._start(goal)
            outcome, detail = self._play(goal, handle, progress)
        except CancelledError:
            outcome, detail = Outcome.INTERRUPTED, 'cancelled'
        except (EpisodeError, SimulatorError) as error:
            outcome, detail = Outcome.ERROR, str(error)
        except Exception as error:  # noqa: BLE001 - as above
            outcome, detail = Outcome.ERROR, f'the simulator failed: {error!r}'
        if outcome is Outcome.ERROR:
            self.get_logger().error(f'{goal.episode_id}: {detail}')
        result.outcome, result.steps, result.detail = str(outcome), progress.step, detail
        self._stop(goal, progress, outcome, detail)
        try:
            result.bag_path = self._wait_recorded(goal)
        except EpisodeError as error:
            result.outcome = str(Outcome.ERROR)
            result.detail = f'{detail} {error}'.strip()
        return result

    def _start(self, goal: RunEpisode.Goal) -> None:
        info = self._env.task_info()
        instruction = goal.instruction or info.instruction
        self._publish['instruction'].publish(String(data=instruction))
        environment = asdict(info) | {
            'suite_limit': info.max_steps,
            'max_steps': goal.max_steps or info.max_steps,
            'action_noise': goal.action_noise,
            'expert_attempt': goal.expert_attempt,
            'settings': self._env.describe(),
        }
        self._event(
            goal,
            EpisodeEvent.START,
            instruction=instruction,
            config_json=json.dumps(environment),
        )
        waiting = set(self.config.participants)
        if goal.controller == 'expert':
            waiting.discard('policy')
        deadline = time.monotonic() + self.config.ready_timeout_s
        while waiting:
            event = self._next_event(goal, deadline)
            if event is None:
                raise EpisodeError(
                    f'no READY from {", ".join(sorted(waiting))} within '
                    f'{self.config.ready_timeout_s:g} s; is the node running and active?'
                )
            if event.kind == EpisodeEvent.READY:
                waiting.discard(event.source)

    def _play(
        self, goal: RunEpisode.Goal, handle: object, progress: _Progress
    ) -> tuple[Outcome, str]:
        limit = goal.max_steps or self._env.task_info().max_steps
        noise = ActuationNoise(goal.action_noise, goal.seed)
        expert = Expert(self._env, goal.expert_attempt) if goal.controller == 'expert' else None
        began = time.monotonic()
        while progress.step < limit:
            if handle.is_cancel_requested or not self.context.ok():
                raise CancelledError
            self._observe(goal, progress, with_image=True)
            if expert is not None:
                action = expert.action()
                if action is None:
                    return Outcome.FAILURE, 'the expert has done all it can'
                self._publish['policy_step'].publish(
                    ros_messages.expert_step(
                        action, self.contract, self._stamp(progress), goal.episode_id, progress.step
                    )
                )
            else:
                action = self._wait_action(goal, progress, began)
            progress.observation = self._env.step(noise(action))
            progress.step += 1
            if progress.step % FEEDBACK_EVERY == 0:
                handle.publish_feedback(RunEpisode.Feedback(step=progress.step))
            if progress.observation.scene.success:
                return Outcome.SUCCESS, ''
        return Outcome.FAILURE, f'not done within {limit} steps'

    def _wait_action(
        self, goal: RunEpisode.Goal, progress: _Progress, began: float
    ) -> np.ndarray:
        """Return the action for this observation; in real time, hold when there is none."""
        stamp = self._stamp(progress)
        realtime = self.config.mode == 'realtime'
        deadline = time.monotonic() + self.config.step_timeout_s
        if realtime:
            deadline = began + (progress.step + 1) / self.contract.control_rate_hz
        found = None
        while found is None:
            self._raise_on_error(goal)
            left = deadline - time.monotonic()
            try:
                message = self._steps.get(timeout=max(0.0, min(left, 0.5)))
            except queue.Empty:
                if left > 0:
                    continue
                if realtime:
                    return progress.hold()
                raise EpisodeError(
                    f'no PolicyStep for step {progress.step} within '
                    f'{self.config.step_timeout_s:g} s'
                ) from None
            if message.episode_id == goal.episode_id and message.header.stamp == stamp:
                found = message
        if realtime:
            time.sleep(max(0.0, deadline - time.monotonic()))
        progress.opening = float(found.gripper_opening)
        return ros_messages.action_of(found, self.contract.action)

    def _observe(self, goal: RunEpisode.Goal, progress: _Progress, with_image: bool) -> None:
        """Publish the observation, the picture last: it is what the policy acts on."""
        seen, stamp, frame = progress.observation, self._stamp(progress), self.contract.base_frame
        self._publish['joint_state'].publish(ros_messages.joint_state(seen, stamp))
        self._publish['ee_pose'].publish(ros_messages.ee_pose(seen, stamp, frame))
        self._publish['scene_state'].publish(
            ros_messages.scene_state(seen, stamp, frame, goal.episode_id, progress.step)
        )
        if with_image:
            camera = self.contract.policy_camera
            self._publish['image'].publish(ros_messages.image(seen.images[camera], stamp, camera))

    def _stop(
        self, goal: RunEpisode.Goal, progress: _Progress, outcome: Outcome, detail: str
    ) -> None:
        if not self.context.ok():
            return
        self._observe(goal, progress, with_image=False)
        self._event(
            goal, EpisodeEvent.STOP, outcome=str(outcome), steps=progress.step, detail=detail
        )

    def _wait_recorded(self, goal: RunEpisode.Goal) -> str:
        if 'recorder' not in self.config.participants:
            return ''
        deadline = time.monotonic() + self.config.recorded_timeout_s
        while (event := self._next_event(goal, deadline, raise_on_error=False)) is not None:
            if event.kind == EpisodeEvent.RECORDED:
                return event.detail
            if event.kind == EpisodeEvent.ERROR and event.source == 'recorder':
                raise EpisodeError(f'recorder: {event.detail}')
        raise EpisodeError(f'no RECORDED within {self.config.recorded_timeout_s:g} s')

    def _next_event(
        self, goal: RunEpisode.Goal, deadline: float, raise_on_error: bool = True
    ) -> EpisodeEvent | None:
        """Return the next event of this episode by somebody else, None at the deadline."""
        while (left := deadline - time.monotonic()) > 0 and self.context.ok():
            try:
                event = self._events.get(timeout=min(left, 0.5))
            except queue.Empty:
                continue
            if event.episode_id != goal.episode_id or event.source == SOURCE:
                continue
            if event.kind == EpisodeEvent.ERROR and raise_on_error:
                raise EpisodeError(f'{event.source}: {event.detail}')
            return event
        return None

    def _raise_on_error(self, goal: RunEpisode.Goal) -> None:
        while not self._events.empty():
            event = self._events.get_nowait()
            if event.episode_id == goal.episode_id and event.kind == EpisodeEvent.ERROR:
                raise EpisodeError(f'{event.source}: {event.detail}')

    def _event(self, goal: RunEpisode.Goal, kind: int, **fields: object) -> None:
        event = EpisodeEvent(
            kind=kind,
            source=SOURCE,
            episode_id=goal.episode_id,
            task=goal.task,
            init_state=goal.init_state,
            seed=goal.seed,
            temperature=goal.temperature,
            controller=goal.controller,
            **fields,
        )
        event.header.stamp = self.get_clock().now().to_msg()
        self._publish['episode_event'].publish(event)

    def _stamp(self, progress: _Progress) -> object:
        return ros_messages.stamp_of(progress.step, self.contract.control_rate_hz)


class _Progress:
    """How far an episode is."""

    def __init__(self, goal: RunEpisode.Goal, observation: Observation) -> None:
        self.goal = goal
        self.observation = observation
        self.step = 0
        self.opening = 1.0

    def hold(self) -> np.ndarray:
        """Return the action that moves nothing."""
        return np.array([0, 0, 0, 0, 0, 0, self.opening])


def _drain(waiting: queue.Queue) -> None:
    while not waiting.empty():
        waiting.get_nowait()


def main() -> None:
    """Run the node until it is told to stop."""
    rclpy.init()
    try:
        node = BridgeNode()
    except (ValueError, ContractError) as error:
        rclpy.logging.get_logger('bridge_node').error(str(error))
        rclpy.try_shutdown()
        sys.exit(1)
    executor = MultiThreadedExecutor(num_threads=3)
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin, daemon=True)
    spinner.start()
    try:
        node.serve()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
        spinner.join(timeout=2.0)
        node.close()


if __name__ == '__main__':
    main()
