"""Compare our model with what the reference implementation computed for the same folder.

Pixels, logits and log-probabilities by their largest difference, tokens by how many differ,
actions after un-normalising, all in float32 on the CPU and through the engine that acts.

One number is in no file: the rotary frequencies. A reference that was cast as a whole
(``model.to(torch.bfloat16)``, later back to float32) has rounded ones; one whose weights were
loaded in a dtype has exact ones, as ours has when it acts. Which of them the reference had shows
only in its logits, so both are tried, exact ones first, and the report says which matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from grape_policy_node.engine import Engine
from grape_policy_node.openvla.checkpoint import (
    Checkpoint,
    load_checkpoint,
    with_adapter_statistics,
)
from grape_policy_node.openvla.folder import CheckpointError
from grape_policy_node.openvla.golden import (
    IDS,
    OUTPUTS,
    PIXELS,
    GoldenFile,
    golden_sizes,
    golden_unnorm_key,
    read_golden_files,
)
from grape_policy_node.openvla.hub import resolve_folder
from grape_policy_node.openvla.model import OpenVLAConfig

TOLERANCES = {
    PIXELS: 1e-6,
    'projected_patches': 1e-4,
    'last_logits': 1e-4,
    'action_token_logits': 1e-4,
    'greedy_logprobs': 1e-4,
    'greedy_tokens': 0.0,
    'action': 1e-9,
}
FREQUENCIES = {
    'exact': torch.float32,
    'rounded to bfloat16': torch.bfloat16,
    'rounded to float16': torch.float16,
}
NO_STATISTICS = {'none': {'action': {'q01': [-1.0] * 7, 'q99': [1.0] * 7}}}


@dataclass(frozen=True)
class Comparison:
    """One quantity over all cases of a golden file.

    Attributes:
        quantity: its name there.
        cases: how many have it.
        largest: absolute difference; for tokens, how many differ.
        tolerance: the largest one that is accepted.
    """

    quantity: str
    cases: int
    largest: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is small enough; NaN is not."""
        return self.largest <= self.tolerance


@dataclass(frozen=True)
class FileReport:
    """A golden file against our model.

    Attributes:
        file: name of the golden file.
        frequencies: a key of FREQUENCIES: which rotary frequencies these comparisons are of.
        comparisons: one a quantity.
        notes: what a reader should know beside the numbers.
    """

    file: str
    frequencies: str
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every quantity is."""
        return all(comparison.ok for comparison in self.comparisons)


def verify_folder(folder: str | Path) -> list[FileReport]:
    """Compare a checkpoint folder with all its golden files.

    Args:
        folder: checkpoint with golden files beside it (see golden.py), or a hub id.

    Raises:
        CheckpointError: the folder, its golden files or its adapter cannot be used.
    """
    folder = resolve_folder(folder)
    sizes = golden_sizes(folder)
    return [_verify_file(folder, file, sizes) for file in read_golden_files(folder)]


def _verify_file(
    folder: Path, file: GoldenFile, sizes: Sequence[Mapping[str, object]] | None
) -> FileReport:
    tried: list[FileReport] = []
    for frequencies, rotary in FREQUENCIES.items():
        checkpoint = load_checkpoint(folder, vision_configs=sizes, rotary_dtype=rotary)
        tried.append(_compare(checkpoint, file, frequencies, golden_unnorm_key(folder)))
        if tried[-1].ok:
            break
    if not tried[-1].ok:
        nearest = min(tried, key=_logit_difference)
        others = [f'{t.frequencies} {_logit_difference(t):.1e}' for t in tried]
        note = f'no rotary frequencies match; largest differences of logits: {", ".join(others)}'
        return replace(nearest, notes=(*nearest.notes, note))
    found = tried[-1]
    if len(tried) > 1:
        note = (
            f'with exact rotary frequencies the logits differ by {_logit_difference(tried[0]):.1e}'
            f'; the reference had them {found.frequencies}. The policy acts with exact ones, as '
            'the published model does.'
        )
        found = replace(found, notes=(*found.notes, note))
    return found


def _logit_difference(report: FileReport) -> float:
    """Largest difference of what hangs on the rotary frequencies; infinite for NaN."""
    logits = [c.largest for c in report.comparisons if c.quantity.endswith('logits')]
    values = logits or [c.largest for c in report.comparisons if c.quantity == 'greedy_logprobs']
    return max((v if np.isfinite(v) else np.inf for v in values), default=0.0)


def _compare(
    checkpoint: Checkpoint, file: GoldenFile, frequencies: str, unnorm_key: str | None
) -> FileReport:
    if file.adapter is not None:
        checkpoint = with_adapter_statistics(checkpoint, file.adapter)
        unnorm_key = None if checkpoint.statistics_from else unnorm_key
    if not checkpoint.statistics:
        checkpoint = replace(checkpoint, statistics=NO_STATISTICS)
    engine = Engine(checkpoint, unnorm_key or sorted(checkpoint.statistics)[0])
    engine.set_adapter(engine.load_adapter(file.adapter) if file.adapter else 'base')
    differences: dict[str, list[float]] = {}
    tokens: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    notes: list[str] = []
    for case, golden in file.cases.items():
        try:
            ours = _ours(engine, golden)
        except (ValueError, FloatingPointError) as error:
            raise CheckpointError(f'{file.path}: case {case}: {error}') from error
        for quantity in (PIXELS, *OUTPUTS):
            if quantity == 'action' or quantity not in golden or quantity not in ours:
                continue
            differences.setdefault(quantity, []).append(
                _difference(quantity, ours[quantity], golden[quantity], file.path, case)
            )
        if 'action' in golden:
            tokens.append(ours['greedy_tokens'].numpy())
            actions.append(golden['action'].double().numpy())
    comparisons = [
        Comparison(name, len(values), float(np.max(values)), TOLERANCES[name])
        for name, values in differences.items()
    ]
    if actions:
        key, largest = _nearest_statistics(engine, tokens, actions, unnorm_key)
        comparisons.append(Comparison('action', len(actions), largest, TOLERANCES['action']))
        notes.append(f"actions are un-normalised with '{key}'")
    strangers = [
        case
        for case, golden in file.cases.items()
        if not _are_actions(golden.get('greedy_tokens', torch.empty(0)), checkpoint.model.spec)
    ]
    if strangers:
        notes.append(
            f'greedy_tokens of cases {", ".join(strangers)} are the likeliest of all words and '
            f'no action ids; the policy chooses among the {checkpoint.model.spec.action_bins} '
            'action ids'
        )
    if file.unknown:
        notes.append(f'not compared: {", ".join(file.unknown)}')
    return FileReport(file.path.name, frequencies, tuple(comparisons), tuple(notes))


@torch.no_grad()
def _ours(engine: Engine, golden: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute every quantity for one case, from the reference's pixels where it has some."""
    model, spec = engine.model, engine.model.spec
    ours: dict[str, torch.Tensor] = {}
    if 'image' in golden:
        ours[PIXELS] = engine.processor.pixel_values([golden['image'].numpy()])[0]
    pixels = golden.get(PIXELS, ours.get(PIXELS)).float()[None]
    ids = golden[IDS].long()[None]
    if int(ids.max()) >= spec.llama.vocab_size or int(ids.min()) < 0:
        raise ValueError(
            f'{IDS} run from {int(ids.min())} to {int(ids.max())}; the model has the words '
            f'0..{spec.llama.vocab_size - 1}'
        )
    ours['projected_patches'] = model.projected_patches(pixels)[0]
    if 'last_logits' in golden:
        ours['last_logits'] = model(pixels, ids)[0, -1]
    tokens = golden.get('greedy_tokens')
    first, stop = spec.vocab_size - spec.action_bins, spec.vocab_size
    if tokens is not None:
        tokens = tokens.long()
        logits = model.action_logits(pixels, ids, tokens[None])[0]
        ours['action_token_logits'] = logits[:, first:stop]
    if tokens is not None and not _are_actions(tokens, spec):
        # Each is the likeliest word after the reference's own ones: greedy, step by step.
        ours['greedy_tokens'] = logits.argmax(dim=-1)
        ours['greedy_logprobs'] = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        return ours
    prediction = engine.predict_ids(pixels, ids)[0]
    ours['greedy_tokens'] = torch.from_numpy(prediction.token_ids)
    ours['greedy_logprobs'] = torch.from_numpy(prediction.log_probs)
    return ours


def _are_actions(tokens: torch.Tensor, spec: OpenVLAConfig) -> bool:
    first, stop = spec.vocab_size - spec.action_bins, spec.vocab_size
    return bool(((tokens >= first) & (tokens < stop)).all())


def _difference(
    quantity: str, ours: torch.Tensor, golden: torch.Tensor, path: Path, case: str
) -> float:
    if ours.shape != golden.shape:
        raise CheckpointError(
            f'{path}: case {case}: {quantity} is {tuple(golden.shape)}; this checkpoint gives '
            f'{tuple(ours.shape)}'
        )
    if quantity == 'greedy_tokens':
        return float((ours != golden).sum())
    return float((ours.double() - golden.double()).abs().max())


def _nearest_statistics(
    engine: Engine,
    tokens: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    unnorm_key: str | None,
) -> tuple[str, float]:
    """Return the statistics that reproduce the actions best, and the largest difference."""
    tokenizer = engine.action_tokenizer
    # As the reference does: words that are no actions count as the nearest one.
    index = np.clip(tokenizer.vocab_size - np.stack(tokens) - 1, 0, tokenizer.bins - 2)
    normalised = tokenizer.centres[index]
    keys = [unnorm_key] if unnorm_key else sorted(engine.checkpoint.statistics)
    found = {}
    for key in keys:
        _, statistics = engine.checkpoint.norm_stats(key)
        ours = statistics.unnormalise(normalised)
        found[key] = float(np.abs(ours - np.stack(actions)).max())
    return min(found.items(), key=lambda item: item[1])
