"""Which code this is, for everything that is written beside a result."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """Return `git describe` of the source tree, or the installed package's version."""
    here = Path(__file__).resolve().parents[2]
    if (here / '.git').exists() and shutil.which('git'):
        done = subprocess.run(
            ['git', '-C', str(here), 'describe', '--always', '--dirty', '--tags'],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    try:
        return version('grape-ros2')
    except PackageNotFoundError:
        return 'unknown'
