"""The guard at its rate: jitter of the loop, and how long a step takes from observation to arm.

    .venv/bin/python bench/bench_guard.py --seconds 60

A guard with a fake arm in a process of its own; a policy and a camera of 640x480 px at 30 Hz
beside it, over DDS. Jitter is that of the intervals between the targets as the guard sends them
(their stamps); latency is from a step's observation stamp to the first target that follows it, as
the guard says in `executed_step`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import yaml
from rich.console import Console

from grape_bringup.ros_environment import claim_domain_id, ros_environment
from grape_episode.contract import Contract, load_contract

RATE_HZ = 100.0
CONTROL_HZ = 10.0
CAMERA_HZ = 30.0
EPISODE = 'bench'


def bench_contract(folder: Path) -> tuple[Contract, Path]:
    """Write the shipped robot's contract at 10 Hz."""
    data = load_contract('franka_openvla').to_dict() | {'control_rate_hz': CONTROL_HZ}
    path = folder / 'contract.yaml'
    path.write_text(yaml.safe_dump(data))
    return Contract.from_dict(data), path


class Traffic:
    """Policy, camera and a listener, in this process."""

    def __init__(self, contract: Contract) -> None:
        import rclpy
        from geometry_msgs.msg import PoseStamped
        from grape.msg import EpisodeEvent, PolicyStep
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image
        from std_srvs.srv import SetBool

        from grape_episode.ros_qos import qos_profile

        self._contract, self._types = contract, (PolicyStep, EpisodeEvent, Image, SetBool)
        self.node = node = rclpy.create_node('policy_node')
        steps, events = contract.topic('policy_step'), contract.topic('episode_event')
        camera = contract.cameras[contract.policy_camera]
        self._steps = node.create_publisher(PolicyStep, steps.name, qos_profile(steps))
        self._events = node.create_publisher(EpisodeEvent, events.name, qos_profile(events))
        self._images = node.create_publisher(Image, camera.topic, 10)
        self._arm = node.create_client(SetBool, 'guard/arm')
        self.sent_ns: list[int] = []
        self.latencies_ms: list[float] = []
        self.held: Counter[str] = Counter()  # by rule
        node.create_subscription(PoseStamped, 'fake_arm/target', self._target, 1000)
        node.create_subscription(PolicyStep, 'executed_step', self._executed, 100)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def begin(self) -> None:
        """Arm the guard and start an episode."""
        if not self._arm.wait_for_service(60.0):
            raise SystemExit('no guard within 60 s; what it said stands above')
        future = self._arm.call_async(self._types[3].Request(data=True))
        while not future.done():
            time.sleep(0.01)
        assert future.result().success, future.result().message
        event = self._types[1](
            kind=self._types[1].START, source='trial', episode_id=EPISODE, controller='policy'
        )
        self._events.publish(event)
        time.sleep(0.2)

    def play(self, seconds: float) -> None:
        """Show pictures at 30 Hz, and act on every third."""
        rng, frame = np.random.default_rng(0), 0
        pixels = rng.integers(0, 255, (480, 640, 3), np.uint8)
        due = time.monotonic()
        end = due + seconds
        while time.monotonic() < end:
            image = self._types[2](height=480, width=640, encoding='rgb8', step=1920)
            image.header.stamp = self.node.get_clock().now().to_msg()
            pixels[frame % 480] = rng.integers(0, 255, (640, 3))
            image.data = pixels.tobytes()
            self._images.publish(image)
            if frame % round(CAMERA_HZ / CONTROL_HZ) == 0:
                self._step(frame, image.header.stamp)
            frame += 1
            due += 1.0 / CAMERA_HZ
            time.sleep(max(0.0, due - time.monotonic()))

    def _step(self, frame: int, stamp: object) -> None:
        message = self._types[0](
            episode_id=EPISODE, step=frame, gripper_opening=1.0, source='policy'
        )
        message.header.stamp = stamp
        message.header.frame_id = self._contract.action.frame
        message.delta_translation.y = 0.01 * (1 if (frame // 30) % 2 == 0 else -1)
        self._steps.publish(message)

    def _target(self, message: object) -> None:
        self.sent_ns.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)

    def _executed(self, message: object) -> None:
        if message.source == 'policy':
            self.latencies_ms.append(message.latency_ms)
        else:
            self.held[message.verdict_reason.split(':')[0]] += 1

    def close(self) -> None:
        """Stop listening."""
        self._executor.shutdown()
        self.node.destroy_node()


def summary(values: np.ndarray) -> dict[str, float]:
    """Return p50, p99 and the largest."""
    p50, p99 = np.percentile(values, (50, 99))
    return {'p50': round(p50, 3), 'p99': round(p99, 3), 'max': round(float(values.max()), 3)}


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--realtime-priority', type=int, default=0, help='SCHED_FIFO; 0: none')
    parser.add_argument('--out', type=Path, help='JSON')
    options = parser.parse_args()
    with claim_domain_id() as domain, tempfile.TemporaryDirectory() as folder:
        os.environ.update(ros_environment(domain))
        import rclpy

        contract, path = bench_contract(Path(folder))
        rclpy.init()
        command = [
            sys.executable, '-m', 'grape_bringup.robot.guard_node', '--ros-args',
            '-p', f'contract:={path}', '-p', f'rate_hz:={RATE_HZ}', '-p', 'max_travel_m:=0.0',
            '-p', f'realtime_priority:={options.realtime_priority}',
            '-p', f"cameras:=['{contract.cameras[contract.policy_camera].topic}']",
        ]  # fmt: skip
        guard = subprocess.Popen(command)
        traffic = Traffic(contract)
        try:
            traffic.begin()
            process = psutil.Process(guard.pid)
            process.cpu_percent()
            traffic.sent_ns.clear()
            traffic.play(options.seconds)
            cpu = process.cpu_percent()
        finally:
            guard.terminate()
            guard.wait(20)
            traffic.close()
            rclpy.try_shutdown()
    error_ms = np.abs(np.diff(traffic.sent_ns) * 1e-6 - 1e3 / RATE_HZ)
    result = {
        'seconds': options.seconds,
        'realtime_priority': options.realtime_priority,
        'targets': len(traffic.sent_ns),
        'period_error_ms': summary(error_ms),
        'latency_ms': summary(np.array(traffic.latencies_ms)),
        'steps': len(traffic.latencies_ms),
        'held': traffic.held,
        'cpu_percent': cpu,
        'load': os.getloadavg()[0],
    }
    Console().print_json(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
