"""A task's name: '<suite>/<index>', then '+<perturbation>' for each thing that was changed.

`libero_object/0+layout_shift:min_m=0.1+obstacle` is another task than `libero_object/0`: its
trials are neither paired nor averaged with those. It starts from the same initial states, though,
so that training on the one and evaluating on the other from the same state is no held-out test.
"""

from __future__ import annotations

SEPARATOR = '+'


def base_task(task: str) -> str:
    """Return the task's name without its perturbations."""
    return task.partition(SEPARATOR)[0]
