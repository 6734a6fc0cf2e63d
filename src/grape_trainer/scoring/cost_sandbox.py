"""Runs cost programs in a process of their own, with little time, little memory and no way out.

    with CostSandbox() as sandbox:
        program = load_program('costs.py', sandbox)
        costs = sandbox.evaluate(program, {1: StageInputs(...)})  # {name: (N,) float64}

One worker (cost_worker.py) serves many programs and episodes. Every request has a deadline, after
which the worker is killed with its process group; the next request starts a new one. Not for use
by several threads at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import yaml

from grape_trainer.scoring.cost_channel import Channel, Ended, Late
from grape_trainer.scoring.cost_form import StageInputs
from grape_trainer.scoring.cost_program import Program
from grape_trainer.scoring.cost_source import PYTHON, Problem, ProgramError

_PACKAGES = Path(__file__).resolve().parents[2]
_START = (
    'import sys; sys.path += sys.argv[3:]; '
    'from grape_trainer.scoring.cost_worker import main; main(int(sys.argv[1]), int(sys.argv[2]))'
)
# Nothing of our environment is given on; BLAS would start threads, each with memory of its own.
_ENVIRONMENT = {f'{name}_NUM_THREADS': '1' for name in ('OMP', 'OPENBLAS', 'MKL')}


class SandboxError(RuntimeError):
    """The sandbox itself does not work; says nothing about a program."""


@dataclass(frozen=True)
class Limits:
    """What a request may use."""

    deadline_s: float = 1.5  # wall time of a request, at least
    per_state_s: float = 0.0005  # of a function at a state; they need 0.01 to 0.2 ms
    memory_bytes: int = 256 * 2**20  # above what the worker has with numpy loaded
    cpu_s: int = 3600  # of a worker's whole life; for when nobody watches its deadline
    requests: int = 500  # after which a worker is replaced
    start_s: float = 30.0  # until a worker answers

    def request_s(self, states: int = 0) -> float:
        """Return the time for a request that asks for so many costs in all."""
        return max(self.deadline_s, self.per_state_s * states)


@dataclass(frozen=True)
class Outcome:
    """What functions gave, and which of them failed."""

    costs: Mapping[str, np.ndarray]  # name -> (N,) float64, finite
    problems: tuple[Problem, ...]


class CostSandbox:
    """A worker process for cost programs; a context manager."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.walls: dict[str, bool] = {}  # which of cost_lockdown's walls the worker stands behind
        self.starts = 0  # workers started so far
        self._process: subprocess.Popen | None = None
        self._channel: Channel | None = None
        self._folder: Path | None = None
        self._requests = 0  # that this worker may still have

    def __enter__(self) -> CostSandbox:
        """Return the sandbox; the worker starts with the first request."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the worker."""
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None where none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def evaluate(
        self,
        program: Program,
        stages: Mapping[int, StageInputs],
        names: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the cost of every state: name -> (N,) float64, finite.

        Args:
            program: what load_program or parse_program returned.
            stages: the states of each stage, by its number; functions of others are left out.
            names: only these functions.

        Raises:
            ProgramError: a function failed, gave something else than a finite number, or did not
                end; the text names function and state.
            SandboxError: no worker could be started.

        """
        outcome = self.run(program, stages, names)
        if outcome.problems:
            raise ProgramError(outcome.problems)
        return dict(outcome.costs)

    def run(
        self,
        program: Program,
        stages: Mapping[int, StageInputs],
        names: Sequence[str] | None = None,
    ) -> Outcome:
        """Do what `evaluate` does, with the failures in the answer."""
        chosen = [
            function
            for function in program.functions
            if function.stage in stages and (names is None or function.name in names)
        ]
        missing = [
            Problem('there is no progress in this stage', function.line, None, function.name)
            for function in chosen
            if 'progress' in function.inputs and stages[function.stage].progress is None
        ]
        if missing or not chosen:
            return Outcome({}, tuple(missing))
        text = program.python.encode()
        used = {stage: stages[stage].packed() for stage in {each.stage for each in chosen}}
        request = {
            'do': 'run',
            'text_bytes': len(text),
            'stages': [[stage, states, count] for stage, (states, count, _) in used.items()],
            'functions': [[function.name, function.stage] for function in chosen],
        }
        content = b''.join([text, *(values for _, _, values in used.values())])
        states = sum(used[function.stage][0] for function in chosen)
        answer, values = self._ask(request, content, self.limits.request_s(states))
        problems = tuple(_placed(Problem(**each), program) for each in answer['failures'])
        failed = {problem.function for problem in problems}
        costs, at = {}, 0
        for function in chosen:
            if function.name not in failed:
                count = used[function.stage][0]
                costs[function.name] = np.frombuffer(values, np.float64, count, at).copy()
                at += count * 8
        return Outcome(costs, problems)

    def inspect(self, python: str) -> tuple[list[dict], tuple[Problem, ...]]:
        """Check Python text in the worker; return its functions and what is wrong."""
        answer, _ = self._ask({'do': 'inspect'}, python.encode(), self.limits.request_s())
        return answer['functions'], tuple(Problem(**each) for each in answer['problems'])

    def read_document(self, text: str) -> tuple[object, dict[str, list[int]]]:
        """Read YAML or JSON in the worker; return its content and places.

        Raises:
            ProgramError: it is not plain data.

        """
        answer, _ = self._ask({'do': 'read'}, text.encode(), self.limits.request_s())
        if answer['problems']:
            raise ProgramError(Problem(**each) for each in answer['problems'])
        return answer['content'], answer['places']

    def start(self) -> None:
        """Start a worker unless one runs; SandboxError if it does not answer."""
        if self.pid is not None and self._requests > 0:
            return
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix='grape_costs_'))
        paths = [_PACKAGES, *(Path(each.__file__).parents[1] for each in (np, yaml))]
        self._process = subprocess.Popen(
            [
                sys.executable, '-I', '-S', '-B', '-c', _START,
                str(self.limits.memory_bytes), str(self.limits.cpu_s), *map(str, paths),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self._folder, env=_ENVIRONMENT, start_new_session=True, bufsize=0,
        )  # fmt: skip
        self.starts += 1
        self._requests = self.limits.requests
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        os.set_blocking(self._channel.read_fd, False)
        os.set_blocking(self._channel.write_fd, False)
        try:
            first, _ = self._channel.receive(time.monotonic() + self.limits.start_s)
        except Ended as error:
            self.close()
            raise SandboxError(
                'the worker of the cost sandbox did not start '
                f'({"no answer" if isinstance(error, Late) else "it ended"} within '
                f'{self.limits.start_s:g} s). Look whether numpy and yaml can be imported with '
                f"'{sys.executable} -I', and how much memory a process may have (ulimit -v)."
            ) from error
        self.walls = first['walls']

    def close(self) -> None:
        """End the worker and remove its folder."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _ask(self, request: dict, payload: bytes, seconds: float) -> tuple[dict, bytes]:
        """Send a request and return the answer; kill the worker at the deadline."""
        self.start()
        self._requests -= 1
        deadline = time.monotonic() + seconds
        running = ''
        try:
            self._channel.send(request, payload, deadline)
            answer, content = self._channel.receive(deadline)
            while 'running' in answer:
                running = answer['running']
                answer, content = self._channel.receive(deadline)
        except Ended as error:
            reason = self._why(error, seconds)
            self.close()
            raise ProgramError([Problem(f'stopped: {reason}', function=running)]) from error
        except BaseException:
            self.close()  # half a message may be under way
            raise
        return answer, content

    def _why(self, error: Ended, seconds: float) -> str:
        if isinstance(error, Late):
            return f'it did not end within {seconds:g} s'
        try:
            status = self._process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            return str(error) or 'its process closed the connection'
        name = signal.Signals(-status).name if status < 0 else f'exit code {status}'
        return f'it ended its process ({name})'


def _placed(problem: Problem, program: Program) -> Problem:
    """Return a failure at its place in the text as it was given."""
    if program.notation == PYTHON:
        return problem
    lines = {function.name: function.line for function in program.functions}
    return Problem(problem.message, lines.get(problem.function), None, problem.function)
