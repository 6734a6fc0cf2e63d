"""The policy server: an engine behind a websocket.

    ws://HOST:PORT/          see protocol.py; an openpi client is answered too
    http://HOST:PORT/healthz 'ok', without a token, also while the engine works

Loopback by default; elsewhere only with a token. A page in a browser is refused (it sends an
Origin header), or any web site could drive a policy that listens on its reader's machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from grape_policy_node.adapters import BASE
from grape_policy_node.engine import Engine
from grape_policy_node.remote import bearer, protocol, wire
from grape_policy_node.remote.batcher import Batcher
from grape_policy_node.remote.protocol import RequestError

DRAIN_S = 10.0
CLOSE_S = 2.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

AboutAdapter = Callable[[str], Mapping[str, Any]]

log = logging.getLogger(__name__)


class ServeError(ValueError):
    """A server that cannot be started as asked; the text says what to change."""


@dataclass(frozen=True)
class ServerConfig:
    """Where and how to listen.

    Attributes:
        host, port: port 0 takes a free one.
        token: that clients have to show; '' for none, on loopback only.
        max_message_bytes: larger requests end their connection.
        max_batch: questions that go through the model at once.
        max_clients: connections at once.
    """

    host: str = '127.0.0.1'
    port: int = 8000
    token: str = field(default='', repr=False)
    max_message_bytes: int = wire.MAX_MESSAGE_BYTES
    max_batch: int = 8
    max_clients: int = 32

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.port < 2**16:
            raise ServeError(f'port is {self.port}; expected 0 (any free one) to 65535')
        for name in ('max_message_bytes', 'max_batch', 'max_clients'):
            if getattr(self, name) < 1:
                raise ServeError(f'{name} is {getattr(self, name)}; expected 1 or more')
        if not self.token and not is_loopback(self.host):
            raise ServeError(
                f"host '{self.host}' can be reached from other machines, so a token is needed: "
                f'--token-file FILE, or the variable {bearer.VARIABLE}. Or listen on 127.0.0.1 '
                'and let people in by ssh -L.'
            )


class PolicyServer:
    """Serves one engine to several clients, each with an adapter of its own."""

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        listener: socket.socket,
        about: Mapping[str, Any] | None = None,
        about_adapter: AboutAdapter = lambda path: {},
    ) -> None:
        """Prepare.

        Args:
            engine: loaded; the adapter that is active now is a new client's.
            config: how to serve.
            listener: of `bind`.
            about: more entries of the first message, such as the contract.
            about_adapter: more entries of load_adapter's answer, by the adapter's folder.
        """
        self._engine = engine
        self._config = config
        self._listener = listener
        self._adapter = engine.adapter_id
        self._about = dict(about or {})
        self._about_adapter = about_adapter
        self._batcher = Batcher(engine, config.max_batch)
        self._clients = 0
        self._stopping = asyncio.Event()

    async def run(self, on_listening: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM; what is being answered then is answered.

        Args:
            on_listening: called with the address once clients can connect.
        """
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop, loop)
        async with serve(
            self._handle,
            sock=self._listener,
            process_request=self._admit,
            origins=[None],
            compression=None,
            max_size=self._config.max_message_bytes,
            max_queue=2,
            close_timeout=CLOSE_S,
            server_header=None,
        ):
            host, port = self._listener.getsockname()[:2]
            on_listening(f'ws://[{host}]:{port}' if ':' in host else f'ws://{host}:{port}')
            await self._stopping.wait()
            await self._batcher.drain(DRAIN_S)
        self._batcher.close()

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to stop; a second signal ends the process, whatever the engine is doing."""
        self._stopping.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    def metadata(self) -> dict[str, Any]:
        """Return what a client hears first."""
        engine = self._engine
        tokens = engine.action_tokenizer
        return {
            'protocol': protocol.NAME,
            'version': protocol.VERSION,
            'has_log_probs': True,
            'policy': engine.describe() | {'adapter_id': self._adapter},
            'adapter_id': self._adapter,
            'unnorm_key': engine.unnorm_key,
            'image_size': engine.model.spec.image_size,
            'first_action_id': tokens.first_id,
            'vocab_size': tokens.vocab_size,
            'action': 'six deltas in policy units, gripper 0 closed .. 1 open',
            'max_message_bytes': self._config.max_message_bytes,
            **self._about,
        }

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP requests and refuse who has no token; None lets a client in."""
        if request.path == protocol.HEALTH_PATH:
            return connection.respond(HTTPStatus.OK, 'ok\n')
        shown = request.headers.get_all('Authorization')
        token = self._config.token
        if token and not (len(shown) == 1 and bearer.is_shown(shown[0], token)):
            log.warning('%s showed no valid token', _name(connection))
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "expected the header 'Authorization: Bearer TOKEN'\n"
            )
        if self._clients >= self._config.max_clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f'{self._clients} clients are connected\n'
            )
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        """Serve one client until it leaves."""
        self._clients += 1
        log.info('%s is connected', _name(connection))
        client = _Client(self._adapter)
        try:
            await connection.send(wire.pack(self.metadata()))
            while not self._stopping.is_set():
                await connection.send(await self._answer(client, await connection.recv()))
            await connection.close(CloseCode.GOING_AWAY, 'the server was stopped')
        except ConnectionClosed as closed:
            log.info('%s left (%s)', _name(connection), closed)
        finally:
            self._clients -= 1

    async def _answer(self, client: _Client, data: bytes | str) -> bytes | str:
        """Return the answer to one message; a text is an error."""
        try:
            if isinstance(data, str):
                raise RequestError('the message is text; expected binary msgpack')
            message = wire.unpack(data, self._config.max_message_bytes)
            return wire.pack(await self._reply(client, message))
        except (RequestError, wire.WireError, RuntimeError) as error:
            log.warning('a request was refused: %s', error)
            return str(error)

    async def _reply(self, client: _Client, message: Mapping[str, Any]) -> dict[str, Any]:
        kind = message.get(protocol.KIND)
        if kind is None or kind == protocol.INFER:
            request = protocol.read_infer(message)
            answer = await self._batcher.infer(request, client.adapter)
            if kind is None:
                reply = protocol.chunk_message(answer.decision.action)
            else:
                reply = protocol.decision_message(answer.decision, answer.rng_state)
            return reply | {'server_timing': answer.timing}
        if kind == protocol.PREPARE:
            return await self._prepare(client, message)
        if kind == protocol.LOAD_ADAPTER:
            return await self._load_adapter(client, message.get('path'))
        raise RequestError(
            f'a request of kind {kind!r:.40}; expected one of: {", ".join(protocol.KINDS)}'
        )

    async def _prepare(self, client: _Client, message: Mapping[str, Any]) -> dict[str, Any]:
        engine, prompt = self._engine, protocol.read_prompt(message)
        temperature = protocol.read_temperature(message)

        def prepare() -> None:
            engine.processor.prompt_ids(prompt)
            if engine.needs_warm_up:  # recorded or compiled, which takes seconds
                engine.set_adapter(client.adapter)
                engine.warm_up(prompt, temperature)

        try:
            await self._batcher.on_engine(prepare)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return {'adapter_id': client.adapter}

    async def _load_adapter(self, client: _Client, path: object) -> dict[str, Any]:
        if not isinstance(path, str) or '\0' in path:
            raise RequestError(f"load_adapter's path is {path!r:.60}; expected a folder, or ''")
        try:
            load = self._engine.load_adapter
            name = await self._batcher.on_engine(lambda: load(path)) if path else BASE
        except (ValueError, OSError) as error:
            raise RequestError(str(error)) from error
        client.adapter = name
        log.info('a client acts with adapter %s', name)
        return {'adapter_id': name} | dict(self._about_adapter(path))


@dataclass
class _Client:
    """What a connection remembers."""

    adapter: str


def bind(config: ServerConfig) -> socket.socket:
    """Take the address before the policy is loaded; clients are refused until it is served.

    Raises:
        ServeError: the address cannot be used.
    """
    listener = None
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        family, kind, number, _, address = min(found, key=lambda entry: entry[0])  # IPv4 first
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ServeError(
            f'cannot listen on {config.host}:{config.port} ({error.strerror or error}); '
            'choose another --port or --host'
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f'{address[0]}:{address[1]}' if address else 'a client'
