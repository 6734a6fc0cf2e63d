"""A file of costs: a cost program, or a proposal of stages that has costs of its own.

What a person approves is the whole text of the file, so that a proposal whose stages were changed
is another one, too. An approved text is kept with its approval: where the file was changed since,
is refused or is gone, trials stay scorable with the text that was approved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from grape_trainer.scoring.cost_approval import (
    ApprovalError,
    approval_of,
    approved_text,
    read_approvals,
    require_approval,
)
from grape_trainer.scoring.cost_program import Program, inspect_text
from grape_trainer.scoring.cost_sandbox import CostSandbox
from grape_trainer.scoring.cost_source import ProgramError, read_text
from grape_trainer.scoring.objective_sections import ProgramSettings
from grape_trainer.scoring.stage_proposal import (
    ProposalError,
    StageProposal,
    parse_proposal,
    read_proposal_text,
)

PROPOSAL = 'proposal'  # as a notation: costs inside the JSON of proposed stages


@dataclass(frozen=True)
class CostFile:
    """What a file holds."""

    path: Path
    program: Program  # its text and sha256 are those of the whole file
    proposal: StageProposal | None  # the stages that the costs are for; None: a template's
    stages_sha256: str = ''  # of the proposal, where that is another file


def load_costs(
    path: Path, sandbox: CostSandbox, stages: Path | None = None, text: str | None = None
) -> CostFile:
    """Read and check a file of costs.

    Args:
        path: of a program or of a proposal.
        sandbox: where costs are parsed.
        stages: a proposal whose stages the costs are for; its own costs are not looked at.
        text: instead of the file's, one that was approved.

    Raises:
        ProgramError: the costs are refused; says where and why.
        ProposalError: a proposal that cannot be used, or that has no costs.

    """
    if stages is not None:
        content = read_proposal_text(stages)
        program = _program(path, sandbox, text)
        return CostFile(path, program, parse_proposal(content, stages), _sha256(content))
    if not _holds_proposal(path, text):
        return CostFile(path, _program(path, sandbox, text), None)
    text = read_proposal_text(path) if text is None else text
    proposal = parse_proposal(text, path)
    if not proposal.program:
        raise ProposalError(
            f"'{path}' has stages without costs (of {proposal.origin.kind} "
            f'{proposal.origin.template}). Give their costs with --costs, or score with an '
            'objective of that template, which has them.'
        )
    inner = inspect_text(proposal.program, sandbox).program(f"the costs in '{path}'")
    functions = tuple(replace(function, line=None) for function in inner.functions)
    whole = replace(inner, functions=functions, notation=PROPOSAL, text=text, sha256=_sha256(text))
    return CostFile(path, whole, proposal)


def load_approved(settings: ProgramSettings, sandbox: CostSandbox) -> tuple[CostFile, bool]:
    """Return the costs that an objective names, and whether this very text was approved.

    Raises:
        ApprovalError: it was not and has to be, or cannot be used; where another text was
            approved, says how to go on with that one.

    """
    path, stages = settings.costs, settings.stages
    if path is None:
        path, stages = stages, None
    try:
        text = approved_text(path, settings.approved_sha) if settings.approved_sha else None
        file = load_costs(path, sandbox, stages, text)
        if not settings.allow_unapproved:
            require_approval(path, file.program, file.stages_sha256)
        approved = approval_of(path, file.program, file.stages_sha256) is not None
    except (ApprovalError, ProgramError, ProposalError) as error:
        raise ApprovalError(f'{error}{_last_approved(path)}') from error
    return file, approved


def _last_approved(path: Path) -> str:
    """Return how to score with the text that was approved last; '' where none is kept."""
    kept = [each for each in read_approvals(path) if each.text]
    if not kept:
        return ''
    last = kept[-1]
    return (
        f'\nThe text that {last.by} approved at {last.at} is kept; to score with it: '
        f'--approved-sha {last.sha256[:12]}'
    )


def _holds_proposal(path: Path, text: str | None) -> bool:
    """Return whether a file is a proposal, without parsing it: a program has no such key."""
    if path.suffix != '.json':
        return False
    if text is None:
        text = path.read_text('utf-8', errors='replace') if path.is_file() else ''
    return '"origin"' in text


def _program(path: Path, sandbox: CostSandbox, text: str | None) -> Program:
    text = read_text(path) if text is None else text
    return inspect_text(text, sandbox, path=path).program(f"'{path}'")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
