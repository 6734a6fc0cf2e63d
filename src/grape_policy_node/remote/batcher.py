"""Inference for several clients: one at a time, and what waits together goes as one batch.

The engine lives on one thread. While it works, questions gather; then the oldest one and all that
fit it (the same adapter and temperature) are answered by one forward pass. A row's random numbers
come from its own generator, so the company a question is in changes nothing but the last bits of
its log-probabilities; with ``max_batch`` 1 not even those.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from grape_policy_node.backend import Decision
from grape_policy_node.engine import Engine, Observation
from grape_policy_node.remote.protocol import InferRequest, RequestError

Result = TypeVar('Result')

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A decision, the generator's next state (None for greedy), and what it took."""

    decision: Decision
    rng_state: bytes | None
    timing: dict[str, float | int]


@dataclass(eq=False)  # one question is not another, however alike
class _Waiting:
    request: InferRequest
    adapter: str
    answer: asyncio.Future[Answer]
    since_s: float = field(default_factory=time.monotonic)

    def fits(self, other: _Waiting) -> bool:
        same = self.adapter == other.adapter
        return same and self.request.temperature == other.request.temperature


class Batcher:
    """Owns the engine's thread; used from the event loop only."""

    def __init__(self, engine: Engine, max_batch: int) -> None:
        """Prepare; `max_batch` questions at most go through the model at once."""
        self._engine = engine
        self._max_batch = max_batch
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='engine')
        self._runner: asyncio.Task | None = None

    async def infer(self, request: InferRequest, adapter: str) -> Answer:
        """Choose an action with an adapter that is resident ('base': with none).

        Raises:
            RequestError: the engine refuses the image, the instruction or the generator's state.
            RuntimeError: the engine fails.
        """
        waiting = _Waiting(request, adapter, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await waiting.answer

    async def on_engine(self, function: Callable[[], Result]) -> Result:
        """Call a function on the engine's thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is in progress, at most so long."""
        if self._runner is not None:
            await asyncio.wait([self._runner], timeout=timeout_s)

    def close(self) -> None:
        """End the engine's thread after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while self._waiting:
                batch = self._take()
                results = await self.on_engine(lambda batch=batch: self._answers(batch))
                for item, result in zip(batch, results, strict=True):
                    if isinstance(result, Exception):
                        item.answer.set_exception(result)
                    else:
                        item.answer.set_result(result)
        finally:
            self._runner = None
            left, self._waiting = [*batch, *self._waiting], []
            for item in left:  # none, unless the engine's thread was ended
                if not item.answer.done():
                    item.answer.set_exception(RuntimeError('the server stops; ask again'))

    def _take(self) -> list[_Waiting]:
        first = self._waiting[0]
        batch = [item for item in self._waiting if item.fits(first)][: self._max_batch]
        self._waiting = [item for item in self._waiting if item not in batch]
        return batch

    # On the engine's thread

    def _answers(self, batch: list[_Waiting]) -> list[Answer | Exception]:
        """Answer each; one that cannot be answered does not spoil the others."""
        began = time.monotonic()
        try:
            found = self._predict(batch)
        except Exception as error:  # noqa: BLE001 - the engine raises anything; each client is told
            if len(batch) > 1:
                return [self._answers([item])[0] for item in batch]
            if isinstance(error, ValueError):
                return [RequestError(str(error))]
            log.error('inference failed: %r', error)
            return [RuntimeError(f'inference failed: {type(error).__name__}: {error}')]
        infer_ms = 1000.0 * (time.monotonic() - began)
        timing = {'infer_ms': infer_ms, 'batch': len(batch)}
        return [
            Answer(decision, state, timing | {'queue_ms': 1000.0 * (began - item.since_s)})
            for item, (decision, state) in zip(batch, found, strict=True)
        ]

    def _predict(self, batch: list[_Waiting]) -> list[tuple[Decision, bytes | None]]:
        engine, temperature = self._engine, batch[0].request.temperature
        if engine.adapter_id != batch[0].adapter:
            engine.set_adapter(batch[0].adapter)
        generators = None
        if temperature > 0.0:
            generators = [_generator(item.request) for item in batch]
        seen = [Observation(item.request.image, item.request.instruction) for item in batch]
        predictions = engine.predict(seen, temperature, generators)
        decisions = [
            Decision(p.action, p.token_ids, p.log_probs, engine.adapter_id) for p in predictions
        ]
        states = [None] * len(batch)
        if generators is not None:
            states = [generator.get_state().numpy().tobytes() for generator in generators]
        return list(zip(decisions, states, strict=True))


def _generator(request: InferRequest) -> torch.Generator:
    """Return the episode's generator as the answer before left it, or a fresh one.

    Raises:
        ValueError: the state is not one of torch's CPU generator.
    """
    generator = torch.Generator()
    if request.rng_state is None:
        return generator.manual_seed(request.seed)
    try:
        generator.set_state(torch.from_numpy(np.frombuffer(request.rng_state, np.uint8).copy()))
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'rng_state is no state of a CPU generator: {reason}') from error
    return generator
