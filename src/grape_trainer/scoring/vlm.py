"""Asks a vision-language model for the stages of a task and their costs (GRAPE Sec. 3.5, Eq. 7).

    client = VlmClient(load_vlm_config(), AnswerCache('runs/vlm'))
    proposal = client.propose(instruction, [picture], keypoints)

A reply that is not of the form asked for, or whose costs the checker refuses, goes back with what
is wrong with it. Every answer is cached by the hash of its question; offline, only the cache
answers.
Nothing that a model writes is run or imported here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from grape_trainer.scoring.vlm_answer import excerpt
from grape_trainer.scoring.vlm_cache import AnswerCache, CachedAnswer, VlmCacheError, question
from grape_trainer.scoring.vlm_config import VlmConfig, VlmError
from grape_trainer.scoring.vlm_exchange import Exchange
from grape_trainer.scoring.vlm_prompt import (
    CORRECTION,
    NumberedKeypoint,
    messages,
    system_prompt,
    task_prompt,
)
from grape_trainer.scoring.vlm_reply import ProposedStages, ReplyError, parse_reply

MOST_SENT_BACK = 20_000  # characters of a wrong reply that are repeated to the model
STILL_SCORABLE = (
    'Trials stay scorable: with the last cost program that was approved, or with the built-in '
    'templates.'
)

log = logging.getLogger(__name__)

# Takes a cost program's text; returns why it is refused, None where it is not.
Check = Callable[[str], str | None]


@dataclass(frozen=True)
class Proposed:
    """What a model proposed, and the answers that it took."""

    stages: ProposedStages
    answers: tuple[CachedAnswer, ...]  # the last one is the proposal
    cached: int  # how many of them came from the cache

    @property
    def cost_usd(self) -> float | None:
        """What all answers cost when they were given; None where that is not known."""
        costs = [answer.cost_usd for answer in self.answers]
        return None if None in costs else math.fsum(costs)


class VlmClient:
    """One model, with a cache of what it said."""

    def __init__(
        self,
        config: VlmConfig,
        cache: AnswerCache,
        *,
        offline: bool = False,
        refresh: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take a model and a cache.

        Args:
            config: of the model.
            cache: where answers are looked up and kept.
            offline: never ask; what is not in the cache is an error.
            refresh: ask even where the cache has the answer, and replace it.
            sleep: waits between attempts.

        """
        if offline and refresh:
            raise VlmError('offline and refresh exclude each other: one never asks, one always.')
        self.config, self.cache = config, cache
        self._offline, self._refresh = offline, refresh
        self._exchange = Exchange(config, sleep)

    def propose(
        self,
        instruction: str,
        images: Sequence[np.ndarray],
        keypoints: Sequence[NumberedKeypoint],
        check: Check | None = None,
    ) -> Proposed:
        """Ask for the stages of a task.

        Args:
            instruction: what the robot is told.
            images: (H, W, 3) uint8 RGB, the first frame of each camera with numbered keypoints.
            keypoints: what the numbers are, from 0.
            check: looks at the cost program that is proposed; its reason goes to the model.

        Raises:
            VlmError: no answer, or none that can be used; the text says why and what to do.
            VlmCacheError: offline and never asked, or a damaged cache.

        """
        if not keypoints:
            raise VlmError('there is no keypoint to ask about; expected one or more.')
        texts = [
            ('system', system_prompt()),
            ('user', task_prompt(instruction, keypoints, len(images))),
        ]
        answers: list[CachedAnswer] = []
        cached = 0
        reason = ''
        for attempt in range(self.config.corrections + 1):
            answer, found = self._answer(texts, images)
            answers.append(answer)
            cached += found
            try:
                stages = parse_reply(answer.reply, len(keypoints))
                reason = check(stages.program_text) if check else None
            except ReplyError as error:
                reason = str(error)
            if reason is None:
                return Proposed(stages, tuple(answers), cached)
            log.info('reply %d cannot be used: %s', attempt + 1, excerpt(reason))
            texts += [
                ('assistant', answer.reply[:MOST_SENT_BACK]),
                ('user', CORRECTION.format(reason=reason)),
            ]
        raise VlmError(
            f"model '{self.config.model}' gave no proposal that can be used in {len(answers)} "
            f'replies. The last one was refused: {excerpt(reason)} It began: '
            f'{excerpt(answers[-1].reply[:200])} Look at '
            f"'{self.cache.path(answers[-1].key)}', ask anew (refresh), or take another model. "
            f'{STILL_SCORABLE}'
        )

    def _answer(
        self, texts: Sequence[tuple[str, str]], images: Sequence[np.ndarray]
    ) -> tuple[CachedAnswer, bool]:
        """Return an answer, and whether it came from the cache."""
        asked = question(self.config, texts, images)
        found = None if self._refresh else self.cache.find(asked)
        if found is not None:
            return found, True
        if self._offline:
            raise VlmCacheError(
                f"'{self.cache.folder}' has no answer of model '{self.config.model}' to this "
                f'question ({asked.key[:12]}...), and offline none is asked for. Ask once with a '
                f'network, or bring the folder that has it. {STILL_SCORABLE}'
            )
        began = _now()
        try:
            answer = self._exchange.ask(messages(texts, images))
        except VlmError as error:
            raise VlmError(f'{error} {STILL_SCORABLE}') from error
        kept = CachedAnswer(
            key=asked.key,
            question=asked,
            reply=answer.text,
            model=answer.model,
            base_url=self.config.base_url,
            prompt_tokens=answer.prompt_tokens,
            reply_tokens=answer.reply_tokens,
            cost_usd=self.config.cost_usd(answer.prompt_tokens, answer.reply_tokens),
            asked_at=began,
            answered_at=_now(),
        )
        self.cache.keep(kept)
        return kept, False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='milliseconds')
