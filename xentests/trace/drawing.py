"""A picture of a timeline: a row for each vCPU, dark where it ran (by pCPU), light where it waited. SVG 1.1."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from xentests.trace.timeline import Span, Timeline, Vcpu

_WIDTH, _ROW, _LEFT, _TOP = 1200, 26, 130, 46
_COLOURS = ("#1f5fa8", "#b5521b", "#2e7d32", "#7b2d8b", "#8a6d00", "#00707a", "#a01748", "#444444")
_WAITING = "#f3c9a5"
_MOST = 6000
"""Rectangles that a picture may have: more would be finer than its lines are wide."""


def draw(timeline: Timeline, *, start: int, end: int, names: Mapping[int, str], title: str) -> str:
    """The picture of what happened from ``start`` to ``end``, with what began before or went on after it; ``names`` of
    domains.
    """
    ran, waited = (
        [span for span in spans if span.start < end and span.end > start] for spans in (timeline.runs, timeline.waits)
    )
    rows = sorted({span.vcpu for span in (*ran, *waited)})
    height = _TOP + _ROW * len(rows) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
        '<text x="8" y="36" fill="#555555">dark: ran (a colour for each pCPU); light: could have run and waited</text>',
    ]
    shown = 0
    for row, vcpu in enumerate(rows):
        y = _TOP + _ROW * row
        out.append(f'<text x="8" y="{y + 17}">{escape(_name(vcpu, names))}</text>')
        out.append(f'<rect x="{_LEFT}" y="{y + 3}" width="{_WIDTH - _LEFT - 10}" height="{_ROW - 6}" fill="#f4f4f4"/>')
        waits = [(span, _WAITING, 6) for span in waited if span.vcpu == vcpu]
        runs = [(span, _COLOURS[span.cpu % len(_COLOURS)], 0) for span in ran if span.vcpu == vcpu]
        for span, colour, inset in waits + runs:
            shown += 1
            if shown <= _MOST:
                out.append(_rectangle(span, start, end, y, colour, inset))
    out += _axis(start, end, _TOP + _ROW * len(rows))
    if shown > _MOST:
        out.append(f'<text x="8" y="{height - 6}">{shown - _MOST} spans are not shown</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _name(vcpu: Vcpu, names: Mapping[int, str]) -> str:
    return f"{names.get(vcpu[0], f'domain {vcpu[0]}')} v{vcpu[1]}"


def _x(at: int, start: int, end: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - 10) * (at - start) / (end - start)


def _rectangle(span: Span, start: int, end: int, y: int, colour: str, inset: int) -> str:
    left = _x(max(span.start, start), start, end)
    width = max(0.4, _x(min(span.end, end), start, end) - left)
    about = f"pCPU {span.cpu}, {span.length / 1e6:.3f} ms from {(span.start - start) / 1e6:.3f} ms"
    return (
        f'<rect x="{left:.2f}" y="{y + 3 + inset}" width="{width:.2f}" height="{_ROW - 6 - 2 * inset}" '
        f'fill="{colour}"><title>{about}</title></rect>'
    )


def _axis(start: int, end: int, y: int) -> list[str]:
    out = []
    for part in range(11):
        at = start + (end - start) * part // 10
        x = _x(at, start, end)
        out.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{y}" stroke="#bbbbbb" stroke-width="0.5"/>')
        anchor = "end" if part == 10 else "middle"  # the last one would be cut off
        out.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="{anchor}">{(at - start) / 1e6:g} ms</text>')
    return out
