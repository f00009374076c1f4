"""The attack surfaces of all configurations, as a table with bars: one SVG, readable without colours."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from xentests.image.surface import Surface

_ROW, _LEFT, _BAR, _WIDTH = 22, 130, 400, 900
_PARTS = (("text", "#3b6ea5"), ("data", "#d98c2b"), ("bss", "#9aa5b1"))
_HEADS = ((_LEFT + _BAR + 100, "KiB"), (_LEFT + _BAR + 200, "hypercalls"), (_LEFT + _BAR + 290, "symbols"))


def chart(surfaces: Mapping[str, Surface], full: str) -> str:
    """An SVG: a row for each configuration, by size, with bars of its parts and what it has less than ``full``."""
    rows = sorted(surfaces.items(), key=lambda item: -_size(item[1]))
    scale = _BAR / max(_size(surface) for surface in surfaces.values())
    lines = [_text(x, 18, head, anchor="end") for x, head in _HEADS]
    x = _LEFT
    for part, colour in _PARTS:
        lines += [f'<rect x="{x}" y="9" width="10" height="10" fill="{colour}"/>', _text(x + 14, 18, part)]
        x += 60
    for number, (name, surface) in enumerate(rows, 1):
        y = 10 + number * _ROW
        lines.append(_text(_LEFT - 8, y + 12, name, anchor="end"))
        x_at = float(_LEFT)
        for part, colour in _PARTS:
            width = getattr(surface, part) * scale
            title = f"<title>{part} {getattr(surface, part) >> 10} KiB</title>"
            lines.append(f'<rect x="{x_at:.1f}" y="{y}" width="{width:.1f}" height="15" fill="{colour}">{title}</rect>')
            x_at += width
        less = (_size(surface) - _size(surfaces[full])) >> 10
        counts = (f"{_size(surface) >> 10} ({less:+d})" if less else f"{_size(surface) >> 10}",
                  str(len(surface.hypercalls)), str(len(surface.symbols)))  # fmt: skip
        lines += [_text(at, y + 12, count, anchor="end") for (at, _), count in zip(_HEADS, counts, strict=True)]
    height = 20 + (len(rows) + 1) * _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{_WIDTH}" height="{height}" fill="#fff"/>{"".join(lines)}</svg>'
    )


def _size(surface: Surface) -> int:
    return surface.text + surface.data + surface.bss


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
