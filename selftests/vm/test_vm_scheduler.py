"""What the scheduler suite relies on to notice: four schedulers are sabotaged while they run, and its tests turn red.

Each by a live patch of the unmodified Xen 4.14 that Debian ships, the one with rtds in it. A sabotaged host measures a
part of the suite's plan; the suite's own test then judges it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from fixtures.scheduling import Bench, Plan, armed, found, measured
from suites.scheduler import test_rtds, test_shares, test_wakeups
from suites.scheduler.plans import PLANS
from xentests.errors import ProductFailure
from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.payload.builder import Payload
from xentests.payload.code import returns
from xentests.payload.factory import Payloads
from xentests.payload.symbols import read_symbols
from xentests.pytest_plugin.harness import Harness
from xentests.session import Options, Session

Sabotage = Callable[[Payloads], Payload]


def no_report(name: str, value: float) -> None:
    """Takes a figure and forgets it."""


class NoHarness:
    """Takes pictures and forgets them."""

    def exhibit(self, name: str, draw: Callable[[], str], *, always: bool = False) -> None:
        """Draws it, so that drawing is tried."""
        assert draw().startswith("<svg")


@pytest.fixture(scope="module")
def bullseye(runs: Path) -> Iterator[Session]:
    """Sessions of the release that has rtds."""
    with Session(Options(run_dir=runs / "bullseye", release="debian:bullseye")) as made:
        yield made


def measure_sabotaged(session: Session, folder: Path, plan: Plan, sections: tuple[str, ...], spoil: Sabotage) -> Bench:
    """The suite's plan, or some sections of it, on a host that has been spoilt."""
    name = f"{plan.name}-{spoil.__name__}"

    def prepare(host: Host) -> None:
        assert host.image.symbols is not None
        host.livepatch.upload(spoil(Payloads(read_symbols(host.image.symbols)))).apply()

    part = [section for section in plan.sections if section.name in sections]
    plan = dataclasses.replace(plan, name=name, sections=part, prepare=prepare, key=name)
    machine = Machine("amd64", timing="deterministic", xen_args=plan.xen_args)
    prepared = armed(plan)
    template = session.derive(session.template(machine), key=prepared.key, prepare=prepared.prepare)
    host = session.clone(template, name=name, log_dir=folder / name, standby=False)
    outcome = found(plan, host.arch, *measured(plan, host))
    session.end(host)
    return Bench(plan, outcome, cast(Harness, NoHarness()))


def does_nothing(payloads: Payloads, function: str) -> Payload:
    """A static function, which Xen does not find by this name, returns 0."""
    return payloads.builder().patch(function, returns(0), old_address=payloads.symbols.address(function)).build()


def weight_ignored(payloads: Payloads) -> Payload:
    """Weights are taken from the toolstack and thrown away."""
    return does_nothing(payloads, "csched_dom_cntl")


def cap_ignored(payloads: Payloads) -> Payload:
    """A vCPU that has used up its cap is not parked: the call that does it becomes five NOPs."""
    symbols = payloads.symbols
    code, at, park = symbols.code("csched_acct"), symbols.address("csched_acct"), symbols.address("vcpu_pause_nosync")
    calls = [m.start() for m in re.finditer(b"\xe8", code) if m.start() + 5 <= len(code)]
    target = {i: at + i + 5 + int.from_bytes(code[i + 1 : i + 5], "little", signed=True) for i in calls}
    (place,) = [at + i for i in calls if target[i] == park]
    return payloads.builder().nop("csched_acct", 5, old_size=5, old_address=place).build()


def budget_not_burnt(payloads: Payloads) -> Payload:
    """What is left of a budget is worked out and not kept: the store to cur_budget becomes five NOPs."""
    symbols = payloads.symbols
    # sub %r14, %rax; mov %edi, %esi; mov %rax, cur_budget(%r12)
    (burn,) = re.finditer(re.escape(bytes.fromhex("4c29f089fe4989442430")), symbols.code("rt_schedule"))
    place = symbols.address("rt_schedule") + burn.end() - 5
    return payloads.builder().nop("rt_schedule", 5, old_size=5, old_address=place).build()


def wake_up_lost(payloads: Payloads) -> Payload:
    """A vCPU whose timer has expired stays blocked."""
    return does_nothing(payloads, "poll_timer_fn")


def test_weight_ignored(bullseye: Session, runs: Path) -> None:
    """test_shares.test_weights says what each guest has, and what it should have."""
    bench = measure_sabotaged(bullseye, runs, PLANS["credit"], ("alone", "weights"), weight_ignored)
    with pytest.raises(ProductFailure, match=r"weights 1:2:4: g0 has 3\d\.\d % and should have 14\.3 %"):
        test_shares.test_weights(bench, no_report)


def test_cap_ignored(bullseye: Session, runs: Path) -> None:
    """test_shares.test_cap_on_an_idle_cpu says how far beyond its cap the guest went."""
    bench = measure_sabotaged(bullseye, runs, PLANS["credit"], ("alone", "cap on an idle CPU"), cap_ignored)
    with pytest.raises(ProductFailure, match=r"cap: g0 has \d+\.\d % and should have 40\.0 %"):
        test_shares.test_cap_on_an_idle_cpu(bench, no_report)


def test_budget_not_burnt(bullseye: Session, runs: Path) -> None:
    """test_rtds.test_budget_on_an_idle_cpu says how much the guest had of the CPU instead of its 20 %."""
    bench = measure_sabotaged(bullseye, runs, PLANS["rtds"], ("alone", "budget on an idle CPU"), budget_not_burnt)
    with pytest.raises(ProductFailure, match=r"budget: g0 has \d+\.\d % and should have 20\.0 %"):
        test_rtds.test_budget_on_an_idle_cpu(bench, no_report)


def test_wake_up_lost(bullseye: Session, runs: Path) -> None:
    """test_wakeups.test_every_wake_up_comes says that a wake-up was lost, and by what."""
    bench = measure_sabotaged(bullseye, runs, PLANS["credit"], ("alone", "wake-ups"), wake_up_lost)
    with pytest.raises(ProductFailure, match=r"a wake-up was lost .*its vCPU stayed blocked"):
        test_wakeups.test_every_wake_up_comes(bench, no_report)
