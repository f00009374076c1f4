"""Rtds' parameters: of each vCPU apart, read back, and refused where they make no sense."""

from __future__ import annotations

import pytest

from fixtures.pcpus import MakePcpus, Pcpus
from xentests.host.command import Word

pytestmark = [pytest.mark.needs("rtds"), pytest.mark.xdist_group("pcpus")]


def rtds(pcpus: MakePcpus) -> Pcpus:
    """A host with rtds and a guest of two vCPUs."""
    return pcpus("g0", vcpus=2, xen_args=("sched=rtds",), cpus=1)


def listed(host: Pcpus) -> dict[tuple[str, int], tuple[int, int, str]]:
    """Period, budget and extra time of each vCPU (``xl sched-rtds -v all``)."""
    rows = [line.split() for line in host.host.succeed("xl", "sched-rtds", "-v", "all").text.splitlines()]
    return {
        (row[0], int(row[2])): (int(row[3]), int(row[4]), row[5]) for row in rows if len(row) == 6 and row[1].isdigit()
    }


def test_vcpus_have_their_own(pcpus: MakePcpus) -> None:
    """Each vCPU of a guest has a period, a budget and extra time of its own, and is read back as it was set.

    docs/man/xl.1, sched-rtds, examples 2 and 3; the default is 4 of 10 ms with extra time.
    """
    host = rtds(pcpus)
    assert listed(host)["g0", 0] == listed(host)["Domain-0", 0] == (10000, 4000, "yes")
    words = ["-v", "0", "-p", "100000", "-b", "20000", "-e", "0", "-v", "1", "-p", "50000", "-b", "5000", "-e", "1"]
    host.host.succeed("xl", "sched-rtds", "-d", "g0", *words)
    assert {key: value for key, value in listed(host).items() if key[0] == "g0"} == {
        ("g0", 0): (100000, 20000, "no"),
        ("g0", 1): (50000, 5000, "yes"),
    }
    host.host.succeed("xl", "sched-rtds", "-d", "g0", "-v", "all", "-p", 30000, "-b", 3000, "-e", 0)
    assert {value for key, value in listed(host).items() if key[0] == "g0"} == {(30000, 3000, "no")}


MISUSE: dict[str, tuple[Word, ...]] = {
    "budget-beyond-period": ("-d", "g0", "-v", 0, "-p", 10000, "-b", 20000),
    "no-budget": ("-d", "g0", "-v", 0, "-p", 10000, "-b", 0),
    "budget-too-short": ("-d", "g0", "-v", 0, "-p", 10000, "-b", 5),
    "period-too-short": ("-d", "g0", "-v", 0, "-p", 5, "-b", 5),
    "no-such-vcpu": ("-d", "g0", "-v", 7, "-p", 10000, "-b", 1000),
    "no-such-guest": ("-d", "nobody", "-v", 0, "-p", 10000, "-b", 1000),
    "nobody-named": ("-v", 0, "-p", 10000, "-b", 1000),
    "uneven": ("-d", "g0", "-v", 0, "-p", 10000, "-v", 1, "-b", 1000),
}


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in MISUSE.items()])
def test_misuse_is_refused(pcpus: MakePcpus, words: tuple[Word, ...]) -> None:
    """Budgets beyond the period, below 10 us, or of nobody are refused, and all vCPUs keep what they had.

    xen/common/sched/rt.c, rt_dom_cntl: RTDS_MIN_PERIOD, RTDS_MIN_BUDGET.
    """
    host = rtds(pcpus)
    before = listed(host)
    result = host.host.run("xl", "sched-rtds", *words)
    assert result.exit_code != 0, result
    assert listed(host) == before


def test_another_schedulers_tool_is_refused(pcpus: MakePcpus) -> None:
    """Weights of credit2 are refused where rtds schedules."""
    host = rtds(pcpus)
    host.host.fail("xl", "sched-credit2", "-d", "g0", "-w", 512)
    host.host.fail("xl", "sched-credit", "-d", "g0", "-c", 20)
