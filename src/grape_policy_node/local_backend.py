"""The policy in this process: the inference engine behind the policy node's boundary."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from grape_policy_node.adapters import BASE
from grape_policy_node.backend import Decision, Health, Player, Seen, Start, Wanted
from grape_policy_node.engine import Engine


class LocalBackend:
    """Acts with an engine."""

    has_log_probs = True
    needs_state = False

    def __init__(self, engine: Engine, dump_tensors: str = '') -> None:
        """Wrap an engine.

        Args:
            engine: loaded, with the adapter that acts.
            dump_tensors: folder for each step's pixel tensor as npy; '' for none.
        """
        self.engine = engine
        self._dump_tensors = dump_tensors
        self._lock = threading.Lock()  # the step in progress, or a switch of adapters

    @classmethod
    def load(
        cls,
        policy: str,
        adapter: str = '',
        unnorm_key: str = '',
        device: str = 'cpu',
        torch_threads: int = 1,
        dump_tensors: str = '',
        runtime: str = 'auto',
        quantize: int = 0,
    ) -> LocalBackend:
        """Read a checkpoint folder; see policy_node's parameters.

        Raises:
            ValueError, OSError, RuntimeError: it is no usable checkpoint or adapter.
        """
        if torch_threads:
            torch.set_num_threads(torch_threads)
        engine = Engine.load(
            policy,
            unnorm_key=unnorm_key or None,
            adapter=adapter or None,
            device=device,
            runtime=runtime,
            quantize=quantize,
        )
        return cls(engine, dump_tensors)

    @property
    def adapter_id(self) -> str:
        """Id of the active adapter, or 'base'."""
        return self.engine.adapter_id

    def describe(self) -> dict[str, object]:
        """Return the engine's description."""
        with self._lock:
            return self.engine.describe() | {'has_log_probs': True}

    def begin(self, start: Start, wanted: Wanted) -> Player:
        """Check the instruction and seed the episode's generator.

        A recorded or compiled step is prepared here, before the first observation waits for it.
        """
        with self._lock:
            self.engine.processor.prompt_ids(start.instruction)
            if self.engine.needs_warm_up:
                self.engine.warm_up(start.instruction, start.temperature)
        return _LocalPlayer(self, start, torch.Generator().manual_seed(start.seed))

    def load_adapter(self, path: str) -> str:
        """Switch adapters; the step in progress is finished with the old one."""
        with self._lock:
            name = self.engine.load_adapter(path) if path else BASE
            self.engine.set_adapter(name)
        return name

    def health(self) -> Health:
        """Return the device, the checkpoint's hash and the resident adapters."""
        return Health(
            hardware=str(self.engine.model.device),
            values={
                'policy_sha256': self.engine.policy_sha256,
                'adapters': ', '.join(self.engine.adapters.names),
            },
        )

    def close(self) -> None:
        """Do nothing: the engine goes with the object."""

    def act(self, start: Start, seen: Seen, generator: torch.Generator) -> Decision:
        """Choose one action and dump its pixels where that is asked for."""
        pixels = self.engine.processor.pixel_values([seen.image])
        with self._lock:
            adapter_id = self.engine.adapter_id
            prediction = self.engine.predict_pixels(
                pixels, [start.instruction], start.temperature, [generator]
            )[0]
        if self._dump_tensors:
            folder = Path(self._dump_tensors) / start.episode_id
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f'{seen.step:06d}.npy', pixels[0].numpy())
        return Decision(prediction.action, prediction.token_ids, prediction.log_probs, adapter_id)


@dataclass(frozen=True)
class _LocalPlayer:
    backend: LocalBackend
    start: Start
    generator: torch.Generator

    def act(self, seen: Seen, wanted: Wanted) -> Decision:
        return self.backend.act(self.start, seen, self.generator)
