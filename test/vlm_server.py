"""A local HTTP server that speaks chat completions, in all the ways that one can go wrong."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = Path(__file__).parent / 'data' / 'vlm'
JSON = 'application/json'


@dataclass(frozen=True)
class Reply:
    """What the server answers to one request."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: dict = field(default_factory=dict)
    delay_s: float = 0.0  # before anything is sent
    promised: int | None = None  # Content-Length, if not that of the body
    drip_s: float = 0.0  # between two bytes
    endless: bool = False  # the body again and again


def recorded(name, **changes):
    """Return a reply of test/data/vlm/."""
    return Reply((DATA / name).read_bytes(), **changes)


def content(name):
    """Return what the model says in a recorded reply."""
    return json.loads((DATA / name).read_text())['choices'][0]['message']['content']


@dataclass
class Server:
    """The address and the requests that came."""

    base_url: str
    requests: list  # {'path', 'headers', 'body'}

    def texts(self, index):
        """Return the texts of a request's messages."""
        found = []
        for message in self.requests[index]['body']['messages']:
            parts = message['content']
            found.append(parts if isinstance(parts, str) else parts[0]['text'])
        return found


@contextmanager
def serving(*replies):
    """Serve replies in this order; the last one again and again."""
    waiting, requests = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_POST(self):
            length = int(self.headers.get('Content-Length', 0))
            body = json.loads(self.rfile.read(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            requests.append({'path': self.path, 'headers': headers, 'body': body})
            reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            stop.wait(reply.delay_s)
            try:
                self._send(reply)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client had enough
            self.close_connection = True

        def _send(self, reply):
            self.send_response(reply.status)
            if reply.content_type:
                self.send_header('Content-Type', reply.content_type)
            if not reply.endless:
                length = len(reply.body) if reply.promised is None else reply.promised
                self.send_header('Content-Length', str(length))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if reply.drip_s:
                for byte in reply.body:
                    self.wfile.write(bytes([byte]))
                    if stop.wait(reply.drip_s):
                        return
            elif reply.endless:
                while not stop.is_set():
                    self.wfile.write(reply.body)
            else:
                self.wfile.write(reply.body)

        def log_message(self, *_):
            pass

    stop = threading.Event()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Server(f'http://127.0.0.1:{server.server_address[1]}/v1', requests)
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def closed_port():
    """Return the address of a server that is not there."""
    with serving(Reply(b'')) as server:
        address = server.base_url
    time.sleep(0.05)
    return address
