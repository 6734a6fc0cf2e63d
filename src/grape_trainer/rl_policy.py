"""The policy that PPO, GRPO and TGRPO train: an engine with an adapter and, for PPO, a value head.

Before the first update it is the policy that acted; `before` gives its log-probabilities and
values of every trial, once, without gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from grape_policy_node.adapters import BASE
from grape_policy_node.engine import Engine
from grape_trainer.dataset import TokenTrial
from grape_trainer.distributed import ALONE, Ranks
from grape_trainer.large_model import fit_into_memory
from grape_trainer.learner import generator_for
from grape_trainer.objective.value import (
    VALUE_HEAD,
    ValueHead,
    load_value_head,
    new_value_head,
    save_value_head,
    value_head_id,
)
from grape_trainer.reference import ReferenceKey, reference_log_probs
from grape_trainer.rl_config import PpoConfig, RlConfig
from grape_trainer.rl_gradient import Score, policy_score
from grape_trainer.rl_trials import Actor, RlTrial
from grape_trainer.trained_adapter import make_trained_adapter, save_trained_adapter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RlPolicy:
    """What is trained, and who acted; `head` is None without values."""

    engine: Engine
    actor: Actor
    start_adapter: Path | None
    head: ValueHead | None
    score: Score

    @classmethod
    def make(
        cls,
        config: RlConfig,
        engine: Engine,
        actor: Actor,
        start_adapter: Path | None,
        ranks: Ranks = ALONE,
    ) -> RlPolicy:
        """Make or load the adapter and, for PPO, the value head.

        Raises:
            AdapterError, ValueHeadError: the start adapter's files are not of this policy.

        """
        head = None
        if isinstance(config, PpoConfig):
            head = _value_head(config, engine, start_adapter)
        make_trained_adapter(engine, config, start_adapter)
        fit_into_memory(engine.model, config, ranks)
        return cls(engine, actor, start_adapter, head, policy_score(engine))

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained of the policy, by name."""
        return {n: p for n, p in self.engine.model.named_parameters() if p.requires_grad}

    @property
    def value_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained of the value head, by name."""
        if self.head is None:
            return {}
        return {f'value_head.{n}': p for n, p in self.head.named_parameters()}

    def before(
        self,
        trials: Sequence[RlTrial],
        trial_of: Callable[[Path], TokenTrial],
        cache: Path,
        chunk_steps: int,
        base: bool = False,
        on_trial: Callable[[int], None] = lambda _: None,
        ranks: Ranks = ALONE,
    ) -> dict[Path, torch.Tensor]:
        """Return (T, 7) float32 log-probabilities of each bag; with a head, (T, 8) and values.

        Args:
            trials: of which.
            trial_of: gives a bag's pixels and tokens.
            cache: folder of the kept files; a killed run goes on with those it has.
            chunk_steps: control steps of one forward pass.
            base: of the base, the adapter switched off, without values.
            on_trial: called with the number of trials done.
            ranks: the processes that share the work.

        """
        head = None if base else self.head
        name = BASE if base else self.actor.adapter_id
        if head is not None:
            name = f'{name}/{value_head_id(head)}'

        def columns(trial: TokenTrial, start: int, stop: int) -> torch.Tensor:
            part = slice(start, stop)
            scored = self.score(trial.images[part], trial.instruction, trial.token_ids[part])
            values = [] if head is None else [head(scored.hidden)[:, None]]
            return torch.cat([scored.log_probs, *values], dim=1)

        with self.engine.adapters.reference(BASE) if base else nullcontext():
            return reference_log_probs(
                [trial.bag for trial in trials],
                [trial.sha256 for trial in trials],
                trial_of,
                columns,
                ReferenceKey(self.actor.policy_sha256, name),
                cache,
                chunk_steps,
                on_trial,
                ranks,
            )

    def save(self, folder: Path, trials: Sequence[RlTrial]) -> str:
        """Write adapter, value head and the initial states seen; return the adapter's id."""
        if self.head is not None:
            save_value_head(self.head, folder)
        states = {trial.state for trial in trials}
        return save_trained_adapter(self.engine, folder, states, self.start_adapter)


def _value_head(config: PpoConfig, engine: Engine, start_adapter: Path | None) -> ValueHead:
    text_dim = engine.model.spec.llama.hidden_size
    if start_adapter is not None and (start_adapter / VALUE_HEAD).is_file():
        log.info('going on with the value head of %s', start_adapter)
        head = load_value_head(start_adapter, text_dim)
    else:
        log.info('a fresh value head')
        head = new_value_head(text_dim, generator_for(config.seed, 'value_head', 0))
    return head.to(engine.model.device)
