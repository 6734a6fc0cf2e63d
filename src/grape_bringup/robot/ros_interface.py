"""Message types of drivers, imported only when a configuration asks for them.

franka_msgs, controller_manager_msgs, moveit_msgs and the like come with the drivers' apt packages;
whoever uses another driver need not have them.
"""

from __future__ import annotations

import importlib
import os


class MissingInterfaceError(ImportError):
    """An interface package is not here; the text names the apt package."""


def load_interface(name: str, needed_for: str) -> type:
    """Return an interface type.

    Args:
        name: such as 'franka_msgs/action/ErrorRecovery'.
        needed_for: what asks for it, for the error.

    Raises:
        MissingInterfaceError: the package is not installed, or is too old to have the type.

    """
    package, kind, type_name = name.split('/')
    apt = f'ros-{os.environ.get("ROS_DISTRO") or "<distro>"}-{package.replace("_", "-")}'
    try:
        module = importlib.import_module(f'{package}.{kind}')
    except ImportError as error:
        raise MissingInterfaceError(
            f"{needed_for} needs the package '{package}', which is not installed ({error}). "
            f'Install it: sudo apt install {apt} (or source the workspace that holds it)'
        ) from error
    if not hasattr(module, type_name):
        raise MissingInterfaceError(
            f'{needed_for} needs {name}, which the installed {package} does not have. '
            f'Update it: sudo apt install {apt} (or the workspace that holds it)'
        )
    return getattr(module, type_name)
