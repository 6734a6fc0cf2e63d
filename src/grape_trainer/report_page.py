"""What the HTML pages share: templates, how numbers read, figures put inline."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from grape_trainer.report_reading import percent

_TEMPLATES = Path(__file__).with_name('templates')


def page_environment() -> jinja2.Environment:
    """Return what renders the templates; a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'number': _number, 'percent': percent, 'duration': _duration}
    return environment


def inline(svg: str | None) -> Markup | None:
    """Return an SVG of ours, which escapes every text that it holds, to be put in as it is."""
    return None if svg is None else Markup(svg)


def _number(value: float | None, digits: int = 3) -> str:
    """Return significant digits, without an exponent where a person would write none."""
    if value is None:
        return '\N{EN DASH}'
    if value == 0:
        return '0'
    if not 1e-4 <= abs(value) < 1e6:
        text = f'{value:.{digits - 1}e}'
    else:
        text = f'{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}'
    return text.replace('-', '\N{MINUS SIGN}')


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return '\N{EN DASH}'
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'
