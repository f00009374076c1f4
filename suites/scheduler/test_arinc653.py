"""ARINC 653: a schedule, set once by its hypercall, that is kept whoever wants the CPU.

xen/common/sched/arinc653.c; xen/include/public/sysctl.h, xen_sysctl_arinc653_schedule.
"""

from __future__ import annotations

import itertools
import uuid

import pytest

from fixtures.pcpus import MakePcpus
from fixtures.releases import Figure
from fixtures.scheduling import Bench
from suites.scheduler.judge import by_xen, off, require
from suites.scheduler.marks import schedulers
from suites.scheduler.plans import MAJOR_FRAME, MS, SLOTS
from suites.scheduler.test_rtds import vcpu
from xentests.host import arinc653
from xentests.host.arinc653 import DOM0, Slot

arinc = schedulers("arinc653")
_WANTED = {name: slot / MAJOR_FRAME for name, slot in SLOTS.items()}


@arinc
def test_schedule_is_kept(bench: Bench, figure: Figure) -> None:
    """Guests with 20 and 30 of 100 ms have 20 and 30 % of the CPU, within 5 %, and do work in that proportion."""
    outcome = bench.section("schedule", show=True)
    found = {name: by_xen(outcome, name) for name in SLOTS}
    for name, part in found.items():
        figure(f"{name} of {100 * _WANTED[name]:.0f} %, %", round(100 * part, 3))
    require("schedule", found, _WANTED)
    ratio = outcome.guest("g1").chunks / outcome.guest("g0").chunks
    figure("g1's work by g0's", round(ratio, 4))
    assert abs(off(ratio, SLOTS["g1"] / SLOTS["g0"])) <= 0.05


@arinc
def test_nobody_has_what_others_leave(bench: Bench, figure: Figure) -> None:
    """A guest has its 20 % and no more when nobody else wants the CPU: the schedule is no minimum."""
    part = by_xen(bench.section("one alone"), "g0")
    figure("g0 of 20 %, %", round(100 * part, 3))
    require("one alone", {"g0": part}, {"g0": 0.2})


@arinc
def test_every_frame_is_the_same(bench: Bench, figure: Figure) -> None:
    """Each guest runs once in a major frame, for all of its slot, and begins 100 ms after it last began."""
    outcome = bench.section("schedule")
    for name, slot in SLOTS.items():
        runs = [span for span in outcome.timeline.runs if span.vcpu == vcpu(outcome, name) and span.length > MS][1:-1]
        lengths = [span.length for span in runs]
        steps = [after.start - before.start for before, after in itertools.pairwise(runs)]
        figure(f"{name}: runs", len(runs))
        figure(f"{name}: shortest run, ms", round(min(lengths) / MS, 3))
        assert all(abs(length - slot) <= 0.05 * slot for length in lengths)
        assert all(abs(step - MAJOR_FRAME) <= MS for step in steps)


@pytest.mark.needs("arinc653")
@pytest.mark.xdist_group("pcpus")
def test_schedule_is_read_back(pcpus: MakePcpus) -> None:
    """What was set is what is read; a schedule that is longer than its major frame, or empty, is refused with EINVAL.

    xen/common/sched/arinc653.c, arinc653_sched_set.
    """
    host = pcpus(xen_args=("sched=arinc653",), cpus=1).host
    slots = [Slot(DOM0, 60 * MS), Slot(uuid.UUID(int=7), 30 * MS)]
    assert arinc653.put(host, MAJOR_FRAME, slots) == ""
    assert arinc653.get(host) == (MAJOR_FRAME, slots)
    assert arinc653.put(host, MAJOR_FRAME, [Slot(DOM0, MAJOR_FRAME), Slot(uuid.UUID(int=7), MS)]) == "EINVAL"
    assert arinc653.put(host, MAJOR_FRAME, []) == "EINVAL"
    assert arinc653.put(host, MAJOR_FRAME, [Slot(DOM0, 0)]) == "EINVAL"
    assert arinc653.get(host) == (MAJOR_FRAME, slots)
