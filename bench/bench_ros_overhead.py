"""What ROS and recording cost: lockstep episodes over the graph against one process without ROS.

    nice -n 10 .venv/bin/python bench/bench_ros_overhead.py --episodes 4 --steps 100

Both play the same episodes (same policy, seeds and simulator; the tokens must be equal) in turns,
so that a busy machine slows both. The graph has bridge, policy node and recorder; the process has
simulator and engine, and records nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console

from grape_bringup.graph import EpisodeRequest, Graph, GraphSetup
from grape_bringup.ros_environment import config_file
from grape_episode.action import from_policy_units, to_policy_units
from grape_episode.bag import read_episode
from grape_episode.contract import contract_of_policy, load_contract
from grape_policy_node.engine import Engine, Observation
from grape_policy_node.openvla.checkpoint import save_checkpoint
from grape_policy_node.openvla.tiny import build_tiny, load_tiny_config
from sim_bridge.libero import LiberoEnvironment
from sim_bridge.rollout import play

TASK = 'libero_object/0'
STATISTICS = {'fresh': {'action': {'q01': [-1.0] * 7, 'q99': [1.0] * 7, 'mask': [True] * 7}}}


@dataclass(frozen=True)
class Played:
    """One episode's wall time from reset to its end, and its tokens."""

    seconds: float
    steps: int
    token_ids: np.ndarray  # (T, 7)


class OneProcess:
    """The loop without ROS."""

    def __init__(self, policy: Path, contract: str, rendering: str) -> None:
        torch.set_num_threads(1)  # as the policy node
        self._engine = Engine.load(policy)
        self._contract = load_contract(contract)
        camera = self._contract.cameras[self._contract.policy_camera]
        self._env = LiberoEnvironment(camera.height, rendering)

    def run(self, request: EpisodeRequest) -> Played:
        """Play one episode."""
        contract, engine, tokens = self._contract, self._engine, []
        began = time.monotonic()
        first = self._env.reset(request.task, request.init_state, request.seed)
        instruction = self._env.task_info().instruction
        generator = torch.Generator().manual_seed(request.seed)

        def act(observation: object) -> np.ndarray:
            camera = contract.policy_camera
            image = contract.apply_image(camera, observation.images[camera])
            (chosen,) = engine.predict(
                [Observation(image, instruction)], request.temperature, [generator]
            )
            tokens.append(chosen.token_ids)
            action = chosen.action.copy()
            action[6] = np.float32(np.clip(action[6], 0.0, 1.0))  # as on the wire
            delta = from_policy_units(action, contract.action)
            return np.clip(to_policy_units(delta, contract.action), -1.0, 1.0)

        done = play(self._env, act, first, request.max_steps)
        return Played(time.monotonic() - began, done.steps, np.array(tokens))

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()


def over_ros(graph: Graph, request: EpisodeRequest) -> tuple[Played, int]:
    """Play one episode over the graph; return it and its bag's bytes."""
    began = time.monotonic()
    result = graph.run_episode(request)
    seconds = time.monotonic() - began
    if result.bag is None:
        raise RuntimeError(f'the episode over ROS ended with {result.outcome}: {result.detail}')
    size = sum(file.stat().st_size for file in result.bag.glob('*.mcap'))
    return Played(seconds, result.steps, read_episode(result.bag, False).action_token_ids), size


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--policy', type=Path, help='default: a fresh grape-tiny')
    parser.add_argument('--episodes', type=int, default=4)
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--rendering', default='fast')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        policy = options.policy or _fresh_policy(root / 'policy')
        measure(root, policy, options)


def measure(root: Path, policy: Path, options: argparse.Namespace) -> None:
    """Play the episodes both ways, in turns; the first of each only warms up."""
    contract = contract_of_policy(policy)
    alone, ros, sizes, recorder_s = [], [], [], []
    setup = GraphSetup(policy, contract=contract, rendering=options.rendering)
    process = OneProcess(policy, contract, options.rendering)
    with Graph(setup, root / 'bags', root / 'logs') as graph:
        for number in range(options.episodes + 1):
            request = EpisodeRequest(
                f'e{number}', TASK, number, seed=number, temperature=1.0, max_steps=options.steps
            )
            alone.append(process.run(request))
            graph.start()
            recorder_before = _cpu_s(graph.pids['recorder_node'])
            played, size = over_ros(graph, request)
            recorder_s.append(_cpu_s(graph.pids['recorder_node']) - recorder_before)
            ros.append(played)
            sizes.append(size)
            if not np.array_equal(alone[-1].token_ids, played.token_ids):
                raise RuntimeError(f'episode {number}: the two ways chose different tokens')
    process.close()
    steps = sum(played.steps for played in ros[1:])
    ratios = [r.seconds / a.seconds for a, r in zip(alone[1:], ros[1:], strict=True)]
    extra_s = sum(r.seconds - a.seconds for a, r in zip(alone[1:], ros[1:], strict=True))
    rows = {
        'episodes, control steps': f'{len(ratios)}, {steps}',
        'one process': f'{_per_step(alone[1:]):.1f} ms a step',
        'over ROS, recorded': f'{_per_step(ros[1:]):.1f} ms a step',
        'ratio': f'{statistics.median(ratios):.3f} (median; {min(ratios):.3f}-{max(ratios):.3f})',
        'difference': f'{1000 * extra_s / steps:.2f} ms a step',
        'bag': f'{sum(sizes[1:]) / steps / 1000:.1f} kB a step',
        'recorder': f'{1000 * sum(recorder_s[1:]) / steps:.2f} ms of CPU a step',
    }
    console = Console(highlight=False)
    for name, value in rows.items():
        console.print(f'{name:24} {value}')


def _per_step(played: list[Played]) -> float:
    return 1000 * sum(p.seconds for p in played) / sum(p.steps for p in played)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _fresh_policy(folder: Path) -> Path:
    config = load_tiny_config(config_file('policy/grape_tiny.yaml'))
    save_checkpoint(build_tiny(config, ['pick up the milk'], STATISTICS, 0), folder)
    return folder


if __name__ == '__main__':
    main()
