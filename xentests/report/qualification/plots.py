"""Small plots of a figure over the runs of a release, as SVG inside the page: one point a run, oldest on the left.

Readable without colours: points of the newest revision are filled, those of earlier ones hollow, the baseline's median
is dashed. Shapes take their look from the page's style sheet. Does not judge a figure: see ``statistics``.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence

from markupsafe import Markup, escape

from xentests.report.qualification.model import Point, Trend
from xentests.text import clean

_WIDTH, _HEIGHT = 200, 44
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 194.0, 6.0, 38.0
_LONGEST = 40
"""Characters shown of a run's or a revision's name."""


def number(value: float) -> str:
    """A figure as a person reads it: four digits, thousands apart, ``0.4123`` or ``1 234 567``."""
    size = abs(value)
    if not math.isfinite(value) or size >= 1e12 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}"


def moment(at: float) -> str:
    """Seconds since the epoch as ``2026-01-31 23:59``, UTC; empty for a time that no calendar has."""
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return ""


def baseline(trend: Trend) -> float | None:
    """The median of the baseline's values; None without any."""
    values = [value for value in trend.before if math.isfinite(value)]
    return statistics.median(values) if values else None


def sparkline(trend: Trend) -> Markup:
    """The plot, an ``<svg>`` element; empty without a point that can be drawn."""
    points = [point for point in trend.points if math.isfinite(point.value)]
    if not points:
        return Markup("")
    middle = baseline(trend)
    shown = [point.value for point in points] + ([] if middle is None else [middle])
    low, high = min(shown), max(shown)
    said = f"{len(points)} runs, {number(low)} to {number(high)}, now {number(points[-1].value)}"
    if middle is not None:
        said += f"; median of the baseline {number(middle)}"
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{_text(said)}">{_axis(low, high)}'
    ]
    if middle is not None:
        y = _y(middle, low, high)
        label = f"baseline: median {number(middle)} of {len(trend.before)}"
        parts.append(f'<path class="base" d="M{_LEFT:.0f} {y}H{_RIGHT:.0f}"><title>{_text(label)}</title></path>')
    parts += [*_curve(points, low, high), "</svg>"]
    return Markup("".join(parts))


def _axis(low: float, high: float) -> str:
    labels = ((_TOP, high), (_BOTTOM, low)) if low < high else (((_TOP + _BOTTOM) / 2, low),)
    return "".join(f'<text x="{_LEFT - 8:.0f}" y="{y + 3.5:.0f}">{number(value)}</text>' for y, value in labels)


def _curve(points: Sequence[Point], low: float, high: float) -> list[str]:
    step = (_RIGHT - _LEFT - 8) / max(1, len(points) - 1)
    places = [(f"{_LEFT + 4 + at * step:.4g}", _y(point.value, low, high)) for at, point in enumerate(points)]
    radius = 3 if len(points) <= 20 else 2
    lines = [f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}"/>'] if len(points) > 1 else []
    for point, (x, y) in zip(points, places, strict=True):
        older = "" if point.revision == points[-1].revision else ' class="o"'
        parts = number(point.value), moment(point.at), point.run[-_LONGEST:], point.revision[:_LONGEST]
        label = _text(" · ".join(part for part in parts if part))
        lines.append(f'<circle{older} cx="{x}" cy="{y}" r="{radius}"><title>{label}</title></circle>')
    return lines


def _y(value: float, low: float, high: float) -> str:
    """From the bottom for ``low`` to the top for ``high``; scaled before it is subtracted, since floats overflow."""
    span = high / 2 - low / 2
    part = (value / 2 - low / 2) / span if span else 0.5
    return f"{_BOTTOM - part * (_BOTTOM - _TOP):.3g}"


def _text(text: str) -> str:
    return str(escape(clean(text)))
