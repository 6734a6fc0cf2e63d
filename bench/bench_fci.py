"""The direct FCI output against franka-sim: its loop, its latency and what the robot counts.

    .venv/bin/python bench/bench_fci.py [--seconds 60] [--rate 100] [--comm]

Sends a smooth path of targets at the guard's rate, then single steps. The period is that of this
sender; the latency is from `send` to the first state in which the measured arm has moved; the
success rate and the reflexes are the robot's. The simulator shares the machine: a real robot has
its own. Only backend 'impedance': the simulator's O_T_EE is not the frame that 'robot' begins in.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rclpy.logging import get_logger
from rich.console import Console

from grape_bringup.robot.arm import ArmError, ArmMode, ArmTarget, Pose
from grape_bringup.robot.arm_config import load_arm_config
from grape_bringup.robot.arm_fci import FciOutput

sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
from fci_simulator import FrankaSim, install

READY_S = 30.0
RADIUS_M, TURN_S = 0.05, 8.0
STEP_M = 0.01  # a jump, to time how long the arm takes to begin
MOVED_M = 0.0002
STEPS = 10


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--rate', type=float, default=100.0, help='Hz')
    parser.add_argument('--comm', action='store_true', help='enforce the limit on lost packets')
    options = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as folder:
        simulator = FrankaSim(Path(folder) / 'franka_sim.log', *['--comm'] * options.comm)
        simulator.start()
        try:
            measure(simulator.host, options)
        finally:
            simulator.kill()


def measure(host: str, options: argparse.Namespace) -> None:
    """Play the path, then the steps."""
    config = load_arm_config('fci', host=host, realtime='ignore')
    output = FciOutput(config, get_logger('fci'))
    try:
        start = wait_ready(output)
        rows = play_circle(output, start, options)
        rows |= time_steps(output)
    finally:
        output.close()
        output.join(10.0)
    console = Console(highlight=False)
    for name, value in rows.items():
        console.print(f'{name:32} {value}')


def wait_ready(output: FciOutput) -> Pose:
    """Return where the arm is, once it takes targets."""
    deadline = time.monotonic() + READY_S
    while (state := output.state()) is None or state.mode is not ArmMode.READY:
        if time.monotonic() > deadline:
            raise RuntimeError(f'the arm is not ready after {READY_S:g} s: {state}')
        time.sleep(0.01)
    return state.pose


def play_circle(output: FciOutput, start: Pose, options: argparse.Namespace) -> dict[str, str]:
    """Send a circle at a fixed rate on an absolute schedule."""
    began = time.monotonic()
    sent_s, call_s, success, behind_m, reflexes = [], [], [], [], 0
    for tick in range(int(options.seconds * options.rate)):
        due = began + tick / options.rate
        time.sleep(max(0.0, due - time.monotonic()))
        target = circle(start, due - began)
        now = time.monotonic()
        try:
            output.send(target)
        except ArmError:
            reflexes += output.state().mode is ArmMode.REFLEX
            output.recover()
            start = wait_ready(output)
            continue
        sent_s.append(now)
        call_s.append(time.monotonic() - now)
        success.append(output.success_rate)
        away = output.state().pose.position_m - target.pose.position_m
        behind_m.append(float(np.linalg.norm(away)))
    periods = np.diff(sent_s)
    return {
        'targets, Hz': f'{len(sent_s)}, {options.rate:g}',
        'period': spread(periods, 1e3, 'ms'),
        'send()': spread(call_s, 1e6, 'us'),
        'behind the target': spread(behind_m, 1e3, 'mm'),
        'control command success rate': f'mean {np.mean(success[50:]):.3f}, '
        f'least {np.min(success[50:]):.3f}',
        'reflexes': str(reflexes),
    }


def circle(start: Pose, seconds: float) -> ArmTarget:
    """Return the target on a circle through the start that begins at rest."""
    angle = 2 * np.pi * max(0.0, seconds - TURN_S / 4) / TURN_S
    offset = RADIUS_M * np.array([0.0, np.sin(angle), np.cos(angle) - 1.0])
    return ArmTarget(
        Pose(start.position_m + offset, start.quaternion_xyzw), np.zeros(3), np.zeros(3)
    )


def time_steps(output: FciOutput) -> dict[str, str]:
    """Time how long after a target the measured arm moves."""
    taken_s = []
    for number in range(STEPS):
        time.sleep(1.0)
        here = output.state().pose
        sign = 1 if number % 2 else -1
        there = Pose(here.position_m + [0.0, sign * STEP_M, 0.0], here.quaternion_xyzw)
        began = time.monotonic()
        output.send(ArmTarget(there, np.zeros(3), np.zeros(3)))
        while time.monotonic() - began < 1.0:
            state = output.state()
            if abs(state.pose.position_m[1] - here.position_m[1]) > MOVED_M:
                taken_s.append(state.stamp_s - began)
                break
            time.sleep(0.001)
    return {f'target to {1e3 * MOVED_M:g} mm of motion': spread(taken_s, 1e3, 'ms')}


def spread(values: list[float] | np.ndarray, scale: float, unit: str) -> str:
    """Return median, 99th percentile and maximum."""
    scaled = scale * np.asarray(values)
    p50, p99, most = np.percentile(scaled, 50), np.percentile(scaled, 99), scaled.max()
    return f'p50 {p50:.2f}, p99 {p99:.2f}, max {most:.2f} {unit}'


if __name__ == '__main__':
    main()
