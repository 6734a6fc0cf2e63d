"""Which expressions a cost program may hold: the allow-list of node types, names and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from grape_trainer.scoring.cost_functions import BUILTINS, NUMPY, NUMPY_CONSTANTS, TYPES
from grape_trainer.scoring.cost_refusal import Refusals, shortened
from grape_trainer.scoring.cost_values import MAX_INTEGER

NUMPY_NAMES = ('np', 'numpy')
OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult,
    ast.BitAnd, ast.BitOr, ast.BitXor,
)  # fmt: skip
MAX_CLAUSES = 3  # of a comprehension
MAX_NAME = 60  # letters

_HINT_NAMES = {'List', 'Tuple', 'Optional', 'Union', 'Sequence', 'list', 'tuple', 'np', 'numpy'}
_HINT_ATTRIBUTES = {'np.ndarray', 'np.array', 'np.float64', 'np.floating'}
_INFINITY = {'inf', '-inf', '+inf', 'infinity', '-infinity', '+infinity'}


class Callee(Protocol):
    """A function of the program that may be called."""

    inputs: tuple[str, ...]


def call_name(node: ast.expr) -> str | None:
    """Return 'np.linalg.norm', 'max', a function's name; None for anything but dotted names."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    root = 'np' if node.id in NUMPY_NAMES else node.id
    return '.'.join([root, *reversed(parts)])


def target_names(target: ast.expr) -> Iterator[str]:
    """Yield the names that an assignment or a loop gives a value."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from target_names(part)


def infinity(node: ast.expr) -> float | None:
    """Return what float('inf') means, the one place for text; None for any other node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value.lower()
        if text in _INFINITY:
            return float(text)
    return None


class ExpressionCheck:
    """Holds expressions against the allow-list; what is wrong goes to the refusals."""

    def __init__(self, refusals: Refusals, functions: Mapping[str, Callee]) -> None:
        self._refusals = refusals
        self._functions = functions  # the program's own, as far as they are defined
        self.known: set[str] = set()  # variables that can be read here
        self._checks = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.BoolOp: lambda node: self.all(node.values),
            ast.Compare: lambda node: self.all([node.left, *node.comparators]),
            ast.IfExp: lambda node: self.all([node.test, node.body, node.orelse]),
            ast.List: lambda node: self.all(node.elts),
            ast.Tuple: lambda node: self.all(node.elts),
            ast.Subscript: self.subscript,
            ast.ListComp: self._comprehension,
            ast.GeneratorExp: self._comprehension,
            ast.Call: self._call,
        }

    def __call__(self, node: ast.expr) -> None:
        """Check an expression and what is in it."""
        check = self._checks.get(type(node))
        if check is None:
            self._refusals.syntax(node)
        else:
            check(node)

    def all(self, nodes: Sequence[ast.expr]) -> None:
        """Check several."""
        for node in nodes:
            self(node)

    def subscript(self, node: ast.Subscript) -> None:
        """Check value[index], where the index may be a slice, '...' or several of them."""
        self(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            if isinstance(part, ast.Slice):
                self.all([b for b in (part.lower, part.upper, part.step) if b is not None])
            elif not (isinstance(part, ast.Constant) and part.value is Ellipsis):
                self(part)

    def assigned(self, node: ast.AST, name: str) -> None:
        """Check a name that is given a value or a function."""
        if len(name) > MAX_NAME:
            self._refusals.at(
                node, f"the name '{shortened(name)}' has more than {MAX_NAME} letters"
            )
        elif '__' in name:
            self._refusals.at(node, f"the name '{shortened(name)}' has two underscores in a row")
        elif name in BUILTINS or name in NUMPY_NAMES:
            self._refusals.at(node, f"'{name}' is the name of a given function; take another")

    def operator(self, node: ast.AST, operator: ast.operator) -> None:
        """Check the operator of a + b or a += b."""
        if not isinstance(operator, OPERATORS):
            self._refusals.syntax(node, operator)

    def annotation(self, node: ast.expr) -> None:
        """Allow type hints of numbers and arrays; they are never evaluated."""
        for part in ast.walk(node):
            name = call_name(part) if isinstance(part, ast.Name | ast.Attribute) else None
            fine = (
                isinstance(part, ast.Load | ast.Tuple | ast.Subscript | ast.BinOp | ast.BitOr)
                or (isinstance(part, ast.Constant) and part.value is None)
                or name in TYPES
                or name in _HINT_NAMES
                or name in _HINT_ATTRIBUTES
            )
            if not fine:
                self._refusals.at(node, 'not a type hint of numbers or arrays; leave it out')
                return

    def _constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, str | bytes):
            self._refusals.at(node, 'text is only allowed as a docstring')
        elif value is Ellipsis or isinstance(value, complex):
            self._refusals.at(node, f'the constant {value} is not allowed')
        elif value is not None and not abs(value) <= (
            MAX_INTEGER if isinstance(value, int) else 1e300
        ):
            self._refusals.at(node, 'a number this large is not allowed')

    def _name(self, node: ast.Name) -> None:
        if node.id in self.known:
            return
        if node.id in BUILTINS or node.id in self._functions or node.id in NUMPY_NAMES:
            self._refusals.at(node, f"'{node.id}' can only be called, it is not a value")
        else:
            self._refusals.at(node, f"the name '{shortened(node.id)}' was not given")

    def _attribute(self, node: ast.Attribute) -> None:
        name = call_name(node)
        if name is None or not name.startswith('np.'):
            self._refusals.attribute(node, NUMPY)
            if name is None:
                self(node.value)
        elif name[3:] not in NUMPY_CONSTANTS:
            constants = ', '.join(f'np.{constant}' for constant in NUMPY_CONSTANTS)
            self._refusals.at(node, f'{shortened(name)} is no constant; there are {constants}')

    def _binary(self, node: ast.BinOp) -> None:
        self.operator(node, node.op)
        self.all([node.left, node.right])

    def _unary(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.op, ast.USub | ast.UAdd | ast.Not | ast.Invert):
            self._refusals.syntax(node, node.op)
        self(node.operand)

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> None:
        outside = set(self.known)
        if len(node.generators) > MAX_CLAUSES:
            self._refusals.at(node, f'a comprehension has at most {MAX_CLAUSES} loops')
        for clause in node.generators:
            if clause.is_async:
                self._refusals.at(node, "'async' is not allowed")
            self(clause.iter)
            self.loop_target(clause.target)
            self.known |= set(target_names(clause.target))
            self.all(clause.ifs)
        self(node.elt)
        self.known = outside

    def loop_target(self, node: ast.expr) -> None:
        """Check what a loop gives a value: a name, or a tuple of them."""
        if isinstance(node, ast.Name):
            self.assigned(node, node.id)
        elif isinstance(node, ast.Tuple | ast.List):
            for part in node.elts:
                self.loop_target(part)
        else:
            self._refusals.at(node, 'expected a name')

    def _call(self, node: ast.Call) -> None:
        name = call_name(node.func)
        if name == 'float' and len(node.args) == 1 and infinity(node.args[0]) is not None:
            return
        keywords = self._callee(node, name)
        self.all(node.args)
        for keyword in node.keywords:
            if keyword.arg is None:
                self._refusals.at(node, "'**' is not allowed")
            elif keywords is None:
                self(keyword.value)
            elif keyword.arg not in keywords:
                there = ', '.join(sorted(keywords)) or 'none'
                self._refusals.at(
                    node,
                    f"{name} has no argument '{shortened(keyword.arg)}' here; it has: {there}",
                )
            elif keyword.arg == 'dtype' and not isinstance(keyword.value, ast.Constant):
                if call_name(keyword.value) not in TYPES:
                    self._refusals.at(node, 'dtype is float, int or bool')
            else:
                self(keyword.value)

    def _callee(self, node: ast.Call, name: str | None) -> frozenset[str] | None:
        """Check what is called; return the keywords it has, None where it is refused."""
        if isinstance(node.func, ast.Attribute) and not (name or '').startswith('np.'):
            self._attribute(node.func)
            return None
        if name is None:
            self._refusals.at(node, 'what is called is no function that was given')
            return None
        if name in self._functions:
            inputs = self._functions[name].inputs
            if len(node.args) + len(node.keywords) != len(inputs):
                self._refusals.at(node, f'{name} takes {len(inputs)} arguments')
            return frozenset(inputs)
        function = NUMPY.get(name[3:]) if name.startswith('np.') else BUILTINS.get(name)
        if function is None:
            self._unknown(node, name)
            return None
        if not function.least <= len(node.args) <= function.most:
            wanted = ' to '.join(str(n) for n in sorted({function.least, function.most}))
            self._refusals.at(node, f'{name} takes {wanted} arguments by position')
        return function.keywords

    def _unknown(self, node: ast.Call, name: str) -> None:
        if name == self._refusals.function:
            self._refusals.at(node, 'a function cannot call itself; write a for loop')
        elif name.startswith('np.'):
            self._refusals.at(node, f'{shortened(name)} is not a function that was given')
        else:
            self._refusals.at(
                node,
                f"the function '{shortened(name)}' was not given; there are {', '.join(BUILTINS)},"
                ' some of np, and what the program defines further up',
            )
