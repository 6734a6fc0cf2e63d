"""What one pair costs TPO: seconds and peak memory over the trials' length.

    .venv/bin/python bench/bench_tpo.py [--json out.json]

Whole-trajectory gradients by two passes (trajectory_gradient.py) against the naive loss that
keeps the graph of all steps, on a fresh grape-tiny and made-up trials. Each cell runs in a process
of its own, whose peak resident memory is read from the kernel. A naive cell whose memory,
extrapolated from the two before, is above --limit-gib is not run, and says so.
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
from grape_policy_node.openvla.tiny import build_tiny
from grape_trainer.dataset import BagPair, TokenTrial
from grape_trainer.objective.tpo import PairBatch, TpoOptions, tpo_loss
from grape_trainer.train_tpo import policy_log_probs
from grape_trainer.trajectory_gradient import accumulate_gradient

ARCHITECTURE = Path(__file__).resolve().parents[1] / 'config' / 'policy' / 'grape_tiny.yaml'
INSTRUCTION = 'pick up the alphabet soup and place it in the basket'
METHODS = ('two_pass', 'naive')
PAIR = BagPair('pair 0', Path('chosen'), Path('rejected'))


@dataclass(frozen=True)
class Cell:
    """One measurement; `above_start_mib` is the peak beyond the loaded model and data."""

    method: str
    steps: int
    seconds: float | None
    peak_mib: float | None
    above_start_mib: float | None
    note: str = ''


def main() -> None:
    """Measure all cells and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--steps', type=int, nargs='+', default=[50, 100, 200, 400])
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
    cells = [cell for method in METHODS for cell in _row(method, options)]
    Console().print(_table(cells, options))
    if options.json:
        about = {'chunk_steps': options.chunk_steps, 'threads': options.threads}
        about |= {'torch': torch.__version__, 'architecture': ARCHITECTURE.name}
        text = json.dumps({**about, 'cells': [asdict(c) for c in cells]}, indent=2)
        options.json.write_text(text + '\n')


def measure(method: str, steps: int, chunk_steps: int) -> Cell:
    """Time one pair of `steps`-step trials after a warm-up, in this process."""
    statistics = {'q01': [-1.0] * 7, 'q99': [1.0] * 7, 'mask': [True] * 6 + [False]}
    checkpoint = build_tiny(ARCHITECTURE, [INSTRUCTION], {'grape': {'action': statistics}}, seed=0)
    engine = Engine(checkpoint)
    engine.adapters.new('trained', seed=0)
    trials = {bag: _made_up(engine, bag, steps) for bag in (PAIR.chosen, PAIR.rejected)}
    reference = {bag: torch.full((steps, 7), -6.9) for bag in trials}
    run = {'two_pass': _two_pass, 'naive': _naive}[method]
    short = {bag: _made_up(engine, bag, 2) for bag in trials}
    run(engine, short, {bag: reference[bag][:2] for bag in trials}, chunk_steps)
    before = _peak_mib()
    started = time.monotonic()
    run(engine, trials, reference, chunk_steps)
    seconds = time.monotonic() - started
    return Cell(method, steps, seconds, _peak_mib(), _peak_mib() - before)


def _two_pass(engine, trials, reference, chunk_steps) -> None:
    accumulate_gradient(
        [PAIR], trials.get, policy_log_probs(engine), reference, TpoOptions(), chunk_steps
    )


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


def _made_up(engine: Engine, bag: Path, steps: int) -> TokenTrial:
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
        if method == 'naive' and expected is not None and expected > options.limit_gib * 1024:
            note = f'not run: about {expected / 1024:.1f} GiB expected'
            cells.append(Cell(method, steps, None, None, None, note))
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


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _table(cells: list[Cell], options: argparse.Namespace) -> Table:
    table = Table(
        title=f'One pair, grape-tiny, {options.threads} threads, chunks of {options.chunk_steps}'
    )
    for name in ('method', 'steps a trial', 's a pair', 'peak MiB', 'above start MiB', 'note'):
        table.add_column(name, justify='left' if name in ('method', 'note') else 'right')
    for c in cells:
        numbers = [
            '' if value is None else f'{value:.{digits}f}'
            for value, digits in ((c.seconds, 2), (c.peak_mib, 0), (c.above_start_mib, 0))
        ]
        table.add_row(c.method, str(c.steps), *numbers, c.note)
    return table


if __name__ == '__main__':
    main()
