"""Mend the include paths that the ROS 2 wheels carry from the machine that built them.

The exported CMake targets of the message packages (*_generator_pyExport.cmake) name the Python
and numpy headers of their build container under /opt/python. CMake refuses targets whose include
directories do not exist, so they are pointed at this interpreter's own. Idempotent.

Usage: VENV/bin/python tools/mend_ros_wheels.py
"""

import logging
import re
import sys
import sysconfig
from pathlib import Path

import numpy

NUMPY_INCLUDE = re.compile(
    r'/opt/python/cp3\d+-cp3\d+/lib/python3\.\d+/site-packages/numpy/_?core/include'
)
PYTHON_INCLUDE = re.compile(r'/opt/python/cp3\d+-cp3\d+/include/python3\.\d+')

log = logging.getLogger('mend_ros_wheels')


def mend(prefix: Path) -> int:
    """Rewrite the build machine's paths below prefix/share; returns the number of files changed.

    Raises:
        RuntimeError: the Python headers are not installed on this machine.
    """
    python_include = sysconfig.get_paths()['include']
    if not Path(python_include, 'Python.h').is_file():
        raise RuntimeError(
            f'{python_include}/Python.h does not exist; it is needed to build the interfaces. '
            'Install the Python headers: apt-get install -y python3-dev'
        )
    changed = 0
    for path in sorted(prefix.glob('share/*/cmake/*Export.cmake')):
        text = path.read_text()
        mended = NUMPY_INCLUDE.sub(lambda _: numpy.get_include(), text)
        mended = PYTHON_INCLUDE.sub(lambda _: python_include, mended)
        if mended != text:
            path.write_text(mended)
            changed += 1
    return changed


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        log.info('mended %d CMake files of the ROS 2 wheels', mend(Path(sys.prefix)))
    except RuntimeError as error:
        sys.exit(str(error))
