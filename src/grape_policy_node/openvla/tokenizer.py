"""The tokenizer of a checkpoint folder, and whether it is the model's own.

Llama-2's vocabulary gives its last 256 words to the actions; a vocabulary of our own ends before
the action ids. In both, the empty token is the lone space that stands between the prompt and the
first action. A tokenizer that does not fit would turn instructions into other words, silently.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from grape_policy_node.openvla.folder import SENTENCEPIECE, TOKENIZER, CheckpointError
from grape_policy_node.openvla.model import OpenVLAConfig

SPACES = ('▁', 'Ġ', ' ')  # how tokenizers write a lone space
PROBE = 'pick up the cup'

logger = logging.getLogger(__name__)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Read ``tokenizer.json``, or convert ``tokenizer.model``; None where there is neither."""
    path = folder / TOKENIZER
    if not path.exists() and (folder / SENTENCEPIECE).exists():
        return _convert(folder)
    if not path.exists():
        _warn_once(folder)
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f'{path} is not a readable tokenizer: {error}') from error
    return _plain(tokenizer)


def check_tokenizer(tokenizer: Tokenizer, spec: OpenVLAConfig, where: str) -> None:
    """Compare a tokenizer with the model's vocabulary.

    Raises:
        CheckpointError: words beyond the vocabulary, too few of them, another BOS, or an empty
            token that is no lone space.
    """
    problem = _size_problem(tokenizer, spec) or _special_problem(tokenizer, spec)
    if problem:
        raise CheckpointError(
            f'{where}: the tokenizer does not match the vocabulary of config.json: {problem} '
            "Copy the tokenizer files of the model's own checkpoint into the folder."
        )


def _size_problem(tokenizer: Tokenizer, spec: OpenVLAConfig) -> str:
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    ids = tokenizer.get_vocab(with_added_tokens=True)
    # '<PAD>' of the published tokenizer is an added token behind the vocabulary.
    words = {word: index for word, index in ids.items() if not (
        word in added and index >= spec.vocab_size
    )}  # fmt: skip
    padded, vocab_size = spec.llama.vocab_size, spec.vocab_size
    highest = max(ids.values(), default=0)
    if highest >= padded:
        return f'it has the id {highest}, the model has {padded} rows (0..{padded - 1}).'
    before_actions = vocab_size - spec.action_bins
    own = 'empty_token_id' in spec.raw and len(words) <= before_actions
    if len(words) != vocab_size and not own:
        return (
            f'it has {len(words)} words; expected {vocab_size} (the {padded} rows without their '
            f'padding of {spec.pad_to_multiple_of}; the last {spec.action_bins} are the actions).'
        )
    return ''


def _special_problem(tokenizer: Tokenizer, spec: OpenVLAConfig) -> str:
    bos = spec.llama.bos_token_id
    bare = tokenizer.encode(PROBE, add_special_tokens=False).ids
    full = tokenizer.encode(PROBE).ids
    if tokenizer.id_to_token(bos) is None or full not in (bare, [bos, *bare]):
        extra = [index for index in full if index not in bare]
        return (
            f'it adds the special tokens {extra} to a text; expected none but BOS, which is '
            f'bos_token_id {bos} in config.json ({tokenizer.id_to_token(bos)!r}).'
        )
    empty = tokenizer.id_to_token(spec.empty_token_id)
    if empty not in SPACES:
        return (
            f'the empty token {spec.empty_token_id}, which stands before the first action, is '
            f"{empty!r} in it; expected a lone space ('▁')."
        )
    return ''


def _convert(folder: Path) -> Tokenizer:
    """Make a fast tokenizer of a sentencepiece model, as transformers does."""
    path = folder / SENTENCEPIECE
    try:
        import sentencepiece  # noqa: F401 (transformers needs it)
    except ImportError:
        raise CheckpointError(
            f'{folder} has {SENTENCEPIECE} and no {TOKENIZER}, and sentencepiece, which reads it, '
            f'is not installed. Run: pip install sentencepiece protobuf (or copy {TOKENIZER} of '
            'openvla/openvla-7b beside it).'
        ) from None
    from transformers import LlamaTokenizer

    try:
        converted = LlamaTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers, protobuf and sentencepiece each raise their own
        raise CheckpointError(f'{path} is not a readable tokenizer: {error}') from error
    return _plain(converted.backend_tokenizer)


@lru_cache(maxsize=32)
def _warn_once(folder: Path) -> None:
    logger.warning('%s has no %s: token ids must be given, not instructions', folder, TOKENIZER)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Drop padding and truncation that a training run may have left in the file."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
