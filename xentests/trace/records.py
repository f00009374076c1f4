"""The records in a file of xentrace, as they are. What they say of vCPUs is ``timeline``'s business.

Layout: xen/include/public/trace.h, ``struct t_rec``, and docs/man/xentrace.8. xentrace writes pieces of each pCPU's
buffer one after the other, each headed by a record of its own with the pCPU's number and the size of the piece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from xentests.errors import ProductFailure

_LOST, _WRAP, _CPU_CHANGE = 0x0001F001, 0x0001F002, 0x0001F003
_EVENT_BITS, _EXTRA_BITS = (1 << 28) - 1, 7

SCHEDULING = 0x0002F000
"""The class of all records about scheduling, as xentrace's ``-e`` takes it."""
RUNSTATE, SWITCH = 0x00021001, 0x0002800A
WAKE, TIMER = 0x00028004, 0x0002800B
RTDS_REPLENISH, RTDS_SCHEDULE = 0x00022804, 0x00022806


@dataclass(frozen=True, slots=True)
class Record:
    """One record; ``ticks`` of the pCPU's time stamp counter, of the record before where it has none of its own."""

    cpu: int
    event: int
    ticks: int
    words: tuple[int, ...]


def records(data: bytes) -> list[Record]:
    """All records by time. ProductFailure when the file is not one of xentrace's, or records were lost."""
    found = sorted(_records(data), key=lambda record: record.ticks)
    if any(record.event == _LOST for record in found):
        raise ProductFailure("Xen had to drop trace records: its buffer was too small for what happened")
    return found


def _records(data: bytes) -> Iterator[Record]:
    at, cpu, ticks = 0, -1, 0
    while at < len(data):
        try:
            (head,) = struct.unpack_from("<I", data, at)
            at += 4
            if head >> 31:
                (ticks,) = struct.unpack_from("<Q", data, at)
                at += 8
            words = struct.unpack_from(f"<{head >> 28 & _EXTRA_BITS}I", data, at)
        except struct.error as error:
            raise ProductFailure(f"a trace of {len(data)} bytes ends within the record at {at - 4}") from error
        at += 4 * len(words)
        event = head & _EVENT_BITS
        if event == _CPU_CHANGE:
            cpu = words[0]
        elif cpu < 0:
            raise ProductFailure(f"a trace of {len(data)} bytes does not begin with a pCPU's number: {data[:16].hex()}")
        elif event != _WRAP:
            yield Record(cpu, event, ticks, words)
