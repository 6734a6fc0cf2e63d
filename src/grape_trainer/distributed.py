"""One training in several processes, with the gradient of one.

Every process draws the same batches and cuts them into the same list of model calls (chunks of
trials, micro-batches of rows); each makes its share of the calls. What the calls gave is summed
over the processes: log-probabilities where a loss needs whole trials, metrics, and the gradient,
once an optimiser step. All sums are of the large batch's terms, so that unequal shares weigh what
they should, and every process sees the same numbers, takes the same step and fails with the same
error. The first process alone writes files.

Processes find each other by torch's environment variables (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT), as `grape train ... --processes`, `accelerate launch` and `torchrun`
set them; by gloo on the CPU and nccl on GPUs.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from grape_trainer.training_config import ConfigError, LearnerConfig

BUCKET_ELEMENTS = 2**25  # of gradients that are summed at once: 128 MiB of float32

Item = TypeVar('Item')
Value = TypeVar('Value')

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """The processes of a training; `Ranks()` is one alone, for which all this does nothing.

    With `in_step` every process makes the same number of model calls, as a sharded model needs.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[tuple[Item, float]]:
        """Return this process's part of a list that all have, each item with weight 1.

        Parts are contiguous and differ by one item at most. With `in_step` the shorter ones are
        filled up with an item of weight 0: call the model with it, and multiply by the weight.
        """
        size, longer = divmod(len(items), self.count)
        start = self.rank * size + min(self.rank, longer)
        part = [(item, 1.0) for item in items[start : start + size + (self.rank < longer)]]
        if self.in_step and longer and self.rank >= longer:
            part.append((items[0], 0.0))
        return part

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor of all processes in place, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up `.grad` of all processes; it stays None where it is None in all of them."""
        if self.count == 1:
            return
        parameters = list(parameters)
        have = torch.tensor([float(p.grad is not None) for p in parameters])
        used = [p for p, n in zip(parameters, self.sum(have).tolist(), strict=True) if n]
        for bucket in _buckets(used):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
            parts = flat.split([p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def join(self, part: Sequence[Item]) -> list[Item]:
        """Return the parts of all processes one after the other: undoes `share`."""
        if self.count == 1:
            return list(part)
        return [item for found in self._gather(list(part)) for item in found]

    def sum_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Add up metrics of all processes by name; one that a process lacks counts 0."""
        if self.count == 1:
            return dict(metrics)
        total: dict[str, float] = defaultdict(float)
        for part in self._gather(dict(metrics)):
            for name, value in part.items():
                total[name] += value
        return dict(total)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum(torch.tensor([float(flag)])).item() > 0

    def raise_together(self, error: Exception | None) -> None:
        """Raise, in all processes, the error of the first one that has one."""
        if self.count == 1:
            found = error
        else:
            found = next((e for e in self._gather(error) if e is not None), None)
        if found is not None:
            raise found

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Call `make` in the first process alone; return its value, or raise its error, in all."""
        if self.count == 1:
            return make()
        found: list[object] = [None, None]
        if self.first:
            try:
                found[0] = make()
            except Exception as error:
                found[1] = error
        dist.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def _gather(self, value: Value) -> list[Value]:
        found: list[object] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


ALONE = Ranks()


def join_ranks(config: LearnerConfig) -> Ranks:
    """Join the processes that the environment names; without any, the process is alone.

    On GPUs each process takes the one of its LOCAL_RANK as the current device.

    Raises:
        ConfigError: the configuration names one GPU for several processes.

    """
    count = int(os.environ.get('WORLD_SIZE', '1'))
    if count == 1:
        return ALONE
    device, backend = torch.device(config.device), 'gloo'
    if device.index is not None:
        raise ConfigError(
            f"device is '{config.device}' for {count} processes; expected '{device.type}': each "
            'takes its own.'
        )
    if device.type == 'cuda':
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        backend = 'cpu:gloo,cuda:nccl'
    # One group for the life of the process: a second one would meet the keys of the first.
    if not dist.is_initialized():
        dist.init_process_group(backend)
        atexit.register(_leave)
    log.info('%d processes, %s by %s', count, config.parallel, backend)
    return Ranks(dist.get_rank(), count, config.parallel == 'fsdp')


def _leave() -> None:
    """End the group before the interpreter does.

    A sharded model lies in a reference cycle and holds the group's threads, which abort the
    process when they outlive the interpreter.
    """
    gc.collect()
    dist.destroy_process_group()


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Cut parameters of one dtype each into lists of at most BUCKET_ELEMENTS, or of one."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        other = bucket and parameter.dtype != bucket[0].dtype
        if bucket and (other or size + parameter.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
