"""The bridge node: a simulator behind the same topics as a robot.

RunEpisode plays one episode (bridge_episode.py). In lockstep the simulator waits for the
PolicyStep whose stamp is its observation's, so that results do not depend on the machine's speed.
All simulation and rendering is done on the main thread (an OpenGL context belongs to one thread);
rclpy spins in another.

    python -m sim_bridge.bridge_node --ros-args -p contract:=libero -p rendering:=fast
"""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass
from functools import partial

from grape.action import RunEpisode
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node

from grape_episode.contract import Contract, ContractError, load_contract
from grape_episode.outcome import Outcome
from grape_episode.ros_main import made
from grape_episode.ros_signals import stop_on_signal
from sim_bridge.bridge_episode import MODES, BridgeEpisode, EpisodeSettings
from sim_bridge.bridge_topics import BridgeTopics
from sim_bridge.environment import Environment
from sim_bridge.libero import CAMERA, TESTED_MUJOCO, LiberoEnvironment

POLL_S = 0.1
CLOSE_S = 2.0


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
        if self.image_size < 0:
            raise ValueError(f'image_size is {self.image_size}; expected px, or 0.')
        for name in ('ready_timeout_s', 'step_timeout_s', 'recorded_timeout_s'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} is {getattr(self, name)}; expected more than 0.')

    @classmethod
    def declare(cls, node: Node) -> BridgeConfig:
        """Declare the parameters and read them."""
        values = {}
        for name, entry in cls.__dataclass_fields__.items():
            is_list = isinstance(entry.default, tuple)
            default = list(entry.default) if is_list else entry.default
            value = node.declare_parameter(name, default).value
            values[name] = tuple(value) if is_list else value
        return cls(**values)

    def load_contract(self) -> Contract:
        """Load the contract and check that this bridge can serve it.

        Raises:
            ContractError: no such contract, or cameras that LIBERO's bridge does not have.

        """
        contract = load_contract(self.contract)
        if self.image_size:
            contract = contract.with_camera_size(self.image_size)
        camera = contract.cameras[contract.policy_camera]
        if list(contract.cameras) != [CAMERA] or camera.height != camera.width:
            sizes = ', '.join(f'{n} {c.width}x{c.height}' for n, c in contract.cameras.items())
            raise ContractError(
                f"contract '{contract.name}' has the cameras {sizes}; "
                f"this bridge renders one square '{CAMERA}'."
            )
        return contract


class BridgeNode(Node):
    """The action server; `serve` plays the episodes on its caller."""

    def __init__(self, stopping: threading.Event) -> None:
        """Declare the parameters and open the topics; `stopping` ends `serve`.

        Raises:
            ValueError: a parameter, or the contract, cannot be used.

        """
        super().__init__('bridge_node')
        self.config = BridgeConfig.declare(self)
        contract = self.config.load_contract()
        camera = contract.cameras[contract.policy_camera]
        self._env: Environment = LiberoEnvironment(
            camera.height,
            self.config.rendering,
            depth=camera.depth is not None,
            rate_hz=contract.control_rate_hz,
        )
        self._topics = BridgeTopics(self, contract)
        self._stopping = stopping
        self._goals: queue.Queue[ServerGoalHandle] = queue.Queue()
        self._busy = threading.Lock()  # from a goal's acceptance to its result
        self._server = ActionServer(
            self,
            RunEpisode,
            'run_episode',
            self._deliver,
            goal_callback=self._accept,
            handle_accepted_callback=self._goals.put,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )
        self._log_fingerprint()

    def serve(self) -> None:
        """Play goals until told to stop.

        A goal is executed, in rclpy's sense, once its result is there: an execute callback that
        waits for the main thread needs a MultiThreadedExecutor, whose thread then spins and takes
        the interpreter's lock from the simulator (80 ms a step).
        """
        while not self._stopping.is_set() and self.context.ok():
            try:
                handle = self._goals.get(timeout=POLL_S)
            except queue.Empty:
                continue
            result = self._episode(handle).run()
            handle.execute(partial(self._deliver, result=result))

    def close(self) -> None:
        """Release the simulator, once the last result is on its way."""
        self._busy.acquire(timeout=CLOSE_S)
        self._env.close()

    def _episode(self, handle: ServerGoalHandle) -> BridgeEpisode:
        config = self.config
        settings = EpisodeSettings(
            config.participants,
            config.mode,
            config.ready_timeout_s,
            config.step_timeout_s,
            config.recorded_timeout_s,
        )
        return BridgeEpisode(
            handle.request,
            self._env,
            self._topics,
            settings,
            is_cancelled=lambda: handle.is_cancel_requested,
            stopping=self._stopping,
            feedback=lambda step: handle.publish_feedback(RunEpisode.Feedback(step=step)),
            logger=self.get_logger(),
        )

    # On the executor's thread.

    def _accept(self, _: RunEpisode.Goal) -> GoalResponse:
        if not self._busy.acquire(blocking=False):
            self.get_logger().warning('a goal was rejected: an episode is running')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _deliver(self, handle: ServerGoalHandle, result: RunEpisode.Result) -> RunEpisode.Result:
        if result.outcome == str(Outcome.INTERRUPTED) and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.succeed()
        self._busy.release()
        return result

    def _log_fingerprint(self) -> None:
        settings = self._env.describe()
        self.get_logger().info(f'environment: {json.dumps(settings)}')
        found = settings['versions'].get('mujoco', 'none')
        if found != TESTED_MUJOCO:
            self.get_logger().warning(
                f'mujoco {found} is installed; LIBERO was measured with {TESTED_MUJOCO} and newer '
                'ones change its pictures and a task'
            )


def main() -> None:
    """Run the node until it is told to stop."""
    stopping = stop_on_signal()
    with made(lambda: BridgeNode(stopping), 'bridge_node') as (node, executor):
        spinner = threading.Thread(target=executor.spin, daemon=True)
        spinner.start()
        try:
            node.serve()
        finally:
            node.close()
            executor.shutdown(timeout_sec=CLOSE_S)
            spinner.join(timeout=CLOSE_S)


if __name__ == '__main__':
    main()
