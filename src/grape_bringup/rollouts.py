"""Which episodes `grape demos`, `collect` and `evaluate` play, and what they make of them.

An episode's name and seed are functions of (run seed, task, initial state, trial), so that the
same command asks for the same episodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from grape_bringup.graph import EpisodeRequest
from grape_bringup.manifest import EpisodeRecord
from grape_bringup.pool import OnRecord, Pool
from grape_bringup.remote_policy import RemotePolicy
from grape_episode.contract import load_contract
from grape_episode.outcome import Outcome
from grape_episode.task_name import SEPARATOR
from grape_episode.version import code_version
from grape_policy_node.remote.options import is_url
from grape_trainer.evaluation import (
    EpisodeResult,
    assert_disjoint,
    evaluation_dict,
    read_result,
    training_states,
)

EXPERT_ATTEMPTS = 4


class RolloutError(ValueError):
    """Episodes that cannot be asked for; the text says what to give."""


def episode_seed(run_seed: int, task: str, init_state: int, trial: int) -> int:
    """Return the seed of one episode, 32 bits."""
    text = f'{run_seed}/{task}/{init_state}/{trial}'
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')


def round_seed(run_seed: int, round_: int) -> int:
    """Return the seed of the trials of round 1, 2, ...: each has its own."""
    return run_seed * 1000 + round_


def episode_name(run_seed: int, task: str, init_state: int, trial: int) -> str:
    """Return the episode's id, which is also its bag's folder name."""
    return f'{re.sub("[/:,=]", "_", task)}-i{init_state:02d}-t{trial}-s{run_seed}'


def trial_requests(
    cells: Sequence[tuple[str, int]],
    trials: int,
    run_seed: int,
    temperature: float,
    max_steps: int = 0,
) -> list[EpisodeRequest]:
    """Return `trials` episodes of the policy for each (task, initial state)."""
    return [
        EpisodeRequest(
            episode_id=episode_name(run_seed, task, state, trial),
            task=task,
            init_state=state,
            seed=episode_seed(run_seed, task, state, trial),
            temperature=temperature,
            max_steps=max_steps,
        )
        for task, state in cells
        for trial in range(trials)
    ]


def demo_requests(
    cells: Sequence[tuple[str, int]],
    run_seed: int,
    noise: float,
    max_steps: int = 0,
    trials: int = 1,
    controller: str = 'expert',
) -> list[EpisodeRequest]:
    """Return the expert's (or operator's) first attempts, `trials` for each (task, initial state).

    A demonstration may take EXPERT_ATTEMPTS, each with a trial number of its own.
    """
    numbers = trials * EXPERT_ATTEMPTS
    return [
        replace(request, controller=controller, action_noise=noise)
        for request in trial_requests(cells, numbers, run_seed, 0.0, max_steps)[::EXPERT_ATTEMPTS]
    ]


def next_attempt(
    requests: Sequence[EpisodeRequest], run_seed: int
) -> Callable[[EpisodeRecord], EpisodeRequest | None]:
    """Return a pool's follow-up: after a failure, the expert's next attempt."""
    begun = {  # any attempt's episode -> the first attempt and its trial number
        request.episode_id: (request, EXPERT_ATTEMPTS * demonstration)
        for same in _by_cell(requests).values()
        for demonstration, request in enumerate(same)
    }

    def follow_up(record: EpisodeRecord) -> EpisodeRequest | None:
        attempt = int(record.asked['expert_attempt']) + 1
        if record.outcome != Outcome.FAILURE or attempt >= EXPERT_ATTEMPTS:
            return None
        first, number = begun[record.episode_id]
        task, state, trial = record.task, record.init_state, number + attempt
        following = replace(
            first,
            episode_id=episode_name(run_seed, task, state, trial),
            seed=episode_seed(run_seed, task, state, trial),
            expert_attempt=attempt,
        )
        begun[following.episode_id] = (first, number)
        return following

    return follow_up


def _by_cell(requests: Sequence[EpisodeRequest]) -> dict[tuple[str, int], list[EpisodeRequest]]:
    cells: dict[tuple[str, int], list[EpisodeRequest]] = {}
    for request in requests:
        cells.setdefault((request.task, request.init_state), []).append(request)
    return cells


def check_cells(
    tasks: Sequence[str], init_states: Sequence[int], perturb: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Return every (task, initial state), with the suites' own names and the perturbations'.

    Raises:
        UnknownTaskError: no such task; the text lists the choices.
        PerturbationError: no such perturbation, likewise.
        RolloutError: no such initial state.

    """
    from sim_bridge.libero_tasks import load_task

    cells = []
    for task in tasks:
        with contextlib.redirect_stdout(io.StringIO()):  # LIBERO prints
            found = load_task(SEPARATOR.join([task, *perturb]))
        beyond = [state for state in init_states if state >= len(found.init_states)]
        if beyond:
            raise RolloutError(
                f'Task {task} has the initial states 0..{len(found.init_states) - 1}; got '
                f'{", ".join(map(str, beyond[:8]))}. Give --init-states within it.'
            )
        cells += [(found.name, state) for state in init_states]
    return cells


def check_policy(policy: Path, adapter: Path | None = None) -> None:
    """Check that a policy and an adapter folder are there, before anything is started.

    Raises:
        RolloutError: says what was expected and how to make one.

    """
    if is_url(policy):
        raise RolloutError(
            f"'{policy}' is a policy server; this command needs the weights themselves: a "
            "checkpoint folder. 'grape collect' and 'grape evaluate' take a server."
        )
    if not (policy / 'config.json').is_file():
        raise RolloutError(
            f"There is no policy in '{policy}' (no config.json); expected a checkpoint folder as "
            "'grape train sft --out DIR' writes it."
        )
    if adapter is not None and not (adapter / 'adapter_config.json').is_file():
        raise RolloutError(
            f"There is no adapter in '{adapter}' (no adapter_config.json); expected a folder as "
            "'grape train tpo --out DIR' writes it."
        )


def played_by(
    contract: str,
    rendering: str,
    policy: Path | RemotePolicy | None = None,
    adapter: Path | None = None,
    device: str = 'cpu',
) -> dict[str, object]:
    """Return what an episode is a function of, beside its request; kept in the manifest.

    The device changes a number's last bits; a shared engine and Ray change nothing else.
    """
    text = json.dumps(load_contract(contract).to_dict(), sort_keys=True)
    about: dict[str, object] = {
        'contract_sha256': hashlib.sha256(text.encode()).hexdigest(),
        'rendering': rendering,
    }
    if isinstance(policy, RemotePolicy):
        about |= policy.played_by()
    elif policy is not None:
        # Reads hundreds of libraries (5 s): not at the top.
        from grape_policy_node.adapters import BASE, adapter_id
        from grape_policy_node.openvla.checkpoint import folder_sha256

        about['policy_sha256'] = folder_sha256(policy)
        about['adapter_id'] = BASE if adapter is None else adapter_id(adapter)
        if device != 'cpu':
            about['device'] = device.partition(':')[0]
    return about


def learned_from(policy: Path | RemotePolicy, adapter: Path | None) -> set[tuple[str, int]]:
    """Return the (task, initial state) that a policy is known to have learned from."""
    if isinstance(policy, RemotePolicy):
        return set(policy.learned_from)
    return training_states(policy, adapter)


def evaluate(
    pool: Pool,
    cells: Sequence[tuple[str, int]],
    folder: Path,
    out_json: Path,
    policy: Path | RemotePolicy,
    adapter: Path | None = None,
    by: dict[str, object] | None = None,
    run_seed: int = 0,
    max_steps: int = 0,
    on_record: OnRecord = lambda record, done, total: None,
) -> dict[str, object]:
    """Play each cell once, greedily, and write the statistics.

    Args:
        pool: whose graphs run `policy`.
        cells: (task, initial state).
        folder: for the bags.
        out_json: for the statistics; see evaluation.evaluation_dict.
        policy: checkpoint folder, or a policy on a server.
        adapter: None for the base policy.
        by: of `played_by`.
        run_seed: names the episodes; a greedy policy draws nothing.
        max_steps: 0 for the suites' official limits.
        on_record: see `Pool.run`.

    Raises:
        InitStateError: the policy or the adapter has learned from some of the cells.

    """
    assert_disjoint(learned_from(policy, adapter), cells)
    by = by or {}
    requests = trial_requests(cells, 1, run_seed, 0.0, max_steps)
    records = pool.run(requests, folder, by, adapter, on_record)
    content = evaluation_dict(
        [_result(folder, record) for record in records],
        policy.name,
        str(by.get('adapter_id', '')),
    )
    for episode, record in zip(content['episodes'], records, strict=True):
        episode['bag'] = str((folder / record.bag).resolve()) if record.bag else ''
    content['config'] = {**by, 'temperature': 0.0, 'max_steps': max_steps, 'seed': run_seed}
    if isinstance(policy, RemotePolicy):
        content['training_states_unknown_of'] = list(policy.silent_about)
    content['code_version'] = code_version()
    out_json.parent.mkdir(parents=True, exist_ok=True)
    partial = out_json.with_name(out_json.name + '.partial')
    partial.write_text(json.dumps(content, indent=1) + '\n')
    partial.replace(out_json)
    return content


def _result(folder: Path, record: EpisodeRecord) -> EpisodeResult:
    if record.decided:
        return read_result(folder / record.bag)
    return EpisodeResult(record.task, record.init_state, record.outcome, record.steps)
