"""Xen's trace records: read, made into who ran when, and drawn."""

from __future__ import annotations

import struct
from xml.etree import ElementTree

import pytest

from xentests.errors import ProductFailure
from xentests.trace.drawing import draw
from xentests.trace.records import RTDS_REPLENISH, RUNSTATE, records
from xentests.trace.timeline import Replenishment, Span, Timeline, together

RUNNING, RUNNABLE, BLOCKED = 0, 1, 2


def record(event: int, *words: int, ticks: int | None = None) -> bytes:
    """A record as Xen writes it, with a time or without."""
    head = event | len(words) << 28 | (ticks is not None) << 31
    time = struct.pack("<Q", ticks) if ticks is not None else b""
    return struct.pack("<I", head) + time + struct.pack(f"<{len(words)}I", *words)


def change(ticks: int, domain: int, old: int, new: int) -> bytes:
    """A vCPU's runstate changes."""
    return record(RUNSTATE | old << 8 | new << 4, domain << 16, ticks=ticks)


def cpu(number: int, content: bytes) -> bytes:
    """A piece of a pCPU's buffer."""
    return record(0x1F003, number, len(content)) + content


SVG = "{http://www.w3.org/2000/svg}"
TRACE = (
    cpu(0, change(100, 1, RUNNABLE, RUNNING) + change(130, 1, RUNNING, RUNNABLE) + change(130, 2, RUNNABLE, RUNNING))
    + cpu(1, change(110, 3, BLOCKED, RUNNING))
    + cpu(0, change(150, 2, RUNNING, BLOCKED) + record(0x1F002) + change(151, 1, RUNNABLE, RUNNING))
    + cpu(1, change(160, 3, RUNNING, BLOCKED))
)


def test_records() -> None:
    """Records of all pCPUs by time, each with its pCPU; one without a time has that of the one before."""
    found = records(TRACE + cpu(0, record(0x22801, 7)))
    assert [each.ticks for each in found] == [100, 110, 130, 130, 150, 151, 160, 160]
    assert [each.cpu for each in found[:2]] == [0, 1]


@pytest.mark.parametrize(
    ("data", "said"), [(TRACE[:-3], "ends within"), (TRACE[12:], "begin with"), (TRACE + record(0x1F001), "too small")]
)
def test_bad_traces(data: bytes, said: str) -> None:
    """A trace that is cut off, has no pCPU, or from which records are missing, is no basis for a figure."""
    with pytest.raises(ProductFailure, match=said):
        records(data)


def test_runs_and_waits() -> None:
    """Who ran where and who waited, in Xen's time."""
    timeline = Timeline(tuple(records(TRACE)), skew=1000, tick_ns=2)
    assert timeline.runs == (
        Span((1, 0), 0, 1200, 1260),
        Span((2, 0), 0, 1260, 1300),
        Span((3, 0), 1, 1220, 1320),
    )
    assert timeline.waits == (Span((1, 0), 0, 1260, 1302),)


def test_together() -> None:
    """Runs that follow each other without a gap are one."""
    spans = [Span((1, 0), 0, 0, 10), Span((2, 0), 1, 0, 5), Span((1, 0), 0, 10, 12), Span((1, 0), 0, 13, 14)]
    assert [(span.start, span.end) for span in together(spans) if span.vcpu == (1, 0)] == [(0, 12), (13, 14)]


def test_replenishments() -> None:
    """Budgets that rtds gave: to whom, when, until when, and how much."""
    words = (5 << 16 | 1, 0, 1 << 31, 1, 20, 0)
    (found,) = Timeline(tuple(records(cpu(0, record(RTDS_REPLENISH, *words, ticks=9))))).replenishments
    assert found == Replenishment((5, 1), 9, 1 << 32 | 1 << 31, 20)


def test_picture() -> None:
    """A picture is an SVG file with a row for each vCPU, by its guest's name, and a rectangle for each run."""
    picture = draw(Timeline(tuple(records(TRACE))), start=90, end=190, names={1: "<one>"}, title="a & b")
    root = ElementTree.fromstring(picture)
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    assert {"<one> v0", "domain 2 v0", "a & b"} <= set(texts)
    assert len(list(root.iter(f"{SVG}title"))) == 4
    assert "script" not in picture


def test_picture_of_a_part() -> None:
    """What runs all through the part that is shown is in its picture, from edge to edge and not beyond."""
    timeline = Timeline(tuple(records(TRACE)))
    run = max(timeline.runs, key=lambda span: span.length)
    third = run.length // 3
    picture = draw(timeline, start=run.start + third, end=run.end - third, names={}, title="a part")
    titled = [each for each in ElementTree.fromstring(picture).iter() if each.find(f"{SVG}title") is not None]
    drawn = [(float(each.get("x", "0")), float(each.get("width", "0"))) for each in titled]
    assert (130, 1060) in drawn
    assert all(x >= 130 and x + width <= 1190.01 for x, width in drawn)
