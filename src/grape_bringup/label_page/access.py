"""Who may open the page: it moves an arm, so nobody who happens to reach its port.

On this machine alone no token is needed, but a web site that is open in the same browser must not
reach the page either: a request has to name this machine as its host (no DNS rebinding), and one
that says where it comes from (Origin) has to come from the page itself. On other addresses a
token is due; it is given once in the URL and kept in a cookie.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

LOCAL = ('127.0.0.1', 'localhost', '::1')
COOKIE = 'grape_token'
TOKEN_BYTES = 16

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Access:
    """The rule of one page.

    Attributes:
        token: '' : none is asked for.
        is_local: only requests to this machine's own names.

    """

    token: str
    is_local: bool

    @classmethod
    def for_host(cls, host: str, token: str = '') -> Access:
        """Return the rule for an address to listen on; a token is made up where one is due."""
        is_local = host in LOCAL
        if not token and not is_local:
            token = secrets.token_urlsafe(TOKEN_BYTES)
        return cls(token, is_local)

    def url(self, host: str, port: int) -> str:
        """Return what a person opens."""
        shown = 'localhost' if host in ('0.0.0.0', '::') else host
        query = f'?token={self.token}' if self.token else ''
        return f'http://{shown}:{port}/{query}'

    def refusal(self, headers: dict[str, str], query: str) -> tuple[int, str] | None:
        """Return status and text for a request that is not let in; None lets it in."""
        host = headers.get('host', '')
        name = urlsplit(f'//{host}').hostname or ''
        if self.is_local and name not in LOCAL:
            return 403, f"this page answers to {', '.join(LOCAL)}, not to '{name}'"
        origin = headers.get('origin')
        if origin and urlsplit(origin).netloc != host:
            return 403, f"a page of '{origin}' may not use this one"
        if self.token and not (self._knows(_cookie(headers)) or self._knows(_asked(query))):
            return 401, 'the token is missing or wrong: open the URL that `grape label` printed'
        return None

    def wants_cookie(self, query: str) -> bool:
        """Say whether the token came in the URL, to be kept as a cookie."""
        return bool(self.token) and self._knows(_asked(query))

    def _knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())


class AccessMiddleware:
    """Applies the rule to every request and web socket, before anything else sees it."""

    def __init__(self, app: Callable[..., Awaitable[None]], access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Let in, or refuse."""
        if scope['type'] not in ('http', 'websocket'):
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode('latin-1') for name, value in scope['headers']}
        query = scope.get('query_string', b'').decode()
        refusal = self._access.refusal(headers, query)
        if refusal is not None:
            await _refuse(scope['type'], *refusal, send)
        elif scope['type'] == 'http' and self._access.wants_cookie(query):
            await _redirect(scope['path'], self._access.token, send)
        else:
            await self._app(scope, receive, send)


async def _refuse(kind: str, status: int, text: str, send: Send) -> None:
    if kind == 'websocket':
        await send({'type': 'websocket.close', 'code': 4000 + status, 'reason': text[:100]})
        return
    headers = [(b'content-type', b'text/plain; charset=utf-8')]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': text.encode()})


async def _redirect(path: str, token: str, send: Send) -> None:
    cookie = f'{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict'
    headers = [(b'location', path.encode()), (b'set-cookie', cookie.encode())]
    await send({'type': 'http.response.start', 'status': 303, 'headers': headers})
    await send({'type': 'http.response.body', 'body': b''})


def _asked(query: str) -> str:
    return parse_qs(query).get('token', [''])[0]


def _cookie(headers: dict[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get('cookie', '')).get(COOKIE)
    except CookieError:
        return ''
    return found.value if found else ''
