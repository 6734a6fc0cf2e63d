"""The inference engine: observations in, actions with their tokens and log-probabilities out.

Plain torch, no ROS: the policy node calls :meth:`Engine.predict`, the trainer
:meth:`Engine.trajectory_log_probs`; both see one model, one adapter set and one input pipeline.
Tokens are chosen among the 256 action ids; the log-probabilities that are recorded and learned
from are the full vocabulary's at temperature 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from grape_policy_node.action_tokens import ACTION_DIMS, ActionTokenizer, NormStats
from grape_policy_node.adapters import BASE, AdapterSet
from grape_policy_node.openvla.checkpoint import (
    Checkpoint,
    folder_sha256,
    load_checkpoint,
    with_adapter_statistics,
)
from grape_policy_node.openvla.decoding import TokenChoice, exponential_noise
from grape_policy_node.openvla.quantize import quantize_language_model
from grape_policy_node.openvla.snapshot import ActingModel

DEFAULT_CHUNK = 32  # steps of a trajectory that are scored at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observation:
    """What the policy acts on.

    Attributes:
        image: (H, W, 3) uint8 RGB after the contract transform.
        instruction: as the person gave it.
    """

    image: np.ndarray
    instruction: str


@dataclass(frozen=True)
class Prediction:
    """One action.

    Attributes:
        token_ids: (7,) int64, the sampled ids.
        log_probs: (7,) float32 at temperature 1, full vocabulary.
        action: (7,) float64 policy units: six deltas and the gripper opening, un-normalised.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    action: np.ndarray


@dataclass(frozen=True)
class ScoredSteps:
    """Recorded steps under the policy as it is, differentiable; all float32.

    Attributes:
        log_probs: (T, 7) of the recorded tokens, full vocabulary, temperature 1.
        entropy: (T, 7) nats, of each token's distribution.
        hidden: (T, text_dim), the final hidden state that predicts the first action token.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    hidden: torch.Tensor


class Engine:
    """A policy ready to act and to score."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        unnorm_key: str | None = None,
        policy_sha256: str = '',
        runtime: str = 'auto',
    ) -> None:
        """Wrap a loaded checkpoint.

        Args:
            checkpoint: model, processor, statistics.
            unnorm_key: which statistics; None where there is exactly one.
            policy_sha256: hash of the folder, '' for a model that is in no file yet.
            runtime: how a step runs, one of action_step.RUNTIMES.
        """
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.processor = checkpoint.processor
        self.adapters = AdapterSet(checkpoint.model)
        self.policy_sha256 = policy_sha256
        self.unnorm_key, self.norm_stats = checkpoint.norm_stats(unnorm_key)
        self._statistics = {BASE: (self.unnorm_key, self.norm_stats)}  # by adapter
        spec = checkpoint.model.spec
        self.action_tokenizer = ActionTokenizer(spec.vocab_size, spec.action_bins)
        self._acting = ActingModel(
            checkpoint.model,
            lambda: (self.adapters.active, self.adapters.revision),
            runtime=runtime,
        )
        self._prompts: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor | None]] = {}

    @classmethod
    def load(
        cls,
        policy_dir: str | Path,
        unnorm_key: str | None = None,
        adapter: str | Path | None = None,
        device: str = 'cpu',
        dtype: torch.dtype | None = None,
        runtime: str = 'auto',
        quantize: int = 0,
    ) -> Engine:
        """Read a checkpoint folder to act with: an adapter is activated, all weights are frozen.

        (To train the base itself: ``Engine(load_checkpoint(folder))``.)

        Args:
            policy_dir: checkpoint folder.
            unnorm_key: which action statistics; None where the folder has exactly one.
            adapter: adapter folder.
            device: 'cpu', 'cuda' ...
            dtype: None: float32 on the CPU, bfloat16 elsewhere.
            runtime: how a step runs, one of action_step.RUNTIMES.
            quantize: 8 or 4 bits for the language model's weights; 0: as they are.
        """
        if dtype is None:
            dtype = torch.float32 if torch.device(device).type == 'cpu' else torch.bfloat16
        checkpoint = load_checkpoint(policy_dir, dtype, 'cpu' if quantize else device)
        if adapter:
            checkpoint = with_adapter_statistics(checkpoint, adapter)
        if quantize:
            quantize_language_model(checkpoint.model, quantize, device)
            checkpoint.model.to(device)
        engine = cls(checkpoint, unnorm_key, folder_sha256(policy_dir), runtime)
        engine.set_adapter(engine.load_adapter(adapter) if adapter else BASE)
        if quantize:  # often slower, and always less exact: said where it is chosen
            took_ms = engine.warm_up('measure')
            log.warning('%d-bit weights: a step takes %.0f ms', quantize, took_ms)
        return engine

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first step of a shape takes much longer than the next ones."""
        return self._acting.runtime != 'eager'

    @property
    def adapter_id(self) -> str:
        """Id of the active adapter, or 'base'."""
        return self.adapters.active

    def load_adapter(self, path: str | Path) -> str:
        """Make an adapter resident; return its id. The active one stays active.

        Its actions are in the units of the data it was trained on: by the statistics in its
        folder, where there are some.
        """
        adapted, own = with_adapter_statistics(self.checkpoint, path), None
        if adapted is not self.checkpoint:
            only = len(adapted.statistics) == 1
            own = adapted.norm_stats(None if only else self.unnorm_key)
        name = self.adapters.load(path)
        if own is not None:
            self._statistics[name] = own
        return name

    def set_adapter(self, name: str) -> None:
        """Switch to a resident adapter, or to 'base'. For acting: no weight is trainable."""
        self.adapters.activate(name or BASE)
        self.unnorm_key, self.norm_stats = self._statistics.get(
            self.adapters.active, self._statistics[BASE]
        )

    def warm_up(self, instruction: str, temperature: float = 0.0) -> float:
        """Prepare for this prompt before the first command; return a step's milliseconds.

        Recordings and compiled steps are made at the first step of their shape, which takes from a
        second to a minute. The second step is timed.

        Raises:
            ValueError: the instruction cannot be encoded.
        """
        size = self.model.spec.image_size
        blank = Observation(np.zeros((size, size, 3), np.uint8), instruction)
        generators = [torch.Generator().manual_seed(0)] if temperature > 0 else None
        self.predict([blank], temperature, generators)
        began = time.perf_counter()
        self.predict([blank], temperature, generators)
        return 1000 * (time.perf_counter() - began)

    @torch.no_grad()
    def predict(
        self,
        observations: Sequence[Observation],
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Prediction]:
        """Choose an action for each observation.

        Args:
            observations: any number; their images may differ in size.
            temperature: 0 is greedy.
            generators: one CPU generator for each observation; needed where temperature > 0.

        Raises:
            ValueError: bad temperature or generators.
            FloatingPointError: the model's logits are not finite.
        """
        if not observations:
            return []
        self._check_sampling(len(observations), temperature, generators)
        pixels = self.processor.pixel_values([o.image for o in observations])
        return self.predict_pixels(
            pixels, [o.instruction for o in observations], temperature, generators
        )

    @torch.no_grad()
    def predict_pixels(
        self,
        pixel_values: torch.Tensor,
        instructions: Sequence[str],
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Prediction]:
        """Like :meth:`predict`, on the pixel tensor (B, 6, S, S) that the processor makes."""
        self._check_sampling(len(instructions), temperature, generators)
        input_ids, mask = self._prompt(tuple(instructions))
        return self.predict_ids(pixel_values, input_ids, mask, temperature, generators)

    @torch.no_grad()
    def predict_ids(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Prediction]:
        """Like :meth:`predict`, on prompt ids (B, L) that end with the empty token."""
        device = self.model.device
        step = self._acting.current()
        if mask is not None:
            mask = mask.to(device)
        choice = self._choice(temperature, generators)
        generated = step(pixel_values.to(device), input_ids.to(device), mask, choice)
        token_ids = generated.token_ids.cpu().numpy()
        log_probs = generated.log_probs.cpu().numpy()
        if not np.isfinite(log_probs).all():
            raise FloatingPointError(
                f'the logits of policy {self.checkpoint.folder} (adapter {self.adapter_id}) are '
                'not finite; the weights or the image are broken'
            )
        actions = self.norm_stats.unnormalise(self.action_tokenizer.decode(token_ids))
        return [
            Prediction(ids, logs, action)
            for ids, logs, action in zip(token_ids, log_probs, actions, strict=True)
        ]

    def trajectory_log_probs(
        self,
        images: np.ndarray | torch.Tensor,
        instruction: str,
        token_ids: np.ndarray | torch.Tensor,
        chunk: int = DEFAULT_CHUNK,
    ) -> torch.Tensor:
        """Log-probabilities of recorded tokens, teacher-forced.

        Differentiable where gradients are enabled; then memory grows with T (the learner slices
        the trajectory itself where that matters).

        Args:
            images: (T, H, W, 3) uint8 after the contract transform, or pixel values (T, 6, S, S).
            instruction: of the episode.
            token_ids: (T, 7), as sampled and recorded.
            chunk: steps that go through the model at once.

        Returns:
            (T, 7) float32, full vocabulary, temperature 1.
        """
        token_ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.int64)
        if token_ids.ndim != 2 or token_ids.shape[1] != ACTION_DIMS:
            raise ValueError(
                f'token_ids are {tuple(token_ids.shape)}; expected (T, {ACTION_DIMS})'
            )
        if len(images) != len(token_ids):
            raise ValueError(
                f'{len(images)} images and {len(token_ids)} rows of token ids; expected as many'
            )
        if chunk < 1:
            raise ValueError(f'chunk is {chunk}; expected at least 1')
        input_ids, _ = self._prompt((instruction,))
        device = self.model.device
        parts = []
        for start in range(0, len(token_ids), chunk):
            part = images[start : start + chunk]
            pixels = part if isinstance(part, torch.Tensor) else self.processor.pixel_values(part)
            ids = token_ids[start : start + chunk].to(device)
            prompt = input_ids.to(device).expand(len(ids), -1)
            with self.mixed_precision():
                logits = self.model.action_logits(pixels.to(device), prompt, ids)
            log_probs = F.log_softmax(logits.float(), dim=-1)
            parts.append(log_probs.gather(2, ids[..., None])[..., 0])
        return torch.cat(parts) if parts else torch.zeros(0, ACTION_DIMS)

    def score_steps(
        self, pixel_values: torch.Tensor, instruction: str, token_ids: torch.Tensor
    ) -> ScoredSteps:
        """Like :meth:`trajectory_log_probs` in one pass, with what RL needs beside them.

        Args:
            pixel_values: (T, 6, S, S), steps of any trials of one instruction.
            instruction: theirs.
            token_ids: (T, 7), as sampled and recorded.
        """
        device = self.model.device
        ids = token_ids.to(device)
        prompt = self._prompt((instruction,))[0].to(device).expand(len(ids), -1)
        with self.mixed_precision():
            hidden = self.model.action_hidden(pixel_values.to(device), prompt, ids)
            logits = self.model.language_model.lm_head(hidden)
        log_probs = F.log_softmax(logits.float(), dim=-1)
        return ScoredSteps(
            log_probs=log_probs.gather(2, ids[..., None])[..., 0],
            entropy=-(log_probs.exp() * log_probs).sum(-1),
            hidden=hidden[:, 0].float(),
        )

    def mixed_precision(self) -> torch.autocast:
        """Matrix products in bfloat16 on a GPU, float32 adapter weights included; not on a CPU."""
        kind = self.model.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind != 'cpu')

    def describe(self) -> dict[str, object]:
        """What a recording says about the policy (EpisodeEvent READY's config_json)."""
        return {
            'policy': Path(self.checkpoint.folder).name,
            'policy_sha256': self.policy_sha256,
            'adapter_id': self.adapter_id,
            'unnorm_key': self.unnorm_key,
            'dtype': str(self.model.dtype).removeprefix('torch.'),
            'device': str(self.model.device),
        }

    def _choice(
        self, temperature: float, generators: Sequence[torch.Generator] | None
    ) -> TokenChoice:
        first, stop = self.action_tokenizer.first_id, self.action_tokenizer.vocab_size
        if temperature == 0.0:
            return TokenChoice(first, stop)
        device = self.model.device
        noise = exponential_noise(generators, stop - first, device)
        return TokenChoice(first, stop, noise, torch.tensor(temperature, device=device))

    def _prompt(self, instructions: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompt ids of these instructions; the last few are kept."""
        if instructions not in self._prompts:
            if len(self._prompts) >= 64:
                self._prompts.clear()
            self._prompts[instructions] = self.processor.prompts(instructions)
        return self._prompts[instructions]

    @staticmethod
    def _check_sampling(
        count: int, temperature: float, generators: Sequence[torch.Generator] | None
    ) -> None:
        if not np.isfinite(temperature) or temperature < 0.0:
            raise ValueError(f'temperature is {temperature}; expected 0 (greedy) or more')
        if temperature > 0.0 and (generators is None or len(generators) != count):
            raise ValueError(
                f'{0 if generators is None else len(generators)} generators for {count} '
                f'observations at temperature {temperature}; expected one for each, so that a '
                'result depends on its own seed only'
            )


__all__ = ['Engine', 'NormStats', 'Observation', 'Prediction']
