"""Who ran when, from the trace records of one measurement; times in ns of Xen's clock.

Sources: the comments and structures at each TRC_ in xen/common/sched/core.c and rt.c of Xen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from xentests.trace.records import RTDS_REPLENISH, RUNSTATE, Record

IDLE_DOMAIN = 32767
_OLD, _NEW = 8, 4
_RUNNING, _RUNNABLE = 0, 1

Vcpu = tuple[int, int]
"""Domain and number."""


@dataclass(frozen=True, slots=True)
class Span:
    """A vCPU ran on ``cpu`` (or, in ``waits``, waited for one) from ``start`` to ``end``."""

    vcpu: Vcpu
    cpu: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """In ns."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Replenishment:
    """RTDS gave a vCPU its budget at ``at``, to be used by ``deadline``."""

    vcpu: Vcpu
    at: int
    deadline: int
    budget: int


@dataclass(frozen=True)
class Timeline:
    """Records between two moments. ``skew`` makes ticks (of ``tick_ns``) Xen's time."""

    records: tuple[Record, ...]
    skew: int = 0
    tick_ns: int = 1

    def between(self, start: int, end: int) -> Timeline:
        """What happened from one moment on and before another."""
        return Timeline(tuple(r for r in self.records if start <= self.at(r) < end), self.skew, self.tick_ns)

    def at(self, record: Record) -> int:
        """When it was written."""
        return record.ticks * self.tick_ns + self.skew

    def count(self, *events: int) -> int:
        """How many records there are of these events."""
        return sum(record.event in events for record in self.records)

    @cached_property
    def runs(self) -> tuple[Span, ...]:
        """Every time that a vCPU ran, idle ones apart."""
        return tuple(self._spans(_RUNNING))

    @cached_property
    def waits(self) -> tuple[Span, ...]:
        """Every time that a vCPU could have run and did not."""
        return tuple(self._spans(_RUNNABLE))

    @cached_property
    def replenishments(self) -> tuple[Replenishment, ...]:
        """Budgets that RTDS gave."""
        return tuple(
            Replenishment(
                (record.words[0] >> 16, record.words[0] & 0xFFFF),
                self.at(record),
                record.words[2] | record.words[3] << 32,
                record.words[4] | record.words[5] << 32,
            )
            for record in self.records
            if record.event == RTDS_REPLENISH
        )

    def _spans(self, state: int) -> Iterable[Span]:
        since: dict[Vcpu, tuple[int, int]] = {}
        for record in self.records:
            if record.event & ~0x330 != RUNSTATE:
                continue
            vcpu = record.words[0] >> 16, record.words[0] & 0xFFFF
            if vcpu[0] == IDLE_DOMAIN:
                continue
            if record.event >> _OLD & 3 == state and vcpu in since:
                start, cpu = since.pop(vcpu)
                yield Span(vcpu, cpu, start, self.at(record))
            if record.event >> _NEW & 3 == state:
                since[vcpu] = self.at(record), record.cpu


def together(spans: Iterable[Span]) -> list[Span]:
    """Runs of one vCPU on one pCPU that follow each other without a gap, as one; for a schedule that is cut up."""
    joined: list[Span] = []
    last: dict[Vcpu, int] = {}
    for span in sorted(spans, key=lambda span: span.start):
        index = last.get(span.vcpu)
        if index is not None and joined[index].end == span.start and joined[index].cpu == span.cpu:
            joined[index] = Span(span.vcpu, span.cpu, joined[index].start, span.end)
        else:
            last[span.vcpu] = len(joined)
            joined.append(span)
    return joined
