"""Runs a checked cost program: a small interpreter over the allow-listed syntax tree.

Why no `exec` with empty built-ins: compiled code reaches every attribute of every value that it
touches, and its loops and powers run where nothing can count them. Here a program has no frames,
no attributes and no objects but numbers, arrays and lists (cost_values.py), every operation passes
a guard, and every node that is evaluated is paid from a budget, so that a program that does not
end is refused at the same place on a fast machine and on a slow one.

What it means is what Python means by the same text, for one state: end_effector (3,) and keypoints
(K, 3) are fresh arrays at every call, numbers of numpy stay numbers of numpy (1.0 / 0.0 of them is
inf, not an error).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from grape_trainer.scoring.cost_expression import call_name, infinity
from grape_trainer.scoring.cost_functions import BUILTINS, NUMPY, NUMPY_CONSTANTS, TYPES
from grape_trainer.scoring.cost_operators import (
    changed,
    combined,
    compared,
    selected,
    signed,
    store,
)
from grape_trainer.scoring.cost_python import CheckedFunction, CheckedProgram
from grape_trainer.scoring.cost_values import RefusedValue, items_of, weigh

MAX_STEPS = 20_000  # of one function at one state; the appendix's need 10 to 150
MAX_CALLS = 6  # of functions in one another
ELEMENTS_PER_STEP = 32  # of an array that an operation makes or reads

_ERRORS = (ArithmeticError, LookupError, ValueError, TypeError, MemoryError, RecursionError)


class CostFailure(Exception):  # noqa: N818 - it is the program's failure, not ours
    """A program that failed while it ran; where, and why."""

    def __init__(self, message: str, line: int | None, column: int | None) -> None:
        self.line, self.column = line, column
        super().__init__(message)


class _Returned(Exception):  # noqa: N818
    """Carries what a function returns out of its loops."""

    def __init__(self, value: object) -> None:
        self.value = value


class _Break(Exception):  # noqa: N818
    pass


class _Continue(Exception):  # noqa: N818
    pass


class Interpreter:
    """Runs the functions of one program, one state at a time."""

    def __init__(self, program: CheckedProgram) -> None:
        """Take a program without problems and work out its constants.

        Raises:
            CostFailure: a constant could not be worked out.

        """
        if program.problems:
            raise ValueError('a refused program cannot be run; look at its problems.')
        self._functions = program.functions
        self._steps = 0
        self._calls = 0
        self._place: ast.AST | None = None  # the last statement or operation begun
        self._constants: dict[str, object] = {}
        self._locals: frozenset[str] = frozenset()
        self._evaluate: dict[type, Callable[[ast.expr, dict], object]] = {
            ast.Constant: lambda node, env: node.value,
            ast.Name: self._name,
            ast.Attribute: lambda node, env: NUMPY_CONSTANTS[call_name(node)[3:]],
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.BoolOp: self._logical,
            ast.Compare: self._compare,
            ast.IfExp: self._conditional,
            ast.List: lambda node, env: self._made([self._eval(n, env) for n in node.elts]),
            ast.Tuple: lambda node, env: self._made(tuple(self._eval(n, env) for n in node.elts)),
            ast.Subscript: self._subscript,
            ast.ListComp: self._comprehension,
            ast.GeneratorExp: self._comprehension,
            ast.Call: self._call,
        }
        self._guarded(lambda: self._block(program.constants, self._constants))
        _lock(list(self._constants.values()))

    def inputs(self, name: str) -> tuple[str, ...]:
        """Return the parameters of a function."""
        return self._functions[name].inputs

    def call(self, name: str, arguments: Sequence[object]) -> object:
        """Return what a function gives for one state.

        Raises:
            CostFailure: it failed, or used up its steps; the text says where and why.

        """
        return self._guarded(lambda: self._apply(self._functions[name], list(arguments)))

    def _guarded(self, run: Callable[[], object]) -> object:
        self._steps, self._calls, self._place = MAX_STEPS, 0, None
        try:
            with np.errstate(all='ignore'):
                return run()
        except _ERRORS as error:
            line = getattr(self._place, 'lineno', None)
            column = getattr(self._place, 'col_offset', None)
            raise CostFailure(
                _reason(error), line, None if column is None else column + 1
            ) from error

    def _apply(self, function: CheckedFunction, arguments: list[object]) -> object:
        if self._calls >= MAX_CALLS:
            raise RefusedValue(f'functions that call one another more than {MAX_CALLS} deep')
        outside, self._locals = self._locals, function.locals
        self._calls += 1
        try:
            self._block(function.node.body, dict(zip(function.inputs, arguments, strict=True)))
        except _Returned as returned:
            return returned.value
        finally:
            self._locals = outside
            self._calls -= 1
        return None

    def _pay(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise RefusedValue(
                f'more than {MAX_STEPS} operations at one state; use fewer or shorter loops'
            )

    def _made(self, value: object) -> object:
        """Pay for the size of a new value."""
        if isinstance(value, np.ndarray):
            self._pay(value.size // ELEMENTS_PER_STEP)
        elif isinstance(value, list | tuple):
            self._pay(weigh(value))
        return value

    def _block(self, body: Sequence[ast.stmt], env: dict[str, object]) -> None:
        for node in body:
            self._pay(1)
            self._place = node
            if isinstance(node, ast.Return):
                raise _Returned(self._eval(node.value, env))
            if isinstance(node, ast.Assign):
                value = self._eval(node.value, env)
                for target in node.targets:
                    self._assign(target, value, env)
            elif isinstance(node, ast.AnnAssign):
                self._assign(node.target, self._eval(node.value, env), env)
            elif isinstance(node, ast.AugAssign):
                self._augment(node, env)
            elif isinstance(node, ast.If):
                self._block(node.body if self._eval(node.test, env) else node.orelse, env)
            elif isinstance(node, ast.For):
                self._for(node, env)
            elif isinstance(node, ast.Break):
                raise _Break
            elif isinstance(node, ast.Continue):
                raise _Continue
            elif isinstance(node, ast.Expr):
                if not isinstance(node.value, ast.Constant):
                    self._eval(node.value, env)
            elif not isinstance(node, ast.Pass):
                raise RefusedValue(f'{type(node).__name__} is not allowed')

    def _for(self, node: ast.For, env: dict[str, object]) -> None:
        for item in items_of(self._eval(node.iter, env)):
            self._pay(1)
            self._assign(node.target, item, env)
            try:
                self._block(node.body, env)
            except _Break:
                break
            except _Continue:
                continue

    def _assign(self, target: ast.expr, value: object, env: dict[str, object]) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            values = items_of(value)
            if len(values) != len(target.elts):
                raise RefusedValue(f'{len(values)} values for {len(target.elts)} names')
            for part, item in zip(target.elts, values, strict=True):
                self._assign(part, item, env)
        elif isinstance(target, ast.Subscript):
            store(self._name(target.value, env), self._index(target.slice, env), value)
        else:
            raise RefusedValue(f'{type(target).__name__} is not allowed')

    def _augment(self, node: ast.AugAssign, env: dict[str, object]) -> None:
        old = self._eval(node.target, env)
        value = self._eval(node.value, env)
        self._place = node
        self._assign(node.target, self._made(changed(node.op, old, value)), env)

    def _eval(self, node: ast.expr, env: dict[str, object]) -> object:
        self._steps -= 1  # _pay, written out: this is most of the time
        if self._steps < 0:
            self._pay(0)
        evaluate = self._evaluate.get(type(node))
        if evaluate is None:
            raise RefusedValue(f'{type(node).__name__} is not allowed')
        return evaluate(node, env)

    def _name(self, node: ast.Name, env: dict[str, object]) -> object:
        if node.id in env:
            return env[node.id]
        if node.id in self._constants and node.id not in self._locals:
            return self._constants[node.id]
        self._place = node
        raise RefusedValue(f"'{node.id}' is used before it has a value")

    def _binary(self, node: ast.BinOp, env: dict[str, object]) -> object:
        left, right = self._eval(node.left, env), self._eval(node.right, env)
        self._place = node
        return self._made(combined(node.op, left, right))

    def _unary(self, node: ast.UnaryOp, env: dict[str, object]) -> object:
        value = self._eval(node.operand, env)
        self._place = node
        return self._made(signed(node.op, value))

    def _logical(self, node: ast.BoolOp, env: dict[str, object]) -> object:
        is_and = isinstance(node.op, ast.And)
        value: object = is_and
        for part in node.values:
            value = self._eval(part, env)
            self._place = node
            if bool(value) is not is_and:
                break
        return value

    def _compare(self, node: ast.Compare, env: dict[str, object]) -> object:
        left = self._eval(node.left, env)
        result: object = True
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = self._eval(part, env)
            self._place = node
            result = self._made(compared(kind, left, right))
            if part is not node.comparators[-1] and not result:
                break
            left = right
        return result

    def _conditional(self, node: ast.IfExp, env: dict[str, object]) -> object:
        test = self._eval(node.test, env)
        self._place = node
        return self._eval(node.body if test else node.orelse, env)

    def _subscript(self, node: ast.Subscript, env: dict[str, object]) -> object:
        value = self._eval(node.value, env)
        index = self._index(node.slice, env)
        self._place = node
        return self._made(selected(value, index))

    def _index(self, node: ast.expr, env: dict[str, object]) -> object:
        if isinstance(node, ast.Tuple):
            return tuple(self._index(part, env) for part in node.elts)
        if isinstance(node, ast.Slice):
            bounds = (node.lower, node.upper, node.step)
            return slice(*(None if b is None else self._eval(b, env) for b in bounds))
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            return Ellipsis
        return self._eval(node, env)

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp, env: dict) -> object:
        inner = dict(env)  # its variables are its own
        return self._made([self._eval(node.elt, inner) for _ in self._rounds(node, inner, 0)])

    def _rounds(self, node: ast.ListComp, env: dict, depth: int) -> Iterator[None]:
        if depth == len(node.generators):
            yield
            return
        clause = node.generators[depth]
        for item in items_of(self._eval(clause.iter, env)):
            self._pay(1)
            self._assign(clause.target, item, env)
            if all(self._eval(condition, env) for condition in clause.ifs):
                yield from self._rounds(node, env, depth + 1)

    def _call(self, node: ast.Call, env: dict[str, object]) -> object:
        name = call_name(node.func)
        if name == 'float' and infinity(node.args[0]) is not None:
            return infinity(node.args[0])
        arguments = [self._eval(argument, env) for argument in node.args]
        keywords = {
            keyword.arg: TYPES[call_name(keyword.value)]
            if keyword.arg == 'dtype'
            else self._eval(keyword.value, env)
            for keyword in node.keywords
        }
        self._place = node
        if name in self._functions:
            function = self._functions[name]
            rest = function.inputs[len(arguments) :]
            return self._apply(function, arguments + [keywords[key] for key in rest])
        is_numpy = name.startswith('np.')
        for argument in arguments:
            if isinstance(argument, np.ndarray) and is_numpy:
                self._pay(argument.size // ELEMENTS_PER_STEP)
            elif isinstance(argument, np.ndarray | list | tuple | range):
                self._pay(weigh(argument))  # gone through one by one
        function = NUMPY[name[3:]] if is_numpy else BUILTINS[name]
        return self._made(function(arguments, keywords))


def _lock(value: object) -> None:
    """Make arrays that all states share read-only."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    elif isinstance(value, list | tuple):
        for item in value:
            _lock(item)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return 'it uses too much memory'
    if isinstance(error, RecursionError):
        return 'it is nested too deeply'
    return (str(error) or type(error).__name__).split('\n')[0][:200]
