"""Rtds gives a vCPU its budget in every period: no less, no more unless it is told to, and it does so in time.

docs/man/xl.1, sched-rtds; the comment at the head of xen/common/sched/rt.c. A guest may run over its budget by the time
that Xen takes to notice, which is what ``_OVERRUN`` allows for.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest

from fixtures.releases import Figure
from fixtures.scheduling import Bench
from suites.scheduler.judge import TOLERANCE, by_xen, jain, require, shares, speeds
from suites.scheduler.marks import schedulers
from suites.scheduler.plans import BUDGETS, EQUAL, GUESTS, LEFT, MS
from xentests.load.bench import SECOND, Outcome
from xentests.trace.records import RTDS_REPLENISH, TIMER
from xentests.trace.timeline import Replenishment, Vcpu

rtds = schedulers("rtds")
_OVERRUN = 0.2 * MS
KNOWN_LATE_MS, KNOWN_LOST = 50, 0.5  # 30 ms late, and a quarter lost, were seen
_SUSPECT = (
    "Suspected, by reading rt.c: deadline_queue_insert() orders the queue of replenishments by priority level first, "
    "and repl_timer_handler() stops at the first not due"
)


def given(outcome: Outcome, name: str) -> list[Replenishment]:
    """The budgets that a guest's vCPU was given, in order."""
    return [each for each in outcome.timeline.replenishments if each.vcpu == vcpu(outcome, name)]


def vcpu(outcome: Outcome, name: str) -> Vcpu:
    """The first vCPU of a guest."""
    return next(domid for domid, its in outcome.domains.items() if its == name), 0


@rtds
def test_budgets(bench: Bench, figure: Figure) -> None:
    """20 of 100, 5 of 50 and 6 of 20 ms are 20, 10 and 30 % of the CPU under load, within 5 %.

    docs/man/xl.1, sched-rtds: "Amount of time, in microseconds, that the VCPU will be allowed to run every period".
    """
    outcome = bench.section("budgets", show=True)
    found = speeds(bench, outcome)
    wanted = {name: budget / period for name, (period, budget) in BUDGETS.items()}
    for name, part in wanted.items():
        figure(f"{name} of {100 * part:.0f} %, %", round(100 * found[name], 3))
    require("budgets", found, wanted)


@rtds
def test_budgets_are_read_back(bench: Bench) -> None:
    """``xl sched-rtds -v all`` shows period, budget and extra time of each vCPU as they were set."""
    wanted = {name: [str(period * 1000), str(budget * 1000), "no"] for name, (period, budget) in BUDGETS.items()}
    for section, extra in (("budgets", "no"), ("budgets beside extra time", "yes")):
        rows = [line.split() for line in bench.section(section).after.splitlines()]
        listed = {row[0]: row[3:] for row in rows if row and row[0] in GUESTS}
        assert listed == {**wanted, "g3": [str(1000 * ms) for ms in LEFT] + [extra]}


@rtds
def test_xen_accounts_the_budget(bench: Bench, figure: Figure) -> None:
    """The time that Xen charges for (its runstate) is the budget as well, within 5 %."""
    outcome = bench.section("budgets")
    found = {name: by_xen(outcome, name) for name in BUDGETS}
    for name, part in found.items():
        figure(f"{name} charged, %", round(100 * part, 3))
    require("time that Xen has charged", found, {name: budget / period for name, (period, budget) in BUDGETS.items()})


@rtds
def test_budget_on_an_idle_cpu(bench: Bench, figure: Figure) -> None:
    """Without extra time a guest has its 20 % and no more when nobody else wants the CPU, within 5 %."""
    speed = speeds(bench, bench.section("budget on an idle CPU"))["g0"]
    figure("budget of 20, %", round(100 * speed, 3))
    require("budget", {"g0": speed}, {"g0": 0.2})


@rtds
def test_no_period_has_more_than_the_budget(bench: Bench, figure: Figure) -> None:
    """From one replenishment to the next no guest runs longer than its budget."""
    outcome = bench.section("budgets")
    runs = outcome.timeline.runs
    worst = 0.0
    for name, (_, budget) in BUDGETS.items():
        moments = [each.at for each in given(outcome, name)]
        mine = [span for span in runs if span.vcpu == vcpu(outcome, name)]
        for start, end in pairwise(moments):
            used = sum(max(0, min(span.end, end) - max(span.start, start)) for span in mine)
            worst = max(worst, used - budget * MS)
    figure("most over the budget, us", round(worst / 1000, 3))
    assert worst <= _OVERRUN


def lateness(outcome: Outcome, budgets: Mapping[str, tuple[int, int]], *, lost_too: bool = False) -> list[int]:
    """How long after the end of a period the budget for the next came, in ns; none may be missing, but ``lost_too``.

    The first one of a vCPU comes with its waking, in the middle of a period.
    """
    late = []
    for name, (period, budget) in budgets.items():
        found = given(outcome, name)
        missing = outcome.section.window_s * 1000 // period - len(found)
        assert lost_too or abs(missing) <= 1, f"{name}: {len(found)} replenishments"
        assert {each.budget for each in found} == {budget * MS}
        late += [each.at - (each.deadline - period * MS) for each in found[1:]]
    assert min(late) > -_OVERRUN  # a guest knows Xen's time to some 70 us, and the trace has it from there
    return late


@rtds
def test_replenished_on_time(bench: Bench, figure: Figure) -> None:
    """Every budget comes at the end of a period, as Xen's trace has it: none is missing, and none is a ms late."""
    late = lateness(bench.section("equals"), dict.fromkeys(GUESTS[:3], EQUAL))
    figure("replenishments", len(late))
    figure("latest, us", round(max(late) / 1000, 3))
    assert max(late) < MS


@rtds
def test_replenished_on_time_beside_extra_time(bench: Bench, figure: Figure) -> None:
    """Every budget comes at the end of a period, also while another guest works in extra time: none late, none lost.

    Whether any is depends on when the guests began, so it is not the same in every template.
    """
    outcome = bench.section("budgets beside extra time")
    late = {name: lateness(outcome, {name: told}, lost_too=True) for name, told in BUDGETS.items()}
    length_ms, worst = outcome.section.window_s * 1000, max(map(max, late.values()))
    most_lost = max(1 - len(late[name]) * period / length_ms for name, (period, _) in BUDGETS.items())
    figure("replenishments", sum(map(len, late.values())))
    figure("latest, us", round(worst / 1000, 3))
    figure("most lost, %", round(100 * most_lost, 1))
    found = f"a budget came {worst / MS:.0f} ms late, and {100 * most_lost:.0f} % of a guest's were lost"
    in_time = worst < MS and most_lost <= TOLERANCE
    if not in_time and worst < KNOWN_LATE_MS * MS and most_lost < KNOWN_LOST:
        pytest.xfail(f"{found}. {_SUSPECT}")
    assert in_time, found


@rtds
def test_periods_do_not_drift(bench: Bench, figure: Figure) -> None:
    """From the first period to the last each deadline is one period after the one before, to the ns."""
    outcome = bench.section("budgets")
    for name, (period, _) in BUDGETS.items():
        deadlines = [each.deadline for each in given(outcome, name)]
        steps = {after - before for before, after in pairwise(deadlines)}
        figure(f"{name}: periods", len(deadlines))
        assert steps == {period * MS}


@rtds
def test_extra_time(bench: Bench, figure: Figure) -> None:
    """With extra time a guest with a budget of 20 % has all of an idle CPU.

    docs/man/xl.1, sched-rtds: "allowed to get extra time from the unreserved system resource".
    """
    speed = speeds(bench, bench.section("extra time"))["g0"]
    figure("with extra time, %", round(100 * speed, 3))
    require("extra time", {"g0": speed}, {"g0": 1.0})


@rtds
def test_extra_time_takes_no_reservation(bench: Bench, figure: Figure) -> None:
    """Beside a guest with 40 of 100 ms one with extra time has the other 60 %, and not more, within 5 %."""
    found = speeds(bench, bench.section("extra time beside a reservation"))
    for name, speed in found.items():
        figure(f"{name}, %", round(100 * speed, 3))
    require("extra time beside a reservation", found, {"g0": 0.6, "g1": 0.4})


@rtds
def test_equal_budgets(bench: Bench, figure: Figure) -> None:
    """Three guests with equal budgets have equal parts: Jain's index of fairness is at least 0.999."""
    outcome = bench.section("equals")
    index = jain(list(shares(outcome).values()))
    figure("Jain's index", round(index, 6))
    assert index >= 0.999
    require("equal budgets", speeds(bench, outcome), dict.fromkeys(GUESTS[:3], 0.2))


@rtds
def test_nobody_starves(bench: Bench, figure: Figure) -> None:
    """In 10 s a guest with 5 of 100 ms never waits longer than two periods without their budgets, beside one that
    takes all it can."""
    heard = bench.section("least budget").guest("g0")
    figure("longest wait, ms", round(heard.longest_ns / MS, 3))
    figure("its part, %", round(100 * speeds(bench, bench.section("least budget"))["g0"], 3))
    assert heard.longest_ns <= 2 * 95 * MS + _OVERRUN
    require("least budget", speeds(bench, bench.section("least budget")), {"g0": 0.05})


@rtds
def test_idle_takes_no_ticks(bench: Bench, figure: Figure) -> None:
    """An idle system has no periodic tick of the scheduler: its timer and its replenishments come with work alone.

    xen/common/sched/rt.c: "only when the budget of a vCPU is to be replenished, or runs out". Counted in 10 s without
    load, beside a section of 6 s with some.
    """
    idle, busy = bench.section("idle"), bench.section("budgets")
    found = {name: each.timeline.count(TIMER, RTDS_REPLENISH) / _length_s(each) for name, each in _both(idle, busy)}
    for name, number in found.items():
        figure(f"timer events a second, {name}", round(number, 2))
    assert found["under load"] > 50
    assert found["idle"] < 20


def _both(idle: Outcome, busy: Outcome) -> tuple[tuple[str, Outcome], tuple[str, Outcome]]:
    return ("idle", idle), ("under load", busy)


def _length_s(outcome: Outcome) -> float:
    records = outcome.timeline.records
    assert records, "nothing was traced"
    first, last = outcome.timeline.at(records[0]), outcome.timeline.at(records[-1])
    return max(1.0, (last - first) / SECOND)
