"""The token that opens a policy server: read from a file or the environment, never an argument.

A command line is visible to every user of the machine, so no option takes the token itself.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import stat
from pathlib import Path

VARIABLE = 'GRAPE_POLICY_TOKEN'
MIN_CHARACTERS = 16
SCHEMES = ('bearer', 'api-key')  # openpi's client says 'Api-Key'

log = logging.getLogger(__name__)


class TokenError(ValueError):
    """A token that cannot be used; the text never shows it."""


def read_token(file: str | Path = '') -> str:
    """Return the token of a file, else of the environment, else ''.

    Args:
        file: with the token as its only line; '' for the variable GRAPE_POLICY_TOKEN.

    Raises:
        TokenError: no such file, or a token that is too short or holds blanks.
    """
    if not file:
        token, where = os.environ.get(VARIABLE, '').strip(), f'the variable {VARIABLE}'
        return _checked(token, where) if token else ''
    path = Path(file).expanduser()
    try:
        token = path.read_text(encoding='utf-8').strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(
            f"the token file '{path}' cannot be read ({error}); make one with: python3 -c "
            f"'import secrets; print(secrets.token_urlsafe(32))' > {path}; chmod 600 {path}"
        ) from error
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning('%s can be read by other users of this machine: chmod 600 %s', path, path)
    return _checked(token, f"the token file '{path}'")


def headers(token: str) -> dict[str, str]:
    """Return the HTTP headers that show a token; {} for none."""
    return {'Authorization': f'Bearer {token}'} if token else {}


def is_shown(authorization: str | None, token: str) -> bool:
    """Say whether an Authorization header shows the token; the comparison takes constant time."""
    scheme, _, shown = (authorization or '').partition(' ')
    same = hmac.compare_digest(shown.strip().encode(errors='replace'), token.encode())
    return same and scheme.lower() in SCHEMES


def _checked(token: str, where: str) -> str:
    if not re.fullmatch(r'[!-~]+', token) or len(token) < MIN_CHARACTERS:
        raise TokenError(
            f'{where} holds {len(token)} characters; expected one line of at least '
            f'{MIN_CHARACTERS} printable ASCII characters without blanks'
        )
    return token
