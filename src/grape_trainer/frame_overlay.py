"""Keypoints drawn over a recorded picture: an SVG of its own, to be put inside a page.

A point's label is what a cost program calls it: 0 the target, 1 the receptacle, 2 and up the
obstacles, and E the end effector. Its place comes from the camera's geometry; without one the
picture is shown as it is.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.report_media import jpeg_uri

TARGET, RECEPTACLE, OBSTACLE, END_EFFECTOR = 'target', 'receptacle', 'obstacle', 'end effector'
ROLE_COLOURS = {
    TARGET: '#ffe119',
    RECEPTACLE: '#00e5ff',
    OBSTACLE: '#ffffff',
    END_EFFECTOR: '#ff7bff',
}
# What is named in the picture, and how far below its dot, in heights of the text.
NAMED = {TARGET: -1.8, RECEPTACLE: 1.8}
FRAME_WIDTH_PX = 320  # of the stored picture; a smaller one keeps its size
TEXT_SHARE = 0.04  # height of the text, of the picture's width
LETTER = 0.62  # its width, of its height


@dataclass(frozen=True)
class NamedPoint:
    """A point to draw."""

    label: str
    name: str
    role: str  # a key of ROLE_COLOURS
    position_m: np.ndarray  # (3,) in the robot base frame
    is_seen: bool = True  # False: hidden, its place is a guess; drawn hollow


@dataclass(frozen=True)
class Mark:
    """A point in a picture."""

    point: NamedPoint
    u: float  # px, of the picture with integers at the pixels' centres
    v: float


def project_points(points: Sequence[NamedPoint], camera: CameraGeometry) -> tuple[Mark, ...]:
    """Return the points that fall inside the camera's picture, the nearest last."""
    if not points:
        return ()
    pixels, depth_m = camera.project(np.stack([point.position_m for point in points]))
    found = []
    for index in np.argsort(-depth_m, kind='stable'):
        u, v = (float(value) for value in pixels[index])
        is_inside = -0.5 <= u <= camera.width - 0.5 and -0.5 <= v <= camera.height - 0.5
        if depth_m[index] > 0 and is_inside:
            found.append(Mark(points[index], u, v))
    return tuple(found)


def frame_svg(image: np.ndarray, marks: Sequence[Mark], alt: str) -> str:
    """Return a picture (H, W, 3) uint8 RGB with marks over it, as an <svg> element.

    Args:
        image: turned as a person looks at it, and as the marks were projected.
        marks: of project_points; () draws none.
        alt: what the picture shows, for those who cannot see it.

    """
    height, width = image.shape[:2]
    shown = ', '.join(f'{mark.point.label} {mark.point.name}' for mark in marks)
    alt = f'{alt}. Keypoints drawn: {shown}' if marks else alt
    drawn = ''.join(_mark(mark, width) for mark in marks)
    return (
        f'<svg class="frame" role="img" aria-label="{html.escape(alt, quote=True)}" '
        f'viewBox="0 0 {width} {height}"><image href="{jpeg_uri(image, FRAME_WIDTH_PX)}" '
        f'width="{width}" height="{height}"/>{drawn}</svg>'
    )


def _mark(mark: Mark, width: int) -> str:
    """Return a dot and its label; SVG counts from a pixel's corner, half a pixel before."""
    point, x, y = mark.point, mark.u + 0.5, mark.v + 0.5
    size, colour = TEXT_SHARE * width, ROLE_COLOURS[point.role]
    text, at_x, at_y = point.label, x + 0.8 * size, y - 0.2 * size
    if point.role in NAMED:
        text = f'{point.label} {point.name}'
        half = LETTER * size * len(text) / 2
        at_x, at_y = min(max(x, half), width - half), y + NAMED[point.role] * size
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{0.3 * size:.1f}" '
        f'fill="{colour if point.is_seen else "none"}" '
        f'stroke="{"#000" if point.is_seen else colour}" stroke-width="{0.1 * size:.2f}">'
        f'<title>{html.escape(f"{point.name} ({point.role})")}</title></circle>'
        f'<text x="{at_x:.1f}" y="{max(at_y, size):.1f}" font-size="{size:.1f}" '
        f'fill="{colour}" text-anchor="middle">{html.escape(text)}</text>'
    )
