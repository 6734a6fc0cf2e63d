"""The `openai` client with an upper bound on the size and the duration of what a server sends.

Its own time limit is one between two packets, so that a server that sends a byte now and then is
waited for without end. Here the bounds are on the response's stream, which errors pass too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import openai

from grape_trainer.scoring.vlm_config import VlmConfig


# Of openai's kind, so that its client lets them through as they are.
class ReplyTooLarge(openai.OpenAIError):
    """A server sent more than max_reply_bytes, or sent it compressed."""


class ReplyTooLate(openai.OpenAIError):
    """A server was still sending after timeout_s."""


@contextmanager
def capped_client(config: VlmConfig, key: str) -> Iterator[openai.OpenAI]:
    """Give a client for one question.

    It does not retry (vlm_exchange.py does, and says so), and follows no redirect.
    """
    deadline_s = time.monotonic() + config.timeout_s

    def cap(response: httpx2.Response) -> None:
        # A compressed answer of a megabyte unfolds to a gigabyte.
        if response.headers.get('content-encoding', 'identity').lower() != 'identity':
            raise ReplyTooLarge('compressed, which was not asked for')
        response.stream = _Capped(response.stream, config.max_reply_bytes, deadline_s)

    timeout = httpx2.Timeout(config.timeout_s, connect=config.connect_timeout_s)
    http_client = httpx2.Client(
        timeout=timeout, follow_redirects=False, event_hooks={'response': [cap]}
    )
    with http_client:
        yield openai.OpenAI(
            api_key=key,
            base_url=config.base_url,
            http_client=http_client,
            timeout=timeout,
            max_retries=0,
            default_headers={'Accept-Encoding': 'identity'},
        )


class _Capped(httpx2.SyncByteStream):
    """A response's stream that ends with an error at its bounds."""

    def __init__(self, stream: httpx2.SyncByteStream, most_bytes: int, deadline_s: float) -> None:
        self._stream, self._left, self._deadline_s = stream, most_bytes, deadline_s

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise ReplyTooLarge('too many bytes')
            if time.monotonic() > self._deadline_s:
                raise ReplyTooLate('too slow')
            yield chunk

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
