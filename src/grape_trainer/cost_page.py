"""One page about one cost program: what a person looks at before approving it.

Every cost with its text, its numbers and its curves, and chosen trials with their frames. The page
is one HTML file without network access, like a run's report (report.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, YamlLexer

from grape_trainer.cost_page_plots import curves_plot
from grape_trainer.cost_page_trials import show_trial
from grape_trainer.frame_overlay import ROLE_COLOURS
from grape_trainer.report_page import inline, page_environment
from grape_trainer.scoring.cost_examples import choose_examples
from grape_trainer.scoring.cost_program import CostFunction, Program
from grape_trainer.scoring.cost_review import CONSTANT, INACTIVE, INVERTED, CostReview, Trial
from grape_trainer.scoring.cost_source import DECLARATIVE, PYTHON, fenced_code
from grape_trainer.scoring.keypoint import KeypointSource
from grape_trainer.scoring.objective_sections import TermSettings

FLAG_MEANINGS = {
    CONSTANT: 'It is the same number at every state of every trial, so it ranks nothing. Look for '
    'the wrong keypoint, or for a value that does not depend on the state.',
    INVERTED: 'Successes cost more than failures (AUC below 0.4): it ranks trials the wrong way '
    'round. Look for a wrong sign, or for held and released mixed up.',
    INACTIVE: 'It is never above 0: its constraint is met at every state, or no trial reached its '
    'stage. Look for a threshold that is too wide, or review it on more trials.',
}


@dataclass(frozen=True)
class ShownCost:
    """One cost of the program."""

    review: CostReview
    given: Markup | None  # its text as it was given; None: `python` is
    python: Markup  # what runs
    curves: Markup | None  # None where no trial reached its stage
    term: TermSettings | None  # how it counts; None: the objective does not say


def write_page(
    path: Path,
    name: str,
    program: Program,
    reviews: Sequence[CostReview],
    trials: Sequence[Trial],
    source: KeypointSource,
    frames_of: int,
    left_out: Sequence[str] = (),
    terms: Mapping[str, TermSettings] = MappingProxyType({}),
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        name: of the program, its file's.
        program: that was reviewed.
        reviews: one a function.
        trials: that it was reviewed on.
        source: of the keypoints that its costs were computed from.
        frames_of: how many trials are shown in pictures.
        left_out: trials that could not be used, and why.
        terms: function -> how it counts in a score, where that is known.

    Returns:
        The path.

    Raises:
        BagError, StageError, KeypointError: a bag has changed since its costs were computed.

    """
    costs = [_shown(program, each, trials, terms.get(each.function.name)) for each in reviews]
    examples = choose_examples(program, trials, frames_of)
    page = (
        page_environment()
        .get_template('cost_review.html.j2')
        .render(
            name=name,
            program=program,
            made_at=datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
            costs=costs,
            trials=trials,
            successes=sum(trial.success for trial in trials),
            shown=[show_trial(each, program.functions, source) for each in examples],
            left_out=left_out,
            flag_meanings=FLAG_MEANINGS,
            role_colours=ROLE_COLOURS,
            whole=highlighted(program.text, program.notation),
        )
    )
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(page, encoding='utf-8')
    return partial.replace(path)


def given_text(program: Program, function: CostFunction) -> str:
    """Return the lines of one declarative cost, by its line: nothing is parsed here."""
    later = sorted(f.line for f in program.functions if f.line and f.line > function.line)
    lines = fenced_code(program.text)[0].split('\n')
    return _dedented(lines[function.line - 1 : later[0] - 1 if later else None])


def python_text(program: Program, function: CostFunction) -> str:
    """Return one function of what runs, up to the next thing at the margin.

    Nothing is parsed here: a function whose first line is not found is shown with all others.
    """
    lines = program.python.replace('\r\n', '\n').split('\n')
    opens = re.compile(rf'def[ \t]+{function.name}\b')
    start = next((i for i, line in enumerate(lines) if opens.match(line)), None)
    if start is None:
        return program.python
    # A parameter list may be closed at the margin; text inside a docstring is rarely there.
    ends = (i for i in range(start + 1, len(lines)) if re.match(r'[^\s)#]', lines[i]))
    return _dedented(lines[start : next(ends, len(lines))])


def highlighted(text: str, notation: str) -> Markup:
    """Return a program's text as HTML; whatever it holds is escaped."""
    lexer = PythonLexer() if notation == PYTHON else YamlLexer()
    return Markup(highlight(text, lexer, HtmlFormatter(nowrap=True)))


def _shown(
    program: Program, found: CostReview, trials: Sequence[Trial], term: TermSettings | None
) -> ShownCost:
    has_own_lines = program.notation == DECLARATIVE and found.function.line is not None
    return ShownCost(
        found,
        highlighted(given_text(program, found.function), DECLARATIVE) if has_own_lines else None,
        highlighted(python_text(program, found.function), PYTHON),
        inline(curves_plot(found, trials, term) if found.trials else None),
        term,
    )


def _dedented(lines: Sequence[str]) -> str:
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return '\n'.join(line[margin:] for line in lines).strip('\n')
