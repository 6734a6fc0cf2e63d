"""A tiny policy, a small camera and the command line, for tests of the whole graph."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import yaml
from policy_tiny import tiny_checkpoint

from grape_episode.contract import load_contract
from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import save_checkpoint

TASK = 'libero_object/0'
CAMERA_PX = 64


def write_policy(folder: Path) -> Path:
    """Save a fresh policy; it acts at random and never succeeds."""
    save_checkpoint(tiny_checkpoint(), folder)
    return folder


def write_adapter(policy: Path, folder: Path) -> str:
    """Save an adapter that changes what the policy does; return its id."""
    engine = Engine.load(policy)
    engine.adapters.new('other', seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in engine.adapters.parameters('other'):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return engine.adapters.save('other', folder)


def write_contract(path: Path) -> Path:
    """LIBERO's contract with a camera that renders fast."""
    contract = load_contract('libero').with_camera_size(CAMERA_PX)
    path.write_text(yaml.safe_dump(contract.to_dict()))
    return path


def grape(*arguments, timeout_s=120.0, cwd=None):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, '-m', 'grape_bringup.cli', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        check=False,
    )


def start_grape(log: Path, *arguments):
    """Start the command line as a terminal would: Ctrl-C reaches it alone by send_signal."""
    with log.open('wb') as output:
        return subprocess.Popen(
            [sys.executable, '-m', 'grape_bringup.cli', *map(str, arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONUNBUFFERED': '1'},
            start_new_session=True,
        )


def wait_until(condition, timeout_s=60.0):
    """Return the first true value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, 'nothing came in time'
        time.sleep(0.05)
    return value


def nodes_below(folder: Path) -> list[psutil.Process]:
    """Return the living processes whose parameters lie below a folder: a run's nodes."""
    found = []
    for process in psutil.process_iter(['cmdline', 'status']):
        arguments = process.info['cmdline'] or []
        if process.info['status'] != psutil.STATUS_ZOMBIE and any(
            argument.startswith(str(folder)) and argument.endswith('_node.yaml')
            for argument in arguments
        ):
            found.append(process)
    return found
