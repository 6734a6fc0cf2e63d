"""One question to a vision-language model and its answer, over HTTP, with the `openai` client.

What a server can do wrong ends in a VlmError that says what to do: no answer, a late or endless
one, 429, 5xx, a page instead of JSON, a stream that was not asked for, a refusal, an answer that
was cut off. What may pass is asked again, after as long as the server says.
"""

from __future__ import annotations

import email.utils
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from grape_trainer.scoring.vlm_answer import Answer, NotJsonError, asked, excerpt, read_answer
from grape_trainer.scoring.vlm_config import NO_KEY, VlmConfig, VlmError

QUOTA_CODES = ('insufficient_quota', 'billing_hard_limit_reached')
WORTH_A_RETRY = (408, 409, 429)  # and 5xx

log = logging.getLogger(__name__)


class _TryAgain(Exception):
    """A failure that may pass; wait_s is what the server asked for, None if nothing."""

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Exchange:
    """Asks one model on one server."""

    def __init__(self, config: VlmConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        """Take the configuration; `sleep` waits between attempts."""
        self.config = config
        self._sleep = sleep

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> Answer:
        """Ask, again after failures that may pass.

        Args:
            messages: as chat completions take them.

        Raises:
            VlmError: no answer; the text says why and what to do, and never holds the key.

        """
        config, key = self.config, self.config.api_key()
        delay_s = config.backoff_s
        for attempt in range(config.retries + 1):
            try:
                answer = self._ask_once(messages, key)
                return replace(
                    answer, text=_clean(answer.text, key), model=_clean(answer.model, key)
                )
            except _TryAgain as error:
                text = _clean(str(error), key)
                if attempt == config.retries:
                    tries = f'{attempt + 1} time{"s" if attempt else ""}'
                    raise VlmError(f'{asked(self.config)} was asked {tries}: {text}') from None
                wait_s = delay_s if error.wait_s is None else error.wait_s
                if wait_s > config.retry_after_cap_s:
                    raise VlmError(
                        f'{asked(self.config)} asks to wait {wait_s:.0f} s, more than '
                        f'retry_after_cap_s ({config.retry_after_cap_s:.0f} s): {text} Try later.'
                    ) from None
                log.warning('%s: %s Asking again in %.1f s.', asked(self.config), text, wait_s)
            except VlmError as error:
                raise VlmError(_clean(str(error), key)) from None
            self._sleep(wait_s)
            delay_s *= 2
        raise AssertionError('the last attempt returns or raises')

    def _ask_once(self, messages: Sequence[Mapping[str, Any]], key: str) -> Answer:
        openai, capped = _clients()
        config = self.config
        settings: dict[str, Any] = {config.token_limit_name: config.max_tokens}
        if config.temperature is not None:
            settings['temperature'] = config.temperature
        if config.response_format != 'text':
            settings['response_format'] = {'type': config.response_format}
        began = time.monotonic()
        try:
            with capped.capped_client(config, key) as client:
                raw = client.chat.completions.with_raw_response.create(
                    model=config.model, messages=list(messages), **settings
                )
                content_type = raw.headers.get('content-type', '')
                # A server that repeats the key: it goes no further, not even cut in half.
                body = _clean(raw.http_response.content.decode(errors='replace'), key)
        except capped.ReplyTooLarge as error:
            raise VlmError(
                f'the answer of {asked(config)} is refused, {error}; expected one JSON object of '
                f'at most {config.max_reply_bytes} bytes (max_reply_bytes). Look at the server.'
            ) from error
        except (capped.ReplyTooLate, openai.APITimeoutError) as error:
            raise _TryAgain(
                f'no whole answer within {config.timeout_s:g} s (timeout_s). Is the server '
                'loaded? Raise timeout_s for a slow model.'
            ) from error
        except openai.APIConnectionError as error:
            raise _TryAgain(
                f'the connection failed ({_cause(error)}). Is the server running, is base_url '
                'right?'
            ) from error
        except openai.APIStatusError as error:
            raise self._refused(error, _clean(error.response.text, key)) from error
        except openai.OpenAIError as error:
            raise VlmError(f'{asked(self.config)}: {excerpt(str(error))}') from error
        try:
            return read_answer(body, content_type, config, time.monotonic() - began)
        except NotJsonError as error:
            raise _TryAgain(str(error)) from error

    def _refused(self, error: Any, text: str) -> Exception:
        """Return what to raise for a status other than 200, with this text."""
        status, config = error.status_code, self.config
        said, where = excerpt(text), asked(config)
        if status in (401, 403):
            # Servers repeat parts of the key here; their words are left out.
            return VlmError(
                f'{where} refuses the key (HTTP {status}); expected the one for this '
                f'server in the environment variable {config.key_name or "that api_key_env names"}'
                '.'
            )
        if status == 429 and any(code in text for code in QUOTA_CODES):
            return VlmError(
                f'{where}: the account has no credit left (HTTP 429): {said} Top it up, or take '
                'another server.'
            )
        if status in WORTH_A_RETRY or status >= 500:
            wait_s = retry_after_s(error.response.headers)
            return _TryAgain(f'HTTP {status}: {said or "no explanation"}.', wait_s)
        if 300 <= status < 400:
            return VlmError(
                f'{where} redirects to another address (HTTP {status}), which is not '
                'followed: pictures and key go to base_url only. Name the address itself.'
            )
        hint = 'Look at base_url (it mostly ends in /v1) and model.' if status == 404 else (
            'Look at model, max_tokens, token_limit_name and response_format in the configuration.'
        )  # fmt: skip
        return VlmError(f'{where} refuses the question (HTTP {status}): {said} {hint}')


def retry_after_s(
    headers: Mapping[str, str], now: Callable[[], float] = time.time
) -> float | None:
    """Return how long a server asks to wait: Retry-After as seconds or as a date; None if unsaid.

    Args:
        headers: of the response.
        now: the wall clock, which a date in the header is of.

    """
    text = headers.get('retry-after', '').strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now()
        except (ValueError, TypeError, OverflowError):
            return None
    if seconds != seconds:  # nan
        return None
    return max(seconds, 0.0)


def _clients() -> tuple[ModuleType, ModuleType]:
    """Import what is only needed to ask; VlmError where it is not installed."""
    try:
        import openai

        from grape_trainer.scoring import vlm_capped_client
    except ImportError as error:
        raise VlmError(
            f'{error}; the model is asked with the package openai (version 3 or newer). Run: pip '
            "install -c constraints.txt '.[vlm]'"
        ) from error
    return openai, vlm_capped_client


def _cause(error: BaseException) -> str:
    """Return the innermost reason, in its own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return excerpt(f'{type(error).__name__}: {error}'.removesuffix(': '))


def _clean(text: str, key: str) -> str:
    return text if key == NO_KEY else text.replace(key, '[key]')
