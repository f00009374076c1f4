"""Expectations: what has to stand at the old function for a payload to be applied."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload.builder import Expectation
from xentests.payload.code import returns
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.sysctl import NODEPS, Action

pytestmark = pytest.mark.needs("livepatch")

WRONG = Expectation(bytes.fromhex("deadc0debabe"))


def test_an_expectation_that_is_met(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload that expects the function's true first bytes is applied.

    docs/misc/livepatch.pandoc, ".livepatch.funcs", `expect`.
    """
    expectation = payloads.expectation(EXTRA_VERSION)
    assert sysctl.patch(payloads.replace(returns="EXPECTED", expect=expectation)).failure == ""
    assert dom0_sees(livepatch_host) == "EXPECTED"


def test_an_expectation_that_is_not_met(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload that expects other bytes is taken, but not applied: EINVAL, and the log tells both.

    docs/misc/livepatch.pandoc, ".livepatch.funcs", `expect`.
    """
    before = dom0_sees(livepatch_host)
    assert sysctl.patch(payloads.replace(returns="NEVER", expect=WRONG)).failure == "EINVAL"
    assert dom0_sees(livepatch_host) == before
    actual = payloads.symbols.code(EXTRA_VERSION)[: len(WRONG.content)].hex()
    livepatch_host.console.wait_for(f"expectation failed: expected:deadc0debabe, actual:{actual}", 5)


def test_an_expectation_that_is_not_enabled(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Without `enabled`, what the expectation says does not matter.

    docs/misc/livepatch.pandoc, ".livepatch.funcs", `expect`: "enabled allows to enable the expectation check".
    """
    expectation = replace(WRONG, enabled=False)
    assert sysctl.patch(payloads.replace(returns="WHATEVER", expect=expectation)).failure == ""
    assert dom0_sees(livepatch_host) == "WHATEVER"


def test_an_expectation_of_no_bytes(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """An enabled expectation of length 0 is always met."""
    assert sysctl.patch(payloads.replace(returns="EMPTY", expect=Expectation(b""))).failure == ""
    assert dom0_sees(livepatch_host) == "EMPTY"


def test_an_expectation_longer_than_the_function(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """An expectation that reaches beyond `old_size` is refused with ERANGE when it is checked.

    docs/misc/livepatch.pandoc, ".livepatch.funcs", `expect`: its length is limited by what is patched.
    """
    size = payloads.symbols.size(MINOR_VERSION)
    beyond = payloads.symbols.read(payloads.symbols.address(MINOR_VERSION), size + 1)
    assert sysctl.patch(payloads.replace(MINOR_VERSION, returns=1, expect=Expectation(beyond))).failure == "ERANGE"


def test_the_reserved_bits_of_an_expectation(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """An expectation with reserved bits set is refused with EINVAL.

    docs/misc/livepatch.pandoc, ".livepatch.funcs", `expect`: "rsv ... MUST be zero".
    """
    expectation = replace(payloads.expectation(EXTRA_VERSION), reserved=1)
    assert sysctl.patch(payloads.replace(returns="NEVER", expect=expectation)).failure == "EINVAL"


def test_one_unmet_expectation_stops_the_whole_payload(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """Of two functions one is not as expected: neither is replaced.

    docs/misc/livepatch.pandoc, ".livepatch.funcs", `expect`: all must be met before the payload is applied.
    """
    before = (dom0_sees(livepatch_host), dom0_sees(livepatch_host, "version/minor"))
    builder = payloads.builder().replace(
        EXTRA_VERSION, returns_value="NEVER", expect=payloads.expectation(EXTRA_VERSION)
    )
    builder.replace(MINOR_VERSION, returns_value=1, expect=WRONG)
    assert sysctl.patch(builder.build()).failure == "EINVAL"
    assert (dom0_sees(livepatch_host), dom0_sees(livepatch_host, "version/minor")) == before


def test_expectations_are_checked_when_applied(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A payload that expects the original bytes is refused while another one patches them, and applied afterwards.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": "Payload containing the old code to check against".
    """
    original = payloads.expectation(EXTRA_VERSION)
    sysctl.patch(payloads.replace(returns="FIRST", name="lower"))
    upper = payloads.replace(returns="SECOND", expect=original, name="upper")
    assert sysctl.patch(upper, flags=NODEPS).failure == "EINVAL"
    sysctl.action("lower", Action.REVERT)
    assert sysctl.action("upper", Action.APPLY).failure == ""
    assert dom0_sees(livepatch_host) == "SECOND"


def test_the_trampoline_is_what_a_patched_function_begins_with(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """While a function is replaced it begins with a jump to the new one, behind an ENDBR64 if it has one: Xen compares.

    docs/misc/livepatch.pandoc, "Trampoline (e9 opcode), x86" and "Trampoline, ARM". Xen's debug key tells
    where the new function is.
    """
    first = payloads.replace(returns="FIRST")
    assert sysctl.patch(first).failure == ""
    told = re.search(rf"{EXTRA_VERSION} patch [0-9a-f]+\(\d+\) with ([0-9a-f]+)", livepatch_host.xl.debug_keys("x"))
    assert told is not None
    old, start = payloads.symbols.address(EXTRA_VERSION), payloads.first_instruction(EXTRA_VERSION)
    jump = payloads.arch.branch(old + start, int(told[1], 16))
    trampoline = Expectation(payloads.symbols.code(EXTRA_VERSION)[:start] + jump)
    second = payloads.replace(returns="SECOND", on=first, expect=trampoline)
    assert sysctl.patch(second).failure == ""
    assert dom0_sees(livepatch_host) == "SECOND"


def test_an_expectation_of_code_that_is_not_patched(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """An expectation may cover all 31 bytes that it has room for.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": LIVEPATCH_OPAQUE_SIZE bytes.
    """
    expectation = payloads.expectation("arch_livepatch_revert")
    assert len(expectation.content) == 31
    builder = payloads.builder().patch("arch_livepatch_revert", returns(0), expect=expectation)
    # Applied, this would be a hypervisor that cannot revert: one unmet expectation keeps it from being applied.
    builder.replace(MINOR_VERSION, returns_value=1, expect=WRONG)
    assert sysctl.patch(builder.build()).failure == "EINVAL"
    livepatch_host.console.wait_for(f"expectations of {MINOR_VERSION} failed", 5)
