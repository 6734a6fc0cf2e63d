"""The sandbox's process: reads, checks and runs cost programs behind the walls of cost_lockdown.

Started by cost_sandbox.py as `python -I -S` in an empty folder, with no environment but the number
of threads. It answers each request with one message (cost_channel.py), and before that sends the
name of every function that it is about to run, so that the other side can say which one did not
come back.
"""

from __future__ import annotations

import json
import os
import warnings

import numpy as np

from grape_trainer.scoring.cost_channel import Channel, Ended
from grape_trainer.scoring.cost_document import read_document
from grape_trainer.scoring.cost_form import StageInputs, packed_bytes, unpacked
from grape_trainer.scoring.cost_interpreter import CostFailure, Interpreter
from grape_trainer.scoring.cost_lockdown import lock_down
from grape_trainer.scoring.cost_python import check
from grape_trainer.scoring.cost_source import ProgramError
from grape_trainer.scoring.cost_values import NUMBER, shown

CACHED_PROGRAMS = 8


def main(memory_bytes: int, cpu_s: int) -> None:
    """Serve requests until the other side closes the pipe."""
    warnings.simplefilter('ignore')
    _warm_up()
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    walls = lock_down(requests, answers, memory_bytes, cpu_s)
    channel = Channel(requests, answers)
    channel.send({'walls': walls})
    server = _Server(channel)
    while True:
        try:
            request, payload = channel.receive()
        except Ended:
            os._exit(0)  # nothing to flush, and closing files is behind the walls
        channel.send(*server.answer(request, payload))


def _warm_up() -> None:
    """Make numpy and the parsers load what they load at first use, while files can be opened."""
    text = 'def stage1_path_constraint1(end_effector, keypoints):\n    return np.median(keypoints)'
    inputs = StageInputs(*(np.ones(shape) for shape in ((1, 3), (1, 2, 3), 1, 1, 1, 1)))
    _costs(Interpreter(check(text)), 'stage1_path_constraint1', inputs)
    read_document('{a: [1, 2.5, x]}')
    np.linalg.norm(np.ones((4, 3)) @ np.ones((3, 3)), axis=0)
    json.loads(json.dumps({'a': 1.5}))


class _Server:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._programs: dict[str, Interpreter] = {}

    def answer(self, request: dict, payload: bytes) -> tuple[dict, bytes]:
        """Return the answer to one request."""
        if request['do'] == 'run':
            return self._run(request, payload)
        return {'read': _read, 'inspect': _inspect}[request['do']](payload.decode()), b''

    def _run(self, request: dict, payload: bytes) -> tuple[dict, bytes]:
        """Run functions over the states of their stages; the payload is text, then inputs."""
        at = request['text_bytes']
        text, stages = payload[:at].decode(), {}
        for stage, states, count in request['stages']:
            size = packed_bytes(states, count)
            stages[stage] = unpacked(states, count, payload[at : at + size])
            at += size
        costs, failures = [], []
        for name, stage in request['functions']:
            self._channel.send({'running': name})
            try:
                values = _costs(self._interpreter(text), name, stages[stage])
            except CostFailure as error:
                failures.append(_failure(error, name))
            else:
                costs.append(values.tobytes())
        return {'failures': failures}, b''.join(costs)

    def _interpreter(self, text: str) -> Interpreter:
        if text not in self._programs:
            while len(self._programs) >= CACHED_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            program = check(text)
            if program.problems:
                first = program.problems[0]
                raise CostFailure(first.message, first.line, first.column)
            self._programs[text] = Interpreter(program)
        return self._programs[text]


def _costs(interpreter: Interpreter, name: str, stage: StageInputs) -> np.ndarray:
    """Return a function's cost at every state of its stage, (N,) float64, finite."""
    steps = np.linalg.norm(np.diff(stage.end_effector, axis=0), axis=-1)
    length_m = np.concatenate(([0.0], np.cumsum(steps)))
    wanted = interpreter.inputs(name)
    costs = np.empty(len(stage.end_effector))
    for state in range(len(costs)):
        # Fresh arrays: a program may change what it is given, as Python lets it.
        given = {
            'end_effector': stage.end_effector[state].copy(),
            'keypoints': stage.keypoints[state].copy(),
        }
        if len(wanted) > len(given):
            given |= {
                'held': bool(stage.held[state]),
                'collided': bool(stage.collided[state]),
                'time_s': stage.time_s[state],
                'path_length_m': length_m[state],
                'start_end_effector': stage.end_effector[0].copy(),
                'start_keypoints': stage.keypoints[0].copy(),
                'progress': stage.progress[state],
            }
        try:
            value = interpreter.call(name, [given[key] for key in wanted])
        except CostFailure as error:
            raise CostFailure(f'state {state}: {error}', error.line, error.column) from error
        if not isinstance(value, NUMBER):
            what = 'nothing' if value is None else shown(value)
            raise CostFailure(f'state {state}: it returns {what}; expected one number', None, None)
        costs[state] = value
        if not np.isfinite(costs[state]):
            raise CostFailure(
                f'state {state}: it returns {costs[state]}; expected a finite number', None, None
            )
    return costs


def _read(text: str) -> dict:
    try:
        content, places = read_document(text)
    except ProgramError as error:
        return {'problems': [vars(problem) for problem in error.problems]}
    return {'problems': [], 'content': content, 'places': places}


def _inspect(text: str) -> dict:
    program = check(text)
    functions = [
        {
            'name': name,
            'line': function.node.lineno,
            'inputs': function.inputs,
            'explanation': function.explanation,
        }
        for name, function in program.functions.items()
    ]
    return {'functions': functions, 'problems': [vars(problem) for problem in program.problems]}


def _failure(error: CostFailure, name: str) -> dict:
    return {'function': name, 'message': str(error), 'line': error.line, 'column': error.column}
