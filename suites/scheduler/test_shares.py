"""Credit and credit2 share a CPU: by weight, within caps, fairly, and all of it."""

from __future__ import annotations

import pytest

from fixtures.releases import Figure
from fixtures.scheduling import Bench
from suites.scheduler.judge import TOLERANCE, by_xen, full_speed, jain, off, require, shares, speeds, standstills
from suites.scheduler.marks import schedulers
from suites.scheduler.plans import (
    CAP_ALONE,
    CAPS,
    GUESTS,
    LEAST_WEIGHT,
    LIMIT_MS,
    MS,
    OTHER_WEIGHT,
    SLICE_MS,
    STEP,
    WEIGHTS,
)
from xentests.load.bench import SECOND

both = schedulers("credit", "credit2")
KNOWN_OF_CREDIT = 0.1


@both
def test_weights(bench: Bench, figure: Figure) -> None:
    """Guests with weights 1:2:4 that all want the CPU share it 1:2:4, each within 5 %.

    On 4.14's credit the lightest has some 6 % too much, every time: an expected failure up to 10 %. Why is not known;
    equal turns of guests that have used up their credit before the next accounting (csched_acct) would do it.

    docs/man/xl.1, sched-credit: "A domain with a weight of 512 will get twice as much CPU as a domain with a weight of
    256 on a contended host".
    """
    outcome = bench.section("weights", show=True)
    total = sum(WEIGHTS.values())
    found = shares(outcome, after_s=2)
    for name, share in found.items():
        figure(f"{name} of {WEIGHTS[name]}/{total}, %", round(100 * share, 3))
    wanted = {name: weight / total for name, weight in WEIGHTS.items()}
    if bench.plan.name == "credit":
        require("weights 1:2:4", found, wanted, tolerance=KNOWN_OF_CREDIT)
        worst = max(wanted, key=lambda name: abs(off(found[name], wanted[name])))
        if abs(off(found[worst], wanted[worst])) > TOLERANCE:
            pytest.xfail(
                f"credit gives {worst} {100 * off(found[worst], wanted[worst]):+.1f} % of what its weight says"
            )
    require("weights 1:2:4", found, wanted)


@both
def test_weights_are_read_back(bench: Bench) -> None:
    """Weights and caps that were set are those that xl shows while guests are at work."""
    listed = {
        line.split()[0]: line.split()[2:4] for line in bench.section("weights").after.splitlines() if line[:1] == "g"
    }
    assert {name: int(listed[name][0]) for name in WEIGHTS} == WEIGHTS
    listed = {
        line.split()[0]: line.split()[2:4] for line in bench.section("caps").after.splitlines() if line[:1] == "g"
    }
    assert {name: int(listed[name][1]) for name in CAPS} == CAPS


@both
def test_caps(bench: Bench, figure: Figure) -> None:
    """Guests with caps of 15 and 30 % do no more than that beside one without, and are given no less, within 5 %.

    docs/man/xl.1, sched-credit: "The cap optionally fixes the maximum amount of CPU a domain will be able to consume".
    """
    outcome = bench.section("caps")
    found = speeds(bench, outcome, after_s=1)
    for name, speed in found.items():
        figure(f"{name} capped at {CAPS.get(name, 0)}, %", round(100 * speed, 3))
    wanted = {name: cap / 100 for name, cap in CAPS.items()}
    given = {name: by_xen(outcome, name) for name in CAPS}
    for name, part in given.items():
        figure(f"{name} given, %", round(100 * part, 3))
    require(
        "work done under caps",
        {name: max(speed, wanted[name]) for name, speed in found.items() if name in CAPS},
        wanted,
    )
    require("time given under caps", {name: min(part, wanted[name]) for name, part in given.items()}, wanted)
    require("what caps leave", {"g2": by_xen(outcome, "g2")}, {"g2": 1 - sum(wanted.values())})


@both
def test_cap_on_an_idle_cpu(bench: Bench, figure: Figure) -> None:
    """A cap of 40 % holds when nobody else wants the CPU, within 5 %.

    docs/man/xl.1, sched-credit: "even if the host system has idle CPU cycles".
    """
    outcome = bench.section("cap on an idle CPU")
    speed = speeds(bench, outcome, after_s=1)["g0"]
    figure("capped at 40, %", round(100 * speed, 3))
    require("cap", {"g0": speed}, {"g0": CAP_ALONE / 100})


@both
def test_xen_accounts_what_guests_have(bench: Bench, figure: Figure) -> None:
    """The time that Xen has charged a guest is the time it says it had, within 10 %, at every weight.

    What is between the two is Xen's own: switching, accounting, and here its tracing, too.
    """
    outcome = bench.section("weights")
    found = speeds(bench, outcome)
    accounted = {name: by_xen(outcome, name) for name in found}
    for name in found:
        figure(f"{name} charged too much, %", round(100 * off(accounted[name], found[name]), 3))
    require("time that Xen has charged", accounted, found, tolerance=0.1)


@both
def test_equal_guests(bench: Bench, figure: Figure) -> None:
    """Four equal guests get equal parts: Jain's index of fairness is at least 0.999."""
    index = jain(list(shares(bench.section("equals")).values()))
    figure("Jain's index", round(index, 6))
    assert index >= 0.999


@both
def test_work_conserving(bench: Bench, figure: Figure) -> None:
    """No time goes by while four guests want it: they are given all of it, and do what one alone would do.

    By Xen's account 98 % at least; by their own what is left of that when Xen has switched between them, 90 %.
    """
    outcome = bench.section("equals")
    given = sum(by_xen(outcome, name) for name in GUESTS)
    used = sum(speeds(bench, outcome).values())
    figure("given to four, %", round(100 * given, 3))
    figure("used by four, %", round(100 * used, 3))
    assert given >= 0.98
    assert used >= 0.90


@both
def test_what_a_sleeper_leaves_is_used(bench: Bench, figure: Figure) -> None:
    """A guest that sleeps half the time leaves that half to another, whatever their weights: nothing is kept back."""
    outcome = bench.section("half asleep")
    total = sum(speeds(bench, outcome).values())
    figure("used by both, %", round(100 * total, 3))
    figure("the other's part, %", round(100 * speeds(bench, outcome)["g1"], 3))
    assert total >= 0.95


@both
def test_nobody_starves(bench: Bench, figure: Figure) -> None:
    """In 10 s a guest of weight 64 beside three of 1024 goes on again and again, and has its 2 % within a half."""
    outcome = bench.section("least weight")
    longest = standstills(outcome.guest("g0"), STEP)
    share = shares(outcome)["g0"]
    wanted = LEAST_WEIGHT / (LEAST_WEIGHT + 3 * OTHER_WEIGHT)
    figure("its part, %", round(100 * share, 3))
    figure("its longest standstill, ms", longest / MS)
    assert longest <= 3 * SECOND
    require("a guest of least weight", {"g0": share}, {"g0": wanted}, tolerance=1 / 2)


@both
def test_equals_never_wait_long(bench: Bench, figure: Figure) -> None:
    """Of four equal guests none waits for its turn longer than five of the others' slices of 30 ms.

    docs/misc/xen-command-line.pandoc, sched_credit_tslice_ms: "the default is 30".
    """
    outcome = bench.section("equals")
    longest = max(outcome.guest(name).longest_ns for name in GUESTS)
    figure("longest wait, ms", round(longest / MS, 3))
    assert longest <= 15 * 30 * MS


@both
def test_full_speed(bench: Bench, figure: Figure) -> None:
    """A guest alone on the CPU has it: Xen itself takes less than 2 %, by the guest's own clock."""
    heard = bench.section("alone").guest("g0")
    figure("work in a ms", round(full_speed(bench) * MS, 3))
    figure("lost, %", round(100 * heard.lost_ns / SECOND, 3))
    assert heard.lost_ns <= 0.02 * SECOND


@both
def test_rate_limit(bench: Bench, figure: Figure) -> None:
    """A guest that runs is left alone for as long as the rate limit says, here 5 ms, when another wakes.

    docs/man/xl.1, sched-credit: "Ratelimit attempts to limit the number of schedules per second. It sets a minimum
    amount of time (in microseconds) a VM must run before we will allow a higher-priority VM to pre-empt it".
    """
    outcome = bench.section("rate limit")
    domains = {name: domid for domid, name in outcome.domains.items()}
    runs = [span for span in outcome.timeline.runs if span.vcpu[0] == domains["g0"]]
    shortest = min(span.length for span in runs[1:-1])
    figure("shortest run, ms", round(shortest / MS, 3))
    figure("runs", len(runs))
    assert len(runs) > 50
    assert shortest >= 0.9 * LIMIT_MS * MS


@schedulers("credit")
def test_slices(bench: Bench, figure: Figure) -> None:
    """With a time slice of 5 ms two guests take turns after one slice or a few, and not after 30 ms.

    docs/man/xl.1, sched-credit: "The default is 30ms. Valid values are between 1 and 1000".
    """
    outcome = bench.section("slices")
    lengths = sorted(span.length for span in outcome.timeline.runs if outcome.domains[span.vcpu[0]] in GUESTS)
    figure("median run, ms", round(lengths[len(lengths) // 2] / MS, 3))
    figure("runs", len(lengths))
    assert lengths[len(lengths) // 2] <= 2.1 * SLICE_MS * MS
    assert len(lengths) >= 150
