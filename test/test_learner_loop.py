"""The training loop on a small regression: schedule, clipping, resume, NaN, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grape_trainer.checkpointing import CheckpointError, load_state
from grape_trainer.learner import (
    Learner,
    StepResult,
    TrainingError,
    batch_indices,
    generator_for,
    lr_factor,
    steps_in,
)
from grape_trainer.run_folder import RunFolder, read_metrics
from grape_trainer.training_config import ConfigError, LearnerConfig, SftConfig, TpoConfig

CONFIG = LearnerConfig(lr=1e-2, batch_size=4, epochs=3, checkpoint_every=2, seed=5)
EXAMPLES = 10


def regression(folder, config=CONFIG, resume=True, before_step=lambda step: None, progress=None):
    """Fit a linear map; returns (FitResult, its weights). A stand-in for a policy."""
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 6)
        model.bias.zero_()
    x = torch.randn(EXAMPLES, 3, generator=torch.Generator().manual_seed(1))
    total = steps_in(config, EXAMPLES)
    with RunFolder(folder, 'test', config, {'data': 'abc'}, resume) as run:
        run.begin()
        learner = Learner(config, dict(model.named_parameters()), run, total, progress)

        def take_step(step):
            before_step(step)
            rows = batch_indices(config, step, EXAMPLES)
            noise = torch.randn(len(rows), 3, generator=generator_for(config.seed, 'noise', step))
            loss = (model(x[rows] + 0.1 * noise) - x[rows].sum(1, keepdim=True)).square().mean()
            loss.backward()
            return StepResult({'loss': loss.item()}, tuple(f'row {i}' for i in rows))

        result = learner.fit(take_step)
    return result, {n: p.detach().clone() for n, p in model.named_parameters()}


def test_each_epoch_visits_every_example_once():
    config = replace(CONFIG, batch_size=4)
    seen = [batch_indices(config, step, EXAMPLES) for step in range(6)]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(sum(epoch, [])) == list(range(EXAMPLES))
    assert seen[:3] != seen[3:]


def test_warm_up_rises_and_cosine_falls_to_zero():
    config = replace(CONFIG, schedule='cosine', warmup_steps=4)
    factors = [lr_factor(config, step, 104) for step in range(104)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[54] == pytest.approx(0.5)
    assert factors[-1] < 0.001


def test_run_paused_and_resumed_equals_the_unbroken_run_bit_for_bit(tmp_path):
    _, whole = regression(tmp_path / 'whole')

    def interrupt(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    first, _ = regression(tmp_path / 'broken', before_step=interrupt)
    assert first.interrupted and first.steps == 5
    second, resumed = regression(tmp_path / 'broken')
    assert not second.interrupted and second.steps == second.total_steps == 9
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)

    def curve(run):
        return [(m['step'], m['loss'], m['lr']) for m in read_metrics(tmp_path / run)]

    assert curve('whole') == curve('broken')


def test_run_killed_by_sigkill_resumes_bit_for_bit(tmp_path):
    _, whole = regression(tmp_path / 'whole')
    script = (
        'import sys, time; sys.path.insert(0, sys.argv[1]); import test_learner_loop as t\n'
        'from pathlib import Path\n'
        't.regression(Path(sys.argv[2]), before_step=lambda s: time.sleep(60 if s == 5 else 0))\n'
    )
    here = str(Path(__file__).parent)
    run = tmp_path / 'killed'
    child = subprocess.Popen([sys.executable, '-c', script, here, str(run)])
    try:
        deadline = time.monotonic() + 60
        while not _lines(run) == 5:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    state = load_state(run, _identity(run))
    assert state.step == 4  # one step after it was applied and logged, then lost with the kill
    _, resumed = regression(run)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert [m['step'] for m in read_metrics(run)] == list(range(1, 10))


def test_not_finite_gradient_stops_and_names_the_batch(tmp_path):
    model = torch.nn.Linear(2, 1)
    with RunFolder(tmp_path, 'test', CONFIG, {}) as run:
        learner = Learner(CONFIG, dict(model.named_parameters()), run, 3)

        def take_step(step):
            model(torch.ones(1, 2)).sum().backward()
            if step == 1:
                model.weight.grad[0, 0] = float('nan')
            return StepResult({'loss': 1.0}, ('pair 7 (chosen a, rejected b)',))

        with pytest.raises(TrainingError, match=r'step 1, in: pair 7 \(chosen a, rejected b\)'):
            learner.fit(take_step)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_gradient_above_the_limit_is_scaled_to_it(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(4))
    config = replace(CONFIG, max_grad_norm=1.0)
    seen = []
    with RunFolder(tmp_path, 'test', config, {}) as run:
        learner = Learner(config, {'p': parameter}, run, 1)

        def take_step(step):
            parameter.grad = torch.full((4,), 50.0)
            return StepResult({'loss': 1.0}, ())

        learner.fit(take_step, lambda step: seen.append(parameter.grad.norm().item()) or {})
    assert seen == [pytest.approx(1.0, abs=1e-5)]
    assert read_metrics(tmp_path)[0]['grad_norm'] == pytest.approx(100.0)


def test_stop_reason_ends_the_run_without_applying_the_step(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    with RunFolder(tmp_path, 'test', CONFIG, {}) as run:
        learner = Learner(CONFIG, {'p': parameter}, run, 5)

        def take_step(step):
            parameter.grad = torch.ones(2)
            return StepResult({'loss': 1.0}, (), stop='enough' if step == 2 else None)

        result = learner.fit(take_step)
    assert (result.steps, result.stopped, result.interrupted) == (2, 'enough', False)


def test_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path):
    regression(tmp_path)
    with pytest.raises(CheckpointError, match=r'config.lr: 0.01 there, 0.02 now'):
        regression(tmp_path, replace(CONFIG, lr=2e-2))
    result, _ = regression(tmp_path, replace(CONFIG, lr=2e-2), resume=False)
    assert result.steps == 9


def test_truncated_checkpoint_is_a_clear_error(tmp_path):
    regression(tmp_path)
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match='cannot be read.*Delete it'):
        regression(tmp_path)


def test_run_folder_says_what_made_it(tmp_path):
    seen = []
    regression(tmp_path, progress=seen.append)
    assert LearnerConfig.load(tmp_path / 'config.yaml') == CONFIG
    about = (tmp_path / 'run.json').read_text()
    assert all(word in about for word in ('"data": "abc"', 'code_version', '"seed": 5'))
    assert list((tmp_path / 'tensorboard').iterdir())
    assert [p.done for p in seen] == list(range(1, 10)) and seen[0].total == 9


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('learning_rate: 1', 'unknown keys learning_rate; TpoConfig knows: seed'),
        ('batch_size: many', "batch_size is 'many'; expected int"),
        ('batch_size: 0', 'batch_size is 0; expected 1 or more'),
        ('schedule: linear', 'expected one of: constant, cosine'),
        ('beta: -1', 'beta is -1'),
        ('- 1', 'holds a list'),
    ],
)
def test_configuration_errors_say_what_is_expected(tmp_path, text, message):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TpoConfig.load(path)


def test_defaults_are_the_papers():
    tpo, sft = TpoConfig(), SftConfig()
    assert (tpo.lr, tpo.batch_size, tpo.beta, tpo.lora_rank) == (2e-5, 16, 0.1, 32)
    assert (sft.lr, sft.batch_size) == (4e-5, 16)
    assert not tpo.per_step_mean and tpo.nll_weight == 0


def test_lr_written_without_a_dot_is_read_as_a_number(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('lr: 2e-5\nmax_steps: null\n')
    assert TpoConfig.load(path, {'epochs': 4}) == TpoConfig(epochs=4)


def _lines(run):
    path = run / 'metrics.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


def _identity(run):
    import json

    return json.loads((run / 'run.json').read_text())['identity']
