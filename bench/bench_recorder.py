"""The recorder at a robot's full rate, beside a bare subscriber of the same topics.

    python bench/bench_recorder.py [--minutes 5] [--compression zstd] [--out DIR]

Two cameras of 640x480 at 30 Hz with aligned depth, joint states and poses at 100 Hz, published by
processes of their own. Prints messages sent, recorded and lost by topic, the share of one core of
the recorder and of a process that only subscribes with raw=True, and what the bag takes. Five
minutes are up to 28 GB in DIR (deleted at the end).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from rich.console import Console

from grape_bringup.ros_environment import claim_domain_id, ros_environment
from grape_episode.bag import read_info
from grape_episode.contract import load_contract

EVENT = {'name': 'episode_event', 'type': 'grape/msg/EpisodeEvent', 'role': 'episode_event',
         'per_step': False, 'depth': 100}  # fmt: skip
# topic -> type, Hz; the contract's own topics stand still, so that only the streams count.
STREAMS = {
    'stream/front/color': ('sensor_msgs/msg/Image', 30),
    'stream/front/depth': ('sensor_msgs/msg/Image', 30),
    'stream/wrist/color': ('sensor_msgs/msg/Image', 30),
    'stream/wrist/depth': ('sensor_msgs/msg/Image', 30),
    'stream/joint_states': ('sensor_msgs/msg/JointState', 100),
    'stream/ee_pose': ('geometry_msgs/msg/PoseStamped', 100),
}
WARM_UP_S = 3.0
DEPTH = 30  # of both subscribers: a second of pictures
HEIGHT, WIDTH = 480, 640


def contract() -> dict:
    """Return the contract: LIBERO's, with the streams of a robot."""
    data = load_contract('libero').to_dict()
    streams = [
        {'name': name, 'type': kind, 'role': 'raw', 'per_step': False, 'depth': DEPTH}
        for name, (kind, _) in STREAMS.items()
    ]
    return data | {'name': 'bench', 'topics': [*data['topics'], *streams]}


def picture(name: str, number: int) -> bytes:
    """Return a picture as a camera gives it: a gradient with the sensor's noise."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    if name.endswith('depth'):
        depth_mm = 600 + rows / 2 + random.normal(0, 2, (HEIGHT, WIDTH))
        return depth_mm.astype(np.uint16).tobytes()
    base = np.stack([(columns / 3 + 7 * number) % 256, rows / 2, (rows + columns) / 5 % 256], -1)
    return (base + random.normal(0, 3, base.shape)).clip(0, 255).astype(np.uint8).tobytes()


def publish(names: list[str]) -> None:
    """Publish streams until SIGTERM; print how many of each were sent."""
    import rclpy
    from geometry_msgs.msg import PoseStamped
    from rclpy.qos import QoSProfile
    from rclpy.serialization import serialize_message
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image, JointState

    from grape_episode.ros_signals import stop_on_signal

    stop = stop_on_signal()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(f'driver_{os.getpid()}')
    sent, entries = dict.fromkeys(names, 0), []
    for name in names:
        kind = {'Image': Image, 'JointState': JointState, 'PoseStamped': PoseStamped}[
            STREAMS[name][0].rpartition('/')[2]
        ]
        variants = []
        for number in range(6 if kind is Image else 1):
            message = kind()
            if kind is Image:
                depth = name.endswith('depth')
                message.encoding = '16UC1' if depth else 'rgb8'
                message.height, message.width = HEIGHT, WIDTH
                message.step = WIDTH * (2 if depth else 3)
                message.data = picture(name, number)
            elif kind is JointState:
                message.name = [f'fr3_joint{i}' for i in range(1, 8)]
                message.position = message.velocity = message.effort = [0.1] * 7
            variants.append(serialize_message(message))
        publisher = node.create_publisher(kind, name, QoSProfile(depth=10))
        entries.append([time.monotonic(), 1 / STREAMS[name][1], name, publisher, variants])
    while not stop.is_set():
        entry = min(entries, key=lambda e: e[0])
        due, period, name, publisher, variants = entry
        time.sleep(max(0.0, due - time.monotonic()))
        publisher.publish(variants[sent[name] % len(variants)])
        sent[name] += 1
        entry[0] = due + period
    sys.stdout.write(json.dumps(sent) + '\n')


def subscribe() -> None:
    """Subscribe to the streams and do nothing with them, until SIGTERM."""
    import importlib

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import QoSProfile
    from rclpy.signals import SignalHandlerOptions

    from grape_episode.ros_signals import stop_on_signal

    stop = stop_on_signal()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('bare_subscriber')
    count = dict.fromkeys(STREAMS, 0)

    def counter(name: str):
        def take(_: bytes) -> None:
            count[name] += 1

        return take

    for name, (kind, _) in STREAMS.items():
        package, _, message = kind.split('/')
        found = getattr(importlib.import_module(f'{package}.msg'), message)
        node.create_subscription(found, name, counter(name), QoSProfile(depth=DEPTH), raw=True)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.05)
    sys.stdout.write(json.dumps(count) + '\n')


class Run:
    """The processes of one measurement."""

    def __init__(self, folder: Path, compression: str) -> None:
        self._folder = folder
        path = folder / 'contract.yaml'
        path.write_text(yaml.safe_dump(contract()))
        arguments = {'output_dir': folder / 'bags', 'contract': path, 'compression': compression}
        parameters = [x for n, v in arguments.items() for x in ('-p', f'{n}:={v}')]
        self.recorder = self._start('-m', 'grape_episode.recorder_node', '--ros-args', *parameters)
        self.bare = self._start(__file__, '--subscribe')
        fast = [name for name, (_, hz) in STREAMS.items() if hz == 100]
        sides = [[n for n in STREAMS if side in n] for side in ('front', 'wrist')]
        self.drivers = [self._start(__file__, '--publish', *names) for names in (*sides, fast)]

    def _start(self, *arguments: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )

    def end(self, *processes: subprocess.Popen) -> list[dict[str, int]]:
        """Stop processes; return what each counted."""
        for process in processes:
            process.terminate()
        return [json.loads(process.communicate(timeout=60)[0] or '{}') for process in processes]

    def kill(self) -> None:
        """End whatever still runs."""
        for process in (self.recorder, self.bare, *self.drivers):
            if process.poll() is None:
                process.kill()
                process.wait()


def cpu_s(process: subprocess.Popen) -> float:
    """Return the CPU time that a process has used."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def measure(folder: Path, options: argparse.Namespace, console: Console) -> None:
    """Record one episode and print the table."""
    import rclpy
    from grape.msg import EpisodeEvent
    from rclpy.qos import QoSProfile

    run = Run(folder, options.compression)
    rclpy.init()
    node = rclpy.create_node('bench')
    heard: dict[int, EpisodeEvent] = {}
    publisher = node.create_publisher(EpisodeEvent, EVENT['name'], QoSProfile(depth=100))
    node.create_subscription(
        EpisodeEvent, EVENT['name'], lambda e: heard.setdefault(e.kind, e), QoSProfile(depth=100)
    )

    def wait(kind: int, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while kind not in heard:
            rclpy.spin_once(node, timeout_sec=0.1)
            if time.monotonic() > deadline:
                raise RuntimeError(f'no event of kind {kind} within {limit_s:g} s')

    def say(kind: int, **fields: object) -> None:
        event = EpisodeEvent(kind=kind, source='bench', episode_id='bench', **fields)
        publisher.publish(event)

    try:
        while node.count_subscribers(EVENT['name']) < 2 or any(
            node.count_publishers(name) < 1 or node.count_subscribers(name) < 2 for name in STREAMS
        ):
            rclpy.spin_once(node, timeout_sec=0.1)
        time.sleep(WARM_UP_S)
        say(EpisodeEvent.START, controller='expert')
        wait(EpisodeEvent.READY, 30)
        before = [cpu_s(p) for p in (run.recorder, run.bare)]
        began = time.monotonic()
        while time.monotonic() - began < 60 * options.minutes:
            rclpy.spin_once(node, timeout_sec=0.5)
        seconds = time.monotonic() - began
        shares = [
            (cpu_s(p) - b) / seconds for p, b in zip((run.recorder, run.bare), before, strict=True)
        ]
        say(EpisodeEvent.STOP, outcome='interrupted', steps=0)
        wait(EpisodeEvent.RECORDED, 120)
        sent = {n: c for counts in run.end(*run.drivers) for n, c in counts.items()}
        (bare,) = run.end(run.bare)
        run.end(run.recorder)
    finally:
        run.kill()
        rclpy.try_shutdown()
    report(folder / 'bags' / 'bench', seconds, shares, sent, bare, console)


def report(
    bag: Path,
    seconds: float,
    shares: list[float],
    sent: dict[str, int],
    bare: dict[str, int],
    console: Console,
) -> None:
    """Print what was measured."""
    from rosbags.rosbag2 import Reader

    info = read_info(bag)
    with Reader(bag) as reader:
        kept = {c.topic: c.msgcount for c in reader.connections}
    console.print(f'{seconds:.0f} s, load average {os.getloadavg()[0]:.1f} of {os.cpu_count()}')
    for name, (_, hz) in STREAMS.items():
        console.print(
            f'{name:22} {hz:3} Hz: recorded {kept[name]} ({kept[name] / seconds:.1f} Hz), lost '
            f'{info.lost.get(name, 0)}; in all sent {sent[name]}, bare subscriber {bare[name]}'
        )
    size = sum(file.stat().st_size for file in bag.glob('*.mcap'))
    console.print(f'messages lost: {sum(info.lost.get(name, 0) for name in STREAMS)}')
    console.print(f'recorder: {100 * shares[0]:.1f} % of a core')
    console.print(f'bare raw subscriber: {100 * shares[1]:.1f} % of a core')
    console.print(f'bag: {size / seconds / 1e6:.1f} MB/s')


def main() -> None:
    """Measure, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=5.0)
    parser.add_argument('--compression', default='zstd')
    parser.add_argument('--out', type=Path, help='default: a temporary folder')
    parser.add_argument('--publish', nargs='+', help=argparse.SUPPRESS)
    parser.add_argument('--subscribe', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(options.publish)
    elif options.subscribe:
        subscribe()
    else:
        with claim_domain_id() as domain, tempfile.TemporaryDirectory(dir=options.out) as folder:
            os.environ.update(ros_environment(domain))
            measure(Path(folder), options, Console(highlight=False))


if __name__ == '__main__':
    main()
