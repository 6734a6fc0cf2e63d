"""The environment variables that GRAPE's node processes need, and a ROS domain of their own.

Every process of one run (nodes, command line, tests) gets the same variables, so that a run is
confined to this machine and to its domain, finds the generated interfaces, and renders without a
GPU. Variables that a person has set are respected, except those that name the domain.
"""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

DOMAIN_IDS = range(1, 102)
"""Domains whose UDP ports lie below Linux's ephemeral range; 0 is everybody's default."""


class DomainError(RuntimeError):
    """No free ROS domain, or one that ROS 2 does not allow."""


def ros_environment(domain_id: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables to add to a node process's environment.

    Args:
        domain_id: ROS_DOMAIN_ID, 0..101.
        base: the environment that the process would get otherwise; default os.environ.

    Returns:
        Only the variables to set; merge as `{**os.environ, **ros_environment(domain_id)}`.

    Raises:
        DomainError: domain_id is outside 0..101.
        FileNotFoundError: config/fastdds.xml is neither in the source tree nor installed.
    """
    if not 0 <= domain_id <= DOMAIN_IDS[-1]:
        raise DomainError(f'domain_id {domain_id} is not in 0..{DOMAIN_IDS[-1]}')
    base = os.environ if base is None else base
    profile = base.get('FASTDDS_DEFAULT_PROFILES_FILE') or str(config_file('fastdds.xml', base))
    environment = {
        'ROS_DOMAIN_ID': str(domain_id),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'AMENT_PREFIX_PATH': os.pathsep.join(map(str, _ament_prefixes(base))),
        'FASTDDS_DEFAULT_PROFILES_FILE': profile,
        'ROS_LOG_DIR': base.get('ROS_LOG_DIR')
        or str(Path(tempfile.gettempdir(), f'grape-ros-log-{os.getuid()}')),
        # Several processes share the cores; without it each starts one thread a core.
        'OMP_NUM_THREADS': base.get('OMP_NUM_THREADS') or '1',
    }
    if base.get('ROS_DISTRO') in ('humble', 'jazzy'):  # the name up to Fast DDS 2.14
        environment['FASTRTPS_DEFAULT_PROFILES_FILE'] = profile
    if not base.get('MUJOCO_GL') and not has_gpu():
        environment.update(MUJOCO_GL='osmesa', PYOPENGL_PLATFORM='osmesa')
    return environment


def has_gpu() -> bool:
    """Whether this machine has a device node that EGL could render on."""
    return any(Path('/dev/dri').glob('renderD*')) or any(Path('/dev').glob('nvidia[0-9]*'))


def config_file(name: str, base: Mapping[str, str] | None = None) -> Path:
    """Find config/NAME in the source tree or in the installed share/grape.

    Raises:
        FileNotFoundError: it is in none of them; the message lists where it was looked for.
    """
    base = os.environ if base is None else base
    candidates = [Path(__file__).resolve().parents[2] / 'config' / name]
    candidates += [prefix / 'share/grape/config' / name for prefix in _ament_prefixes(base)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f'config/{name} was not found; looked for {", ".join(map(str, candidates))}. '
        'Run from a clone after `make setup`, or source the install/setup.bash of the workspace.'
    )


@contextmanager
def claim_domain_id() -> Iterator[int]:
    """Hold a ROS domain that no other GRAPE run on this machine holds, until the block ends.

    The claim is a lock on a file in the temporary folder: the kernel frees it when the process
    dies, however it dies.

    Raises:
        DomainError: all of them are taken.
    """
    # Neighbouring runs start at different places, so a domain is not reused at once while the
    # participants of a killed run are still remembered.
    start = os.getpid() % len(DOMAIN_IDS)
    for domain_id in [*DOMAIN_IDS[start:], *DOMAIN_IDS[:start]]:
        descriptor = _lock(Path(tempfile.gettempdir(), f'grape-ros-domain-{domain_id}.lock'))
        if descriptor is not None:
            try:
                yield domain_id
            finally:
                os.close(descriptor)
            return
    raise DomainError(
        f'all ROS domains {DOMAIN_IDS[0]}..{DOMAIN_IDS[-1]} are taken by other runs of grape; '
        'wait for one of them to end (locks: grape-ros-domain-*.lock in the temporary folder)'
    )


def _lock(path: Path) -> int | None:
    """Open and lock path; None when another process holds it."""
    try:
        # Without O_CREAT first: Linux refuses to create-open another user's file in /tmp.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _ament_prefixes(base: Mapping[str, str]) -> list[Path]:
    """Return the sourced prefixes, and this interpreter's own when ROS 2 wheels live in it."""
    prefixes = [
        Path(entry) for entry in base.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if entry
    ]
    own = Path(sys.prefix)
    if own not in prefixes and (own / 'share/ament_index').is_dir():
        prefixes.append(own)
    return prefixes
