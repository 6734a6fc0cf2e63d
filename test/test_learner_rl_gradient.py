"""The gradient of losses over steps: exact in chunks, and where it goes."""

from pathlib import Path

import learner_policy
import numpy as np
import pytest
import torch

from grape_policy_node.engine import ScoredSteps
from grape_trainer.dataset import pixel_values
from grape_trainer.learner import generator_for
from grape_trainer.objective.value import new_value_head
from grape_trainer.rl_config import PpoConfig
from grape_trainer.rl_gradient import StepTable, accumulate_step_gradient, policy_score
from grape_trainer.rl_loss import PpoStepLoss
from grape_trainer.rl_trials import RlTrial
from grape_trainer.trajectory_gradient import NotFiniteError


class Setup:
    """A trainable policy with two trials of different instructions, 5 and 8 steps."""

    def __init__(self, reward=1.0):
        self.engine = learner_policy.fresh_engine()
        self.engine.adapters.new('trained', seed=0, rank=4, alpha=4)
        made = [learner_policy.made_up_trial(self.engine, n, s, i)
                for i, (n, s) in enumerate((('a', 5), ('b', 8)))]  # fmt: skip
        self.tokens = {trial.path: trial for trial in made}
        generator = torch.Generator().manual_seed(0)
        self.trials = [
            RlTrial(
                bag=trial.path,
                sha256='',
                task=trial.task,
                init_state=0,
                instruction=trial.instruction,
                success=True,
                on_policy=True,
                rewards=reward * torch.rand(trial.steps, generator=generator),
                log_probs=trial.log_probs,
            )
            for trial in made
        ]
        self.head = new_value_head(32, generator_for(0, 'value_head', 0))

    def loss(self, **options):
        config = PpoConfig(normalise_advantages=False, **options)
        values = [torch.zeros(len(trial.rewards)) for trial in self.trials]
        return PpoStepLoss(config, self.trials, values, self.head, torch.device('cpu'))

    def gradients(self, loss, rows, chunk_steps, score=None):
        """Return the gradients of the adapter and of the head, flat, and the metrics."""
        weights = self.engine.adapters.parameters('trained')
        for weight in (*weights, *self.head.parameters()):
            weight.grad = None
        metrics = accumulate_step_gradient(
            rows, StepTable.of(self.trials), self.tokens.__getitem__,
            score or policy_score(self.engine), loss, chunk_steps,
        )  # fmt: skip
        flat = [
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                       for p in group])
            for group in (weights, list(self.head.parameters()))
        ]  # fmt: skip
        return *flat, metrics


def test_chunks_of_any_size_give_the_gradient_of_the_whole_batch():
    setup = Setup()
    rows = [12, 0, 3, 7, 4, 9]  # steps 0, 3, 4 of the first trial, 2, 4, 7 of the second
    whole = setup.gradients(setup.loss().whole, rows, 100)
    small = setup.gradients(setup.loss().whole, rows, 1)
    for found, expected in zip(small[:2], whole[:2], strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert small[2] == pytest.approx(whole[2], rel=1e-4, abs=1e-6)


def test_zero_advantages_leave_the_policy_unchanged():
    setup = Setup(reward=0.0)
    loss = setup.loss(shared_backbone=False).whole
    adapter, _, metrics = setup.gradients(loss, range(13), 4)
    assert not adapter.any() and metrics['loss/policy_avg'] == 0.0
    # With the backbone shared, what is left is the value loss.
    adapter, head, _ = setup.gradients(setup.loss().whole, range(13), 4)
    assert adapter.any() and head.any()


def test_warming_up_trains_the_value_head_alone():
    setup = Setup()
    adapter, head, metrics = setup.gradients(setup.loss().warm_up, range(13), 4)
    assert not adapter.any() and head.any()
    assert set(metrics) == {'loss', 'loss/value_avg'}


def test_scored_steps_are_those_of_the_trajectory_and_the_prompts_last_state():
    setup = Setup()
    trial = setup.tokens[Path('b')]
    engine = setup.engine
    pixels = pixel_values(torch.from_numpy(trial.images), engine.processor.pixels)
    with torch.no_grad():
        scored = engine.score_steps(pixels, trial.instruction, trial.token_ids)
        expected = engine.trajectory_log_probs(pixels, trial.instruction, trial.token_ids)
        prompt = engine.processor.prompts((trial.instruction,))[0].expand(8, -1)
        embeds, _ = engine.model.embed(pixels, prompt)
        last = engine.model.language_model.model(inputs_embeds=embeds).last_hidden_state[:, -1]
        logits = engine.model.language_model.lm_head(last).float()
    assert torch.equal(scored.log_probs, expected)
    torch.testing.assert_close(scored.hidden, last, rtol=1e-4, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(scored.entropy[:, 0], entropy, rtol=1e-4, atol=1e-5)


def test_log_probability_that_is_not_finite_names_the_bag_and_the_step():
    setup = Setup()

    def broken(images, instruction, token_ids):
        log_probs = torch.zeros(len(images), 7, requires_grad=True).clone()
        log_probs[-1, 2] = np.nan
        return ScoredSteps(log_probs, log_probs, torch.zeros(len(images), 32))

    with pytest.raises(NotFiniteError, match=r"bag 'b', control step 7"):
        setup.gradients(setup.loss().whole, [12], 4, broken)
