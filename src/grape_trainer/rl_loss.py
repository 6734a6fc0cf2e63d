"""From rewards to the loss of any control steps, for PPO, GRPO and TGRPO.

Advantages are computed once, before the first update, over all trials. What a loss keeps has one
row a control step, in the order of rl_gradient.StepTable; a chunk of steps looks its rows up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grape_policy_node.engine import ScoredSteps
from grape_trainer.objective.advantage import gae, normalise
from grape_trainer.objective.grpo import FORMS, grouped_advantages, grpo_loss
from grape_trainer.objective.ppo import (
    StepBatch,
    ValueBatch,
    explained_variance,
    ppo_loss,
    value_losses,
)
from grape_trainer.objective.tgrpo import tgrpo_form
from grape_trainer.objective.value import ValueHead
from grape_trainer.rl_config import GroupConfig, PpoConfig, TgrpoConfig
from grape_trainer.rl_trials import RlTrial


class PpoStepLoss:
    """PPO's loss, and that of the value head alone."""

    groups = zero_groups = 0

    def __init__(
        self,
        config: PpoConfig,
        trials: Sequence[RlTrial],
        values: Sequence[torch.Tensor],
        head: ValueHead,
        device: torch.device,
    ) -> None:
        """Estimate the advantages.

        Args:
            config: discounts, weights.
            trials: with their rewards and recorded log-probabilities.
            values: (T,) of each trial under the policy and head that training starts from.
            head: the value head to train.
            device: where the losses are computed.

        """
        found = [
            gae(trial.rewards, value, config.gamma, config.gae_lambda)
            for trial, value in zip(trials, values, strict=True)
        ]
        advantages = [advantage for advantage, _ in found]
        if config.normalise_advantages:
            advantages = normalise(advantages)
        self._config, self._head = config, head
        self._recorded = torch.cat([t.log_probs for t in trials]).to(device)
        self._advantages = torch.cat(advantages).to(device)
        self._old_values = torch.cat(list(values)).to(device)
        self._returns = torch.cat([returns for _, returns in found]).to(device)
        # By the values that the advantages are from: how good the head was on new trials.
        self.explained_variance = explained_variance(self._old_values, self._returns)

    def whole(
        self, scored: ScoredSteps, rows: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the mean loss of the policy and the values of some steps."""
        hidden = scored.hidden if self._config.shared_backbone else scored.hidden.detach()
        batch = StepBatch(self._recorded[rows], self._advantages[rows])
        value = self._value(hidden, rows)
        return ppo_loss(scored.log_probs, scored.entropy, batch, value, self._config.options)

    def warm_up(
        self, scored: ScoredSteps, rows: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the mean loss of the values alone; it does not reach the policy."""
        losses, _ = value_losses(
            self._value(scored.hidden.detach(), rows), self._config.value_clip
        )
        loss = losses.mean()
        return loss, {'loss': loss.item(), 'loss/value_avg': loss.item()}

    def _value(self, hidden: torch.Tensor, rows: torch.Tensor) -> ValueBatch:
        return ValueBatch(self._head(hidden), self._old_values[rows], self._returns[rows])


class GroupLoss:
    """GRPO's and TGRPO's loss."""

    explained_variance = None

    def __init__(
        self,
        config: GroupConfig,
        trials: Sequence[RlTrial],
        reference: Sequence[torch.Tensor],
        device: torch.device,
    ) -> None:
        """Compare the trials of each group.

        Args:
            config: grouping and weights.
            trials: with their rewards and recorded log-probabilities.
            reference: (T, 7) of each trial under the reference.
            device: where the losses are computed.

        """
        if isinstance(config, TgrpoConfig):
            form = tgrpo_form(config.alpha_step, config.alpha_trial)
        else:
            form = FORMS[config.advantage]
        groups = [trial.state if config.group == 'state' else () for trial in trials]
        found = grouped_advantages([t.rewards for t in trials], groups, form, config.gamma)
        self.groups, self.zero_groups = found.groups, found.zero_groups
        self._config = config
        self._recorded = torch.cat([t.log_probs for t in trials]).to(device)
        self._advantages = torch.cat(found.advantages).to(device)
        self._reference = torch.cat(list(reference)).to(device)

    def whole(
        self, scored: ScoredSteps, rows: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the mean loss of some steps."""
        config = self._config
        batch = StepBatch(self._recorded[rows], self._advantages[rows])
        loss, metrics = grpo_loss(
            scored.log_probs, batch, config.options, self._reference[rows], config.kl_weight
        )
        return loss, metrics | {'entropy': scored.entropy.mean().item()}
