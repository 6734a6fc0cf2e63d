"""The safe subset of Python that cost programs are written in, checked on the syntax tree.

    def stage1_target_constraint1(end_effector, keypoints):
        "Align the end effector with the grape's centre."
        return np.linalg.norm(end_effector - keypoints[0])

The check is an allow-list of node types, names and functions: what is not listed is refused, with
the place, the reason and, where there is one, the allowed way to say it. Functions see what is
defined further up and never themselves, so that no call is recursive. The check runs in the
sandbox's process, and so does the parser. Nothing here evaluates; cost_interpreter.py does, and it
knows no more node types than this.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field

from grape_trainer.scoring.cost_expression import ExpressionCheck, target_names
from grape_trainer.scoring.cost_form import NAME_FORM, REQUIRED_INPUTS, SIGNAL_INPUTS, stage_name
from grape_trainer.scoring.cost_refusal import Refusals, shortened
from grape_trainer.scoring.cost_source import Problem

MAX_NODES = 6000
MAX_DEPTH = 60  # of nested syntax
MAX_FUNCTIONS = 64
MAX_PARAMETERS = 8

_FREE_TEXT = (tokenize.STRING, tokenize.COMMENT)


@dataclass
class CheckedFunction:
    """A function as far as it is known; it may be run only if the program has no problem."""

    node: ast.FunctionDef
    inputs: tuple[str, ...]
    locals: frozenset[str]
    explanation: str  # first line of the docstring


@dataclass
class CheckedProgram:
    """A parsed program; it may be run only if there are no problems."""

    functions: dict[str, CheckedFunction] = field(default_factory=dict)
    constants: list[ast.stmt] = field(default_factory=list)  # assignments at the top level
    problems: list[Problem] = field(default_factory=list)


def check(text: str) -> CheckedProgram:
    """Parse a program and hold it against the allow-list; never raises for its content."""
    refusals = Refusals()
    program = CheckedProgram(problems=refusals.problems)
    tree = _parsed(text, refusals)
    if tree is not None and _is_small(tree, refusals):
        _ProgramCheck(program, refusals).module(tree)
    return program


def _parsed(text: str, refusals: Refusals) -> ast.Module | None:
    try:
        tree = ast.parse(text)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            # Python reads names in their NFKC form: a bold 'eval' would be 'eval'.
            if not token.string.isascii() and token.type not in _FREE_TEXT:
                refusals.program(
                    'outside comments and docstrings the text is plain ASCII',
                    token.start[0],
                    token.start[1] + 1,
                )
    except SyntaxError as error:
        refusals.program(f'not Python: {error.msg}', error.lineno, error.offset or None)
    except tokenize.TokenError as error:
        refusals.program(f'not Python: {error.args[0]}')
    except (RecursionError, MemoryError):
        refusals.program('the expressions are nested too deeply to be parsed')
    except ValueError as error:
        refusals.program(f'not Python: {error}')
    else:
        return None if refusals.problems else tree
    return None


def _is_small(tree: ast.Module, refusals: Refusals) -> bool:
    """Count level by level, without recursion."""
    nodes, depth, level = 0, 0, [tree]
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            refusals.program(
                f'the program is too large: more than {MAX_NODES} syntax nodes or {MAX_DEPTH} '
                'nested in one another; shorten it'
            )
            return False
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return True


class _ProgramCheck:
    """Walks statements; expressions are the business of ExpressionCheck."""

    def __init__(self, program: CheckedProgram, refusals: Refusals) -> None:
        self._program = program
        self._refusals = refusals
        self._expression = ExpressionCheck(refusals, program.functions)
        self._constants: set[str] = set()
        self._loops = 0  # that a statement stands in
        self._checks = {
            ast.Assign: self._assign,
            ast.AnnAssign: self._declare,
            ast.AugAssign: self._augment,
            ast.Expr: self._bare,
            ast.For: self._for,
            ast.If: self._if,
            ast.Return: self._return,
            ast.Pass: lambda node: None,
            ast.Break: self._jump,
            ast.Continue: self._jump,
        }

    def module(self, tree: ast.Module) -> None:
        for node in tree.body:
            self._refusals.function = ''
            if isinstance(node, ast.FunctionDef):
                self._definition(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                self._expression.known = set(self._constants)
                self._block([node])
                self._constants |= set(_assigned([node]))
                self._program.constants.append(node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                if not _is_numpy(node):
                    self._refusals.syntax(node)
            elif not _is_text(node):
                self._refusals.at(node, 'outside functions there are only constants and comments')
        self._refusals.function = ''
        names = self._program.functions
        if not any(stage_name(name) for name in names) and not self._refusals.problems:
            self._refusals.program(f'there is no cost function; {NAME_FORM}')
        if len(names) > MAX_FUNCTIONS:
            self._refusals.program(f'{len(names)} functions; at most {MAX_FUNCTIONS}')

    def _definition(self, node: ast.FunctionDef) -> None:
        self._refusals.function = shortened(node.name)
        if node.name in self._program.functions or node.name in self._constants:
            self._refusals.at(node, 'the name is there twice; number the constraints')
        self._expression.assigned(node, node.name)
        if node.name.lower().startswith('stage') and stage_name(node.name) is None:
            self._refusals.at(node, f'not the name of a cost function; {NAME_FORM}')
        if node.decorator_list or getattr(node, 'type_params', None):
            self._refusals.at(node, 'decorators and type parameters are not allowed')
        inputs = self._parameters(node)
        if node.returns is not None:
            self._expression.annotation(node.returns)
        own = frozenset(_assigned(node.body)) | set(inputs)
        self._expression.known = own | self._constants
        self._block(node.body)
        if not any(isinstance(part, ast.Return) for part in ast.walk(node)):
            self._refusals.at(node, "it returns nothing; end it with 'return cost'")
        docstring = (ast.get_docstring(node) or '').strip()
        self._program.functions.setdefault(
            node.name, CheckedFunction(node, inputs, own, docstring.partition('\n')[0][:200])
        )

    def _parameters(self, node: ast.FunctionDef) -> tuple[str, ...]:
        given = node.args
        odd = (given.posonlyargs, given.kwonlyargs, given.vararg, given.kwarg, given.defaults)
        if any(odd):
            self._refusals.at(node, "parameters are plain names, without defaults, '*' or '/'")
        names = tuple(parameter.arg for parameter in given.args)
        for parameter in given.args:
            self._expression.assigned(parameter, parameter.arg)
            if parameter.annotation is not None:
                self._expression.annotation(parameter.annotation)
        if stage_name(node.name) is None:
            if len(names) > MAX_PARAMETERS:
                self._refusals.at(node, f'{len(names)} parameters; at most {MAX_PARAMETERS}')
        elif names[:2] != REQUIRED_INPUTS or not set(names[2:]) <= set(SIGNAL_INPUTS):
            self._refusals.at(
                node,
                f'the parameters are ({", ".join(names)[:100]}); expected (end_effector, '
                f'keypoints) and, where needed, any of {", ".join(SIGNAL_INPUTS)}',
            )
        return names

    def _block(self, body: list[ast.stmt]) -> None:
        for node in body:
            check = self._checks.get(type(node))
            if check is None:
                self._refusals.syntax(node)
            else:
                check(node)

    def _target(self, node: ast.expr) -> None:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            self._expression.subscript(node)
        elif isinstance(node, ast.Subscript | ast.Attribute):
            self._refusals.at(node, 'only name and name[index] can be assigned to')
        else:
            self._expression.loop_target(node)

    def _assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._target(target)
        self._expression(node.value)

    def _declare(self, node: ast.AnnAssign) -> None:
        self._expression.annotation(node.annotation)
        if node.value is None:
            self._refusals.at(node, 'a declaration gives its name a value')
        else:
            self._expression.loop_target(node.target)
            self._expression(node.value)

    def _augment(self, node: ast.AugAssign) -> None:
        self._expression.operator(node, node.op)
        self._target(node.target)
        self._expression(node.value)

    def _bare(self, node: ast.Expr) -> None:
        if not _is_text(node):
            self._expression(node.value)

    def _for(self, node: ast.For) -> None:
        self._expression.loop_target(node.target)
        self._expression(node.iter)
        if node.orelse:
            self._refusals.at(node, "a loop has no 'else'")
        self._loops += 1
        self._block(node.body)
        self._loops -= 1

    def _if(self, node: ast.If) -> None:
        self._expression(node.test)
        self._block(node.body)
        self._block(node.orelse)

    def _return(self, node: ast.Return) -> None:
        if node.value is None:
            self._refusals.at(node, "nothing is returned; write 'return cost'")
        else:
            self._expression(node.value)

    def _jump(self, node: ast.Break | ast.Continue) -> None:
        if not self._loops:
            self._refusals.at(node, 'it stands outside a loop')


def _assigned(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements give a value, as Python decides what is local."""
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from target_names(target)
            elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For):
                yield from target_names(node.target)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_numpy(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.Import) and all(
        alias.name == 'numpy' and alias.asname in (None, 'np') for alias in node.names
    )
