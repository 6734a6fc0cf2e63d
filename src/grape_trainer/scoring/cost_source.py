"""The text of a cost program, before anything parses it: size, encoding, fences, notation.

What a language model answers is text that nobody has read. All that happens to it in this process
is linear: count bytes, decode, look for characters that hide something, cut out fenced code. What
parses it (Python, YAML, JSON) runs in the sandbox, since parsers have crashed on hostile input.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PYTHON, DECLARATIVE = 'python', 'declarative'
NOTATIONS = (PYTHON, DECLARATIVE)

MAX_TEXT_BYTES = 32 * 1024  # the appendix's nine functions have 4 kB
MAX_PROBLEMS = 20  # of one program; the rest is cut off

_SUFFIXES = {'.py': PYTHON, '.yaml': DECLARATIVE, '.yml': DECLARATIVE, '.json': DECLARATIVE}
_FENCE = re.compile(r'[ \t]{0,3}```+[ \t]*([A-Za-z0-9+-]*)[ \t]*$')
_LANGUAGES = {
    'python': PYTHON, 'py': PYTHON, 'python3': PYTHON,
    'yaml': DECLARATIVE, 'yml': DECLARATIVE, 'json': DECLARATIVE,
}  # fmt: skip
_COOKIE = re.compile(r'^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)', re.ASCII)


@dataclass(frozen=True)
class Problem:
    """One reason for a refusal; line and column count from 1, None where there is no place."""

    message: str
    line: int | None = None
    column: int | None = None
    function: str = ''  # '': the program as a whole

    def __str__(self) -> str:
        place = '' if self.line is None else f'line {self.line}'
        if place and self.column is not None:
            place += f', column {self.column}'
        return ': '.join(part for part in (place, self.function, self.message) if part)


class ProgramError(ValueError):
    """A cost program that is refused or was stopped; `problems` says why."""

    def __init__(self, problems: Iterable[Problem], name: str = 'the cost program') -> None:
        self.problems = tuple(problems)[:MAX_PROBLEMS]
        lines = [f'{name} is refused:', *(f'  {problem}' for problem in self.problems)]
        super().__init__('\n'.join(lines))


def read_text(path: Path | str) -> str:
    """Read a program's file.

    Raises:
        ProgramError: not a file, too long, not UTF-8.

    """
    try:
        # Opening a named pipe without O_NONBLOCK waits for somebody to write.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _refused(f"'{path}' is not a regular file; give a .py, .yaml or .json file.")
            content = os.read(fd, MAX_TEXT_BYTES + 4)
        finally:
            os.close(fd)
    except OSError as error:
        raise _refused(f"'{path}' cannot be read: {error.strerror}.") from error
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        if len(content) > MAX_TEXT_BYTES:
            raise _too_long() from error
        raise _refused(
            f'byte {error.start} is not UTF-8; save the file in that encoding.'
        ) from error


def check_text(text: str) -> None:
    """Refuse a text that is too long or says something else than it shows.

    Raises:
        ProgramError: too long, empty, control or invisible characters, another encoding declared.

    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _refused('there is half a surrogate pair in the text; expected UTF-8.') from error
    if size > MAX_TEXT_BYTES:
        raise _too_long()
    if not text.strip():
        raise _refused('the text is empty; expected cost functions or a mapping with costs.')
    for number, line in enumerate(text.split('\n'), start=1):
        for column, character in enumerate(line, start=1):
            if not _plain(character):
                raise ProgramError(
                    [Problem(
                        f'the character U+{ord(character):04X} is invisible or moves the text '
                        'around it; take it out.', number, column,
                    )]
                )  # fmt: skip
    for number, line in enumerate(text.split('\n')[:2], start=1):
        cookie = _COOKIE.match(line)
        if cookie and cookie[1].lower() not in ('utf-8', 'utf8', 'ascii', 'us-ascii'):
            raise ProgramError(
                [Problem(f"the encoding '{cookie[1]}' is declared; expected UTF-8.", number)]
            )


def fenced_code(text: str) -> tuple[str, str | None]:
    """Return the text with all but its fenced code blanked, and the notation the fences name.

    Line numbers stay what they are in the file. Text without a fence is returned as it is.
    """
    lines = text.replace('\r\n', '\n').split('\n')
    blocks: list[tuple[str, int, int]] = []
    opened: tuple[str, int] | None = None
    for index, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened = (fence[1].lower(), index + 1)
        elif fence and not fence[1]:
            blocks.append((*opened, index))
            opened = None
    if opened is not None:
        blocks.append((*opened, len(lines)))  # an answer that was cut off: the parser will tell
    if not blocks:
        return '\n'.join(lines), None
    known = [block for block in blocks if block[0] in _LANGUAGES]
    language = _LANGUAGES[known[0][0]] if known else None
    chosen = [block for block in blocks if _LANGUAGES.get(block[0], language) == language]
    kept = [''] * len(lines)
    for _, start, stop in chosen:
        kept[start:stop] = lines[start:stop]
    return '\n'.join(kept), language


def notation_of(code: str, named: str | None, path: Path | None) -> str:
    """Return the notation: of the fence, of the file's ending, or by what the code looks like."""
    if named is not None:
        return named
    if path is not None and path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    is_python = re.search(r'^[ \t]*(async[ \t]+)?def[ \t]', code, re.MULTILINE)
    return PYTHON if is_python else DECLARATIVE


def _plain(character: str) -> bool:
    if ' ' <= character <= '~' or character in '\t\r':
        return True
    return unicodedata.category(character) not in ('Cc', 'Cf', 'Cs', 'Co', 'Zl', 'Zp')


def _too_long() -> ProgramError:
    return _refused(
        f'the text has more than {MAX_TEXT_BYTES} bytes; write fewer or shorter functions.'
    )


def _refused(message: str) -> ProgramError:
    return ProgramError([Problem(message)])
