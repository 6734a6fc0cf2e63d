"""What test_learner_distributed.py runs in each of two processes; results go to a JSON file."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import learner_policy
import torch

from grape_trainer.checkpointing import load_state
from grape_trainer.dataset import BagPair
from grape_trainer.distributed import join_ranks
from grape_trainer.objective.tpo import TpoOptions
from grape_trainer.preference_run import policy_log_probs
from grape_trainer.train_dpo import train_dpo
from grape_trainer.train_sft import train_sft
from grape_trainer.train_tpo import train_tpo
from grape_trainer.training_config import DpoConfig, SftConfig, TpoConfig
from grape_trainer.trajectory_gradient import NotFiniteError, accumulate_gradient

# Nine steps: batches of 16 rows, the last of an epoch smaller; shifts and light are drawn.
SFT = SftConfig(
    lr=3e-3, batch_size=16, micro_batch_size=5, max_steps=9, held_out_episodes=1,
    validate_every=4, torch_threads=1, shift_px=1, brightness=0.1, checkpoint_every=2,
)  # fmt: skip
LORA = replace(SFT, trainable='lora', lora_rank=4, lora_alpha=4)
# Three pairs in batches of two and one, trials of 7 to 12 steps in chunks of at most 4.
TPO = TpoConfig(
    lr=1e-3, batch_size=2, epochs=4, lora_rank=4, lora_alpha=4, chunk_steps=4, torch_threads=1,
    checkpoint_every=1,
)  # fmt: skip

DPO = DpoConfig(
    lr=1e-3, batch_size=2, epochs=2, lora_rank=4, lora_alpha=4, chunk_steps=4, torch_threads=1
)


def sft(work: Path, out: Path, config: SftConfig, **options: object):
    """Train from scratch, or with LoRA on the policy."""
    start = {'architecture': work / 'mini.yaml'}
    if config.trainable == 'lora':
        start = {'init_policy': work / 'policy'}
    return train_sft(config, [work / 'demos'], out, **start, **options)


def tpo(work: Path, out: Path, config: TpoConfig, **options: object):
    """Train on the three pairs."""
    return train_tpo(config, work / 'policy', work / 'pairs.json', out, **options)


def dpo(work: Path, out: Path, config: DpoConfig):
    """Train on the three pairs by an objective that needs two passes."""
    return train_dpo(config, work / 'policy', work / 'pairs.json', out)


def main(work: Path) -> None:
    """Run all cases, one after the other, in this process of two."""
    rank = int(os.environ['RANK'])
    out = work / 'two'
    fsdp = {'parallel': 'fsdp', 'gradient_checkpointing': True}
    sft(work, out / 'sft', SFT)
    sft(work, out / 'sft_fsdp', replace(LORA, **fsdp))
    tpo(work, out / 'tpo', TPO)
    tpo(work, out / 'tpo_fsdp', replace(TPO, **fsdp))
    dpo(work, out / 'dpo_fsdp', replace(DPO, **fsdp))
    tpo(work, out / 'begun_by_one', TPO)
    found = {'interrupted': _interrupted_in_the_second(work, out / 'begun_by_two', rank)}
    ranks = join_ranks(TPO)
    found |= _primitives(ranks) | {'not_finite': _not_finite(ranks)}
    (work / f'found-{rank}.json').write_text(json.dumps(found))


def interrupt_at(step: int):
    """Return a progress callback that sends this process a Ctrl-C after a step."""

    def show(progress) -> None:
        if progress.phase == 'train' and progress.done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return show


def _interrupted_in_the_second(work: Path, out: Path, rank: int) -> list:
    result = tpo(work, out, TPO, progress=interrupt_at(3) if rank == 1 else None)
    state = load_state(out, json.loads((out / 'run.json').read_text())['identity'])
    return [result.interrupted, result.steps, state.step]


def _primitives(ranks) -> dict:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    # The first has a gradient in both processes, the second in one, the third in none.
    parameters[0].grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.rank == 1:
        parameters[1].grad = torch.tensor([5.0, 7.0])
    ranks.sum_gradients(parameters)
    raised = None
    try:
        ranks.raise_together(ValueError('of the second') if ranks.rank == 1 else None)
    except ValueError as error:
        raised = str(error)
    return {
        'gradients': [None if p.grad is None else p.grad.tolist() for p in parameters],
        'share': ranks.share('abcde'),
        'padded': replace(ranks, in_step=True).share('abcde'),
        'joined': ranks.join([x for x, _ in ranks.share('abcde')]),
        'metrics': ranks.sum_metrics({'both': 1.0, f'of {ranks.rank}': 2.0}),
        'raised': raised,
    }


def _not_finite(ranks) -> str:
    """A NaN in a chunk that the second process alone runs."""
    engine = learner_policy.fresh_engine()
    trials = {
        Path(n): learner_policy.made_up_trial(engine, n, 8, seed) for seed, n in enumerate('ab')
    }
    plain = policy_log_probs(engine)

    def broken(trial, start, stop):
        values = plain(trial, start, stop)
        return values * float('nan') if trial.episode_id == 'b' and start == 4 else values

    pair = BagPair('pair 7', Path('a'), Path('b'))
    reference = {path: trial.log_probs for path, trial in trials.items()}
    try:
        accumulate_gradient([pair], trials.get, broken, reference, TpoOptions(), 4, ranks=ranks)
    except NotFiniteError as error:
        return str(error)
    return ''


if __name__ == '__main__':
    main(Path(sys.argv[1]))
