"""What a server sent, as an answer: a chat completion, or an error that says what it is instead.

The answer is text; nothing here looks into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from grape_trainer.scoring.vlm_config import VlmConfig, VlmError

EXCERPT = 300  # characters of a server's words in an error


class NotJsonError(VlmError):
    """An answer that says it is JSON and is not: broken on the way, perhaps."""


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it took."""

    text: str
    model: str  # as the server names it
    finish_reason: str
    prompt_tokens: int | None
    reply_tokens: int | None
    seconds: float


def read_answer(body: str, content_type: str, config: VlmConfig, seconds: float) -> Answer:
    """Take a server's answer apart.

    Args:
        body: of the response.
        content_type: of the response, with or without parameters.
        config: who was asked.
        seconds: how long it took.

    Raises:
        NotJsonError: broken JSON.
        VlmError: a page, a stream, a refusal, an answer that was cut off, or none.

    """
    kind = content_type.partition(';')[0].strip().lower()
    if kind == 'text/event-stream':
        raise VlmError(
            f'{asked(config)} answers with a stream of events, which was not asked for; '
            'expected one JSON object. Switch streaming off in the server or proxy.'
        )
    if kind != 'application/json' and not kind.endswith('+json'):
        raise VlmError(
            f"{asked(config)} answers with '{kind or 'no content type'}' instead of JSON: "
            f'{excerpt(body)} Look at base_url; it mostly ends in /v1.'
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(
            f'the answer is not JSON ({type(error).__name__}): {excerpt(body)} Look at the server.'
        ) from error
    if isinstance(content, dict) and content.get('error'):
        raise VlmError(f'{asked(config)} reports: {excerpt(json.dumps(content["error"]))}')
    try:
        choice = content['choices'][0]
        message = choice['message']
        text, refusal = message.get('content'), message.get('refusal')
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise VlmError(
            f'{asked(config)} answers with JSON that is no chat completion: '
            f'{excerpt(json.dumps(content))} Look at base_url.'
        ) from error
    reason = str(choice.get('finish_reason') or '')
    usage = content.get('usage')
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=_said(text, refusal, reason, config.max_tokens),
        model=str(content.get('model') or config.model),
        finish_reason=reason,
        prompt_tokens=_count(usage.get('prompt_tokens')),
        reply_tokens=_count(usage.get('completion_tokens')),
        seconds=seconds,
    )


def asked(config: VlmConfig) -> str:
    """Name who was asked."""
    return f"model '{config.model}' at {config.base_url}"


def excerpt(text: str) -> str:
    """Return a server's words on one line, without control characters."""
    plain = ' '.join(''.join(c if c.isprintable() else ' ' for c in text[: 4 * EXCERPT]).split())
    return plain if len(plain) <= EXCERPT else f'{plain[:EXCERPT]}...'


def _said(text: object, refusal: object, reason: str, max_tokens: int) -> str:
    """Return a message's text; VlmError where the model said nothing that can be used."""
    if isinstance(text, list):  # content in parts
        text = ''.join(str(part.get('text', '')) for part in text if isinstance(part, Mapping))
    if refusal or reason == 'content_filter':
        raise VlmError(
            f'the model refuses: {excerpt(str(refusal or "content filter"))} Change the '
            'instruction or the picture, or take another model.'
        )
    if reason == 'length':
        raise VlmError(f'the answer was cut off after {max_tokens} tokens. Raise max_tokens.')
    if not isinstance(text, str) or not text.strip():
        raise VlmError(
            f'the model answers nothing (finish_reason {reason or "none"}). Ask again, or take '
            'another model.'
        )
    # Half a surrogate pair can be neither sent back nor written down.
    return text.encode(errors='replace').decode()


def _count(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value >= 0 else None
