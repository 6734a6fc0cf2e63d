"""Proposes stages for the task of a recorded trial: a vision-language model's, or a template's.

    propose_stages('runs/bags/trial', out='stages.json', client=VlmClient(...))

Without a client the built-in template of the task is written, in the same form. The core of
`grape stages propose`. Nothing that a model writes is run here: `program_check` has it read by
the checker of cost programs, in its sandbox.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grape_episode.bag import read_episode
from grape_episode.version import code_version
from grape_trainer.scoring.cost_program import inspect_text
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.keypoint import KeypointTrack, SceneSource
from grape_trainer.scoring.stage_plan import plan_for
from grape_trainer.scoring.stage_proposal import (
    StageProposal,
    proposal_of_model,
    proposal_of_plan,
    write_proposal,
)
from grape_trainer.scoring.vlm import Check, VlmClient
from grape_trainer.scoring.vlm_prompt import NumberedKeypoint

# Environments publish the gripper's own pose under this name; it is no part of the task.
GRIPPER_KEYPOINT = 'gripper'

log = logging.getLogger(__name__)


def propose_stages(
    bag: Path | str,
    out: Path | str | None = None,
    client: VlmClient | None = None,
    *,
    template: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    track: KeypointTrack | None = None,
    check: Check | None = None,
) -> StageProposal:
    """Propose stages for the task of a recorded trial, and write them down.

    Args:
        bag: a trial; its first frame and keypoints stand for the task.
        out: where the proposal goes; None writes none. Untouched where nothing is proposed.
        client: the model; None: the built-in template.
        template: which one, without a client; None: by the goal or the instruction.
        images: what the model sees, (H, W, 3) uint8 RGB with numbered keypoints; None: the first
            frame as the policy saw it, where the numbers have to be told by their positions.
        track: keypoints; None: the recorded ones.
        check: looks at the cost program that the model proposes; its reason goes to the model.

    Raises:
        VlmError: no proposal that can be used.
        StageError: no template for the task.
        KeypointError, BagError: a trial that cannot be used.

    """
    shown = client is not None and images is None
    episode = read_episode(Path(bag), images=shown)
    track = SceneSource().track(episode) if track is None else track
    names = tuple(name for name in track.names if name != GRIPPER_KEYPOINT)
    info, version = episode.info, code_version()
    if client is None:
        plan = plan_for(info, track.names, template)
        proposal = proposal_of_plan(plan, info.task, info.instruction, names, version)
    else:
        pictures = [episode.policy_images()[0]] if images is None else list(images)
        keypoints = [
            NumberedKeypoint(name, tuple(map(float, track.position_m(name)[0]))) for name in names
        ]
        proposed = client.propose(info.instruction, pictures, keypoints, check)
        proposal = proposal_of_model(proposed, info.task, info.instruction, names, version)
        log.info('%d answers, %d from the cache', len(proposed.answers), proposed.cached)
    if out is not None:
        write_proposal(out, proposal)
    return proposal


def program_check(sandbox: CostSandbox) -> Check:
    """Return a check that refuses what the checker of cost programs refuses, with its reasons."""

    def check(text: str) -> str | None:
        return '\n'.join(map(str, inspect_text(text, sandbox).problems)) or None

    return check
