"""What one pair costs TPO: seconds and peak memory over the trials' length.

    .venv/bin/python bench/bench_tpo.py [--json out.json]

On a fresh grape-tiny with an adapter and made-up trials:

one_pass  what trains where an adapter's gradient is small: trajectory_gradient.py
two_pass  what trains where it is not
naive     one graph over all steps of both trials, in batches of a whole trial
plain     two models, policy and reference, and one step at a time, as published code has it; the
          graph of all steps is kept, because the loss needs both trials' sums

All give the same gradient. Each cell runs in a process of its own, whose peak resident memory is
read from the kernel; CPU seconds are told beside the clock's, which other work on the machine
stretches. The first two have the reference's log-probabilities, computed once a run; that pass
costs what two_pass costs more than one_pass. A cell whose memory, extrapolated from the two
before, is above --limit-gib is not run, and says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import Checkpoint
from grape_policy_node.openvla.tiny import build_tiny
from grape_trainer.dataset import BagPair, TokenTrial
from grape_trainer.objective.tpo import PairBatch, TpoOptions, tpo_loss
from grape_trainer.preference_run import policy_log_probs
from grape_trainer.trajectory_gradient import LogProbs, accumulate_gradient

ARCHITECTURE = Path(__file__).resolve().parents[1] / 'config' / 'policy' / 'grape_tiny.yaml'
INSTRUCTION = 'pick up the alphabet soup and place it in the basket'
METHODS = ('one_pass', 'two_pass', 'naive', 'plain')
PAIR = BagPair('pair 0', Path('chosen'), Path('rejected'))


@dataclass(frozen=True)
class Cell:
    """One measurement; `above_start_mib` is the peak beyond the loaded model and data."""

    method: str
    steps: int
    seconds: float | None
    cpu_seconds: float | None
    peak_mib: float | None
    above_start_mib: float | None
    note: str = ''


def main() -> None:
    """Measure all cells and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--steps', type=int, nargs='+', default=[50, 100, 200, 400])
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    parser.add_argument('--chunk-steps', type=int, default=25)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--limit-gib', type=float, default=8.0)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--cell', nargs=2, metavar=('METHOD', 'STEPS'), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        torch.set_num_threads(options.threads)
        cell = measure(options.cell[0], int(options.cell[1]), options.chunk_steps)
        sys.stdout.write(json.dumps(asdict(cell)) + '\n')
        return
    cells = [cell for method in options.methods for cell in _row(method, options)]
    Console().print(_table(cells, options))
    if options.json:
        about = {'chunk_steps': options.chunk_steps, 'threads': options.threads}
        about |= {'torch': torch.__version__, 'architecture': ARCHITECTURE.name}
        text = json.dumps({**about, 'cells': [asdict(c) for c in cells]}, indent=2)
        options.json.write_text(text + '\n')


def measure(method: str, steps: int, chunk_steps: int) -> Cell:
    """Time one pair of `steps`-step trials after a warm-up, in this process."""
    engine = Engine(fresh_policy())
    engine.adapters.new('trained', seed=0)
    trials = {bag: made_up(engine, bag, steps) for bag in (PAIR.chosen, PAIR.rejected)}
    reference = {bag: torch.full((steps, 7), -6.9) for bag in trials}
    known = {'one_pass': _one_pass, 'two_pass': _two_pass, 'naive': _naive}
    run = known.get(method) or _Plain()
    short = {bag: made_up(engine, bag, 2) for bag in trials}
    run(engine, short, {bag: reference[bag][:2] for bag in trials}, chunk_steps)
    before = peak_mib()
    started, cpu_started = time.monotonic(), time.process_time()
    run(engine, trials, reference, chunk_steps)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    return Cell(method, steps, seconds, cpu_seconds, peak_mib(), peak_mib() - before)


def _two_pass(engine, trials, reference, chunk_steps) -> None:
    accumulate_gradient(
        [PAIR], trials.get, policy_log_probs(engine), reference, TpoOptions(), chunk_steps
    )


def _one_pass(engine, trials, reference, chunk_steps) -> None:
    accumulate_gradient(
        [PAIR], trials.get, policy_log_probs(engine), reference, TpoOptions(), chunk_steps,
        parameters=engine.adapters.parameters('trained'),
    )  # fmt: skip


class _Plain:
    """Two models in memory, a forward pass of each for every step."""

    def __init__(self) -> None:
        self._reference = Engine(fresh_policy())

    def __call__(self, engine, trials, reference, chunk_steps) -> None:
        policy, other = policy_log_probs(engine), policy_log_probs(self._reference)

        def total(log_probs: LogProbs, bag: Path) -> torch.Tensor:
            steps = range(trials[bag].steps)
            return torch.stack([log_probs(trials[bag], t, t + 1).sum() for t in steps]).sum()[None]

        with torch.no_grad():
            ratios = [total(other, bag) for bag in (PAIR.chosen, PAIR.rejected)]
        steps = torch.tensor([float(trials[PAIR.chosen].steps)])
        batch = PairBatch(
            total(policy, PAIR.chosen), total(policy, PAIR.rejected), *ratios,
            steps, steps, 7 * steps,
        )  # fmt: skip
        tpo_loss(batch, TpoOptions())[0].backward()


def _naive(engine, trials, reference, chunk_steps) -> None:
    log_probs = policy_log_probs(engine)

    def total(bag: Path) -> torch.Tensor:
        return log_probs(trials[bag], 0, trials[bag].steps).sum()[None]

    steps = torch.tensor([float(trials[PAIR.chosen].steps)])
    batch = PairBatch(
        total(PAIR.chosen), total(PAIR.rejected), reference[PAIR.chosen].sum()[None],
        reference[PAIR.rejected].sum()[None], steps, steps, 7 * steps,
    )  # fmt: skip
    tpo_loss(batch, TpoOptions())[0].backward()


def fresh_policy() -> Checkpoint:
    """Return grape-tiny with random weights."""
    statistics = {'q01': [-1.0] * 7, 'q99': [1.0] * 7, 'mask': [True] * 6 + [False]}
    return build_tiny(ARCHITECTURE, [INSTRUCTION], {'grape': {'action': statistics}}, seed=0)


def made_up(engine: Engine, bag: Path, steps: int) -> TokenTrial:
    """Return a trial of random frames and tokens."""
    generator = np.random.default_rng(steps)
    size, tokens = engine.processor.pixels.image_size, engine.action_tokenizer
    return TokenTrial(
        episode_id=bag.name,
        path=bag,
        task='made up',
        init_state=0,
        instruction=INSTRUCTION,
        adapter_id='base',
        images=generator.integers(0, 256, (steps, size, size, 3), dtype=np.uint8),
        token_ids=torch.from_numpy(
            generator.integers(tokens.first_id, tokens.vocab_size, (steps, 7))
        ),
        log_probs=torch.zeros(steps, 7),
    )


def _row(method: str, options: argparse.Namespace) -> list[Cell]:
    cells: list[Cell] = []
    for steps in options.steps:
        expected = _extrapolate(cells, steps)
        if expected is not None and expected > options.limit_gib * 1024:
            note = f'not run: about {expected / 1024:.1f} GiB expected'
            cells.append(Cell(method, steps, None, None, None, None, note))
            continue
        command = [sys.executable, __file__, '--cell', method, str(steps)]
        command += ['--chunk-steps', str(options.chunk_steps), '--threads', str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f'{method} at {steps} steps failed:\n{done.stderr}')
        cells.append(Cell(**json.loads(done.stdout.splitlines()[-1])))
    return cells


def _extrapolate(cells: list[Cell], steps: int) -> float | None:
    """Peak MiB on the line through the last two measured cells."""
    known = [c for c in cells if c.peak_mib is not None][-2:]
    if len(known) < 2:
        return None
    slope = (known[1].peak_mib - known[0].peak_mib) / (known[1].steps - known[0].steps)
    return known[1].peak_mib + slope * (steps - known[1].steps)


def peak_mib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _table(cells: list[Cell], options: argparse.Namespace) -> Table:
    table = Table(
        title=f'One pair, grape-tiny, {options.threads} threads, chunks of {options.chunk_steps}'
    )
    numeric = ('steps a trial', 's a pair', 'CPU s a pair', 'peak MiB', 'above start MiB')
    for name in ('method', *numeric, 'note'):
        table.add_column(name, justify='left' if name in ('method', 'note') else 'right')
    for c in cells:
        numbers = [
            '' if value is None else f'{value:.{digits}f}'
            for value, digits in (
                (c.seconds, 2),
                (c.cpu_seconds, 2),
                (c.peak_mib, 0),
                (c.above_start_mib, 0),
            )
        ]
        table.add_row(c.method, str(c.steps), *numbers, c.note)
    return table


if __name__ == '__main__':
    main()
