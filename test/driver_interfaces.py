"""Interface packages of drivers that no wheel has, built for the tests (test/interfaces)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def install(patch: pytest.MonkeyPatch) -> None:
    """Make franka_msgs and the like importable, here and in node processes; skips without them."""
    done = subprocess.run(
        [ROOT / 'test/interfaces/build.sh', sys.prefix],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if done.returncode:
        pytest.skip(f'the interfaces of the drivers did not build: {done.stderr[-500:]}')
    prefix = Path(done.stdout.split()[-1])
    python = prefix / 'lib' / f'python{sys.version_info[0]}.{sys.version_info[1]}/site-packages'
    patch.syspath_prepend(str(python))
    for name, place in (
        ('PYTHONPATH', python),
        ('AMENT_PREFIX_PATH', prefix),
        ('LD_LIBRARY_PATH', prefix / 'lib'),
    ):
        patch.setenv(name, os.pathsep.join([str(place), *filter(None, [os.environ.get(name)])]))
