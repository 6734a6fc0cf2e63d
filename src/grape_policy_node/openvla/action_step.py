"""One control step as one function of tensors, run eagerly, compiled, or as a CUDA graph.

Pixels and prompt go in, seven tokens come out, and nothing in between asks the host: the loop over
the tokens is unrolled, every shape is fixed by batch and prompt length, and the randomness is an
input. So the whole step can be recorded as one CUDA graph (thousands of kernels, one launch) or
compiled. Both are prepared for each shape when it is first seen; what cannot be prepared runs
eagerly from then on, and a warning says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from grape_policy_node.openvla.decoding import ActionDecoder, Generated, TokenChoice
from grape_policy_node.openvla.model import OpenVLA

RUNTIMES = ('auto', 'eager', 'compile', 'cuda_graph')
WARM_UPS = 3  # before a recording: cuBLAS workspaces, the rotary table
SHAPES_KEPT = 8  # recordings; each holds its activations
REASON_CHARACTERS = 200

log = logging.getLogger(__name__)

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, TokenChoice], Generated]


def choose_runtime(runtime: str, device: torch.device) -> str:
    """Resolve 'auto': a CUDA graph on a GPU, eager elsewhere.

    Raises:
        ValueError: unknown, or a CUDA graph on another device.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime '{runtime}' is not one of: {', '.join(RUNTIMES)}")
    if runtime == 'auto':
        return 'cuda_graph' if device.type == 'cuda' else 'eager'
    if runtime == 'cuda_graph' and device.type != 'cuda':
        raise ValueError(
            f"runtime 'cuda_graph' on device '{device}'; expected a CUDA device. Use 'eager' or "
            "'compile' there."
        )
    return runtime


def action_step(model: OpenVLA, decoder: ActionDecoder, runtime: str) -> Step:
    """Return the function that acts, by a resolved runtime."""

    def eager(
        pixels: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        choice: TokenChoice,
    ) -> Generated:
        embeds, mask = model.embed(pixels, input_ids, mask)
        return decoder.generate(embeds, mask, choice)

    kinds = {'eager': lambda: eager, 'compile': lambda: CompiledStep(eager)}
    kinds['cuda_graph'] = lambda: GraphedStep(eager)
    return kinds[runtime]()


class CompiledStep:
    """A step compiled by torch.compile as one graph; the first call of a shape takes minutes."""

    def __init__(self, step: Step, backend: str = 'inductor') -> None:
        self._eager = step
        self._compiled: Step | None = torch.compile(
            step, backend=backend, dynamic=False, fullgraph=True
        )

    def __call__(
        self,
        pixels: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        choice: TokenChoice,
    ) -> Generated:
        """Act; a failed compilation is a warning, once."""
        if self._compiled is not None:
            try:
                return self._compiled(pixels, input_ids, mask, choice)
            except Exception as error:  # noqa: BLE001 - a compiler raises anything
                log.warning('the step runs eagerly: torch.compile failed: %s', _reason(error))
                self._compiled = None
        return self._eager(pixels, input_ids, mask, choice)


class GraphedStep:
    """A step recorded as a CUDA graph, one recording a shape; replayed on its own memory."""

    def __init__(self, step: Step) -> None:
        self._eager = step
        self._recordings: dict[tuple, _Recording] = {}
        self._failed = False

    def __call__(
        self,
        pixels: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        choice: TokenChoice,
    ) -> Generated:
        """Act; a failed recording is a warning, once."""
        if self._failed:
            return self._eager(pixels, input_ids, mask, choice)
        shape = (pixels.shape, input_ids.shape, mask is None, choice.noise is None)
        if shape not in self._recordings:
            if len(self._recordings) >= SHAPES_KEPT:
                self._recordings.pop(next(iter(self._recordings)))
            try:
                self._recordings[shape] = _Recording(self._eager, pixels, input_ids, mask, choice)
            except RuntimeError as error:
                log.warning('the step runs eagerly: no CUDA graph: %s', _reason(error))
                self._failed = True
                return self._eager(pixels, input_ids, mask, choice)
        return self._recordings[shape].replay(pixels, input_ids, mask, choice)


class _Recording:
    """A graph with its own inputs and outputs."""

    def __init__(
        self,
        step: Step,
        pixels: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        choice: TokenChoice,
    ) -> None:
        given = (pixels, input_ids, mask, choice.noise, choice.temperature)
        self._inputs = [None if tensor is None else tensor.clone() for tensor in given]
        pixels, input_ids, mask, noise, temperature = self._inputs
        choice = TokenChoice(choice.first_id, choice.stop_id, noise, temperature)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step(pixels, input_ids, mask, choice)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = step(pixels, input_ids, mask, choice)

    def replay(
        self,
        pixels: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        choice: TokenChoice,
    ) -> Generated:
        given = (pixels, input_ids, mask, choice.noise, choice.temperature)
        for own, new in zip(self._inputs, given, strict=True):
            if own is not None:
                own.copy_(new, non_blocking=True)
        self._graph.replay()
        return Generated(self._output.token_ids.clone(), self._output.log_probs.clone())


def _reason(error: Exception) -> str:
    """The error on one line, without the advice that compilers append."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:REASON_CHARACTERS]
