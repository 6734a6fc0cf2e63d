"""Figures for the pages: SVG that takes the page's text colour and opens without a network.

Text and axes take the page's text colour (`currentColor`), so a figure reads in light and in dark.
Outcomes differ in colour; the colours are Okabe and Ito's, which people with a colour vision
deficiency tell apart.
"""

from __future__ import annotations

import hashlib
import html
import io
import re

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

OUTCOME_COLOURS = {
    'success': '#009E73',
    'failure': '#D55E00',
    'error': '#CC79A7',
    'interrupted': '#888888',
}

# Replaced by the page's own colour in the SVG; no series may use it.
INK = '#010203'
STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'grape',
    'font.family': 'sans-serif',
    'font.size': 9.5,
    'axes.titlesize': 10,
    'axes.titleweight': 'bold',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#9aa3b2',
    'grid.alpha': 0.3,
    'grid.linewidth': 0.6,
    'legend.frameon': False,
    'savefig.facecolor': 'none',
    'figure.facecolor': 'none',
    'axes.facecolor': 'none',
    'text.color': INK,
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'xtick.color': INK,
    'ytick.color': INK,
}


def make_panels(
    rows: int, columns: int, width_in: float, height_in: float, shown: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with rows x columns axes, the ones after `shown` left blank."""
    figure = Figure(figsize=(width_in, height_in), layout='constrained')
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for blank in axes[len(axes) if shown is None else shown :]:
        blank.set_visible(False)
    return figure, axes


def inline_svg(figure: Figure, alt: str) -> str:
    """Return the figure as an <svg> element with a text alternative and ids of its own."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={'Date': None, 'Creator': None})
    text = buffer.getvalue()
    text = text[text.index('<svg') :].replace(INK, 'currentColor')
    # Several SVGs share the page's ids.
    prefix = 'g' + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf'\1{prefix}-', text)
    label = html.escape(alt, quote=True)
    return text.replace('<svg', f'<svg role="img" aria-label="{label}" class="plot"', 1)
