"""Why a program is refused: the list of problems, and what to write instead."""

from __future__ import annotations

import ast

from grape_trainer.scoring.cost_source import MAX_PROBLEMS, Problem

# What a language model writes that is not in the subset: what it is, and how to say it.
_SYNTAX = {
    'Import': ("'import'", "take it out; np is given, only 'import numpy as np' is overlooked"),
    'ImportFrom': ("'import'", 'take it out; np is given'),
    'While': ("'while'", 'write a for loop over a range'),
    'Lambda': ("'lambda'", 'write the expression where it is used'),
    'FunctionDef': ('a function in a function', 'functions stand at the top level'),
    'JoinedStr': ('an f-string', 'a cost is a number'),
    'NamedExpr': ("':='", 'assign on a line of its own'),
    'Starred': ("'*'", 'write the arguments out'),
    'Dict': ('a dictionary', 'use a list or separate variables'),
    'Set': ('a set', 'use a list'),
    'SetComp': ('a set', 'use a list comprehension'),
    'DictComp': ('a dictionary', 'use a list comprehension'),
    'Try': ("'try'", 'np.maximum(x, 1e-9) avoids a division by 0'),
    'Raise': ("'raise'", 'return a number for every state'),
    'Assert': ("'assert'", 'take it out'),
    'Delete': ("'del'", 'take it out'),
    'Global': ("'global'", 'return the number'),
    'Nonlocal': ("'nonlocal'", 'return the number'),
    'LShift': ("'<<'", 'multiply'),
    'RShift': ("'>>'", 'divide'),
    'ClassDef': ("'class'", 'write functions'),
    'AsyncFunctionDef': ("'async'", 'write functions'),
    'With': ("'with'", 'a cost opens nothing'),
    'Match': ("'match'", "write 'if'"),
    'Await': ("'await'", ''),
    'Yield': ("'yield'", "write 'return'"),
    'YieldFrom': ("'yield'", "write 'return'"),
}
_ATTRIBUTES = {
    'append': 'write a list comprehension',
    'shape': 'write len(x) or np.shape(x)',
    'T': 'write np.transpose(x)',
    'copy': 'write np.array(x)',
    'tolist': 'take it out',
    'item': 'write float(x)',
    'astype': 'write 1.0 * x',
    'flatten': 'write np.ravel(x)',
    'dot': 'write np.dot(x, y)',
}
_LONGEST_NAME = 40


class Refusals:
    """Collects the problems of one program; everything that is wrong is said at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.function = ''  # the one that is being checked

    def program(self, message: str, line: int | None = None, column: int | None = None) -> None:
        """Refuse the program as a whole."""
        self._add(Problem(message, line, column))

    def at(self, node: ast.AST, message: str) -> None:
        """Refuse what stands at a node."""
        line, column = getattr(node, 'lineno', None), getattr(node, 'col_offset', None)
        self._add(Problem(message, line, None if column is None else column + 1, self.function))

    def syntax(self, node: ast.AST, kind: ast.AST | None = None) -> None:
        """Refuse a kind of syntax; the place is that of the node."""
        name = type(kind or node).__name__
        what, instead = _SYNTAX.get(name, (f"Python's '{name}'", ''))
        self.at(node, f'{what} is not allowed{f"; {instead}" if instead else ""}')

    def attribute(self, node: ast.Attribute, numpy_names: object) -> None:
        """Refuse an attribute of a value."""
        instead = _ATTRIBUTES.get(node.attr)
        if instead is None and node.attr in numpy_names:
            instead = f'write np.{node.attr}(x)'
        hint = f'; {instead}' if instead else ''
        self.at(node, f"the attribute '.{shortened(node.attr)}' is not allowed{hint}")

    def _add(self, problem: Problem) -> None:
        if len(self.problems) < MAX_PROBLEMS and problem not in self.problems:
            self.problems.append(problem)


def shortened(name: str) -> str:
    """Return a name that fits a message."""
    return name if len(name) <= _LONGEST_NAME else f'{name[:_LONGEST_NAME]}...'
