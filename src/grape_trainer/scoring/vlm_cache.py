"""Every answer that a model gave, kept by the hash of what it was asked.

One JSON file an answer: the question, the answer, model, tokens, cost and times. The hash covers
the model, its settings, the text and the pictures' pixels, so that the same question about the
same picture is answered from here, without a network and without a key. Pictures are not kept,
only their hashes. A file that is damaged is an error that names it, never asked again in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from grape_trainer.scoring.vlm_config import VlmConfig, VlmError

VERSION = 1
# The settings that an answer depends on.
SETTINGS = ('model', 'temperature', 'max_tokens', 'response_format')


class VlmCacheError(VlmError):
    """A cache without the answer, or with a damaged file; the text names the file."""


@dataclass(frozen=True)
class Question:
    """What a model is asked, without the pictures themselves."""

    settings: Mapping[str, object]  # of SETTINGS
    texts: tuple[tuple[str, str], ...]  # (system | user | assistant, text), the pictures' first
    images_sha256: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the hash of all of it."""
        return _sha256(_canonical(asdict(self)))


@dataclass(frozen=True)
class CachedAnswer:
    """One answer and what made it."""

    key: str
    question: Question
    reply: str
    model: str  # as the server named it
    base_url: str
    prompt_tokens: int | None
    reply_tokens: int | None
    cost_usd: float | None  # None: prices or counts are not known
    asked_at: str  # ISO 8601, UTC
    answered_at: str


def question(
    config: VlmConfig, texts: Sequence[tuple[str, str]], images: Sequence[np.ndarray]
) -> Question:
    """Return what is asked.

    Args:
        config: of the model.
        texts: the conversation so far.
        images: (H, W, 3) uint8 RGB each.

    """
    return Question(
        settings={name: vars(config)[name] for name in SETTINGS},
        texts=tuple((str(role), str(text)) for role, text in texts),
        images_sha256=tuple(image_sha256(image) for image in images),
    )


def image_sha256(image: np.ndarray) -> str:
    """Hash a picture's size and pixels; how it is packed for the way does not matter."""
    array = np.ascontiguousarray(image, dtype=np.uint8)
    return _sha256(f'{array.shape}'.encode() + array.tobytes())


class AnswerCache:
    """A folder of answers."""

    def __init__(self, folder: Path | str) -> None:
        """Take a folder; it is made when the first answer is kept."""
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Return where an answer is, or would be."""
        return self.folder / f'{key}.json'

    def find(self, asked: Question) -> CachedAnswer | None:
        """Return the answer to a question; None where it was never asked.

        Raises:
            VlmCacheError: a file that cannot be read or does not hold what its name says.

        """
        path = self.path(asked.key)
        try:
            text = path.read_text(encoding='utf-8')
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error
        try:
            content = json.loads(text)
            found = _answer_from(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _damaged(path, f'{type(error).__name__}: {error}') from error
        if found.question != asked or found.key != asked.key:
            raise _damaged(path, 'it holds the answer to another question than its name says')
        return found

    def keep(self, answer: CachedAnswer) -> Path:
        """Write an answer, whole or not at all; returns its file."""
        path = self.path(answer.key)
        content = asdict(answer) | {'version': VERSION}
        content['sha256'] = _sha256(_canonical(content))
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
        with partial.open('w', encoding='utf-8') as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        return path


def _answer_from(content: dict[str, object]) -> CachedAnswer:
    claimed = content.pop('sha256')
    if _sha256(_canonical(content)) != claimed:
        raise ValueError('its content was changed after it was written')
    if content.pop('version') != VERSION:
        raise ValueError(f'expected version {VERSION}')
    expected = {field.name for field in fields(CachedAnswer)}
    if set(content) != expected:
        raise ValueError(f'missing or unknown keys: {sorted(set(content) ^ expected)}')
    asked = content['question']
    content['question'] = Question(
        settings=asked['settings'],
        texts=tuple((role, text) for role, text in asked['texts']),
        images_sha256=tuple(asked['images_sha256']),
    )
    if not isinstance(content['reply'], str) or not re.fullmatch('[0-9a-f]{64}', content['key']):
        raise ValueError("'reply' or 'key' is not text of the right form")
    return CachedAnswer(**content)


def _damaged(path: Path, why: str) -> VlmCacheError:
    return VlmCacheError(
        f"the cached answer '{path}' is damaged ({why}). Restore the file, or delete it so that "
        'the model is asked again.'
    )


def _canonical(content: object) -> bytes:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(',', ':'))
    return text.encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
