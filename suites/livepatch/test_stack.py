"""Payloads on top of each other: build-id dependencies, the order of reverts, and `replace`, which ends a stack."""

from __future__ import annotations

import pytest

from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload.builder import Expectation, Hook, Payload
from xentests.payload.code import returns
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.sysctl import NODEPS, Action, Status

pytestmark = pytest.mark.needs("livepatch")


def stacked(sysctl: LivepatchSysctl, payloads: Payloads, height: int) -> list[Payload]:
    """``height`` applied payloads, each on the one before, all replacing the extra version by their level."""
    files: list[Payload] = []
    for level in range(height):
        files.append(payloads.replace(returns=f"level {level}", on=files[-1] if files else None))
        assert sysctl.patch(files[-1]).failure == ""
    return files


def test_a_stack_of_payloads(livepatch_host: Host, payloads: Payloads) -> None:
    """Three payloads replace one function, each depending on the one before: the top one rules, and comes off first.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": a hotpatch stack, in the order of its build-ids.
    """
    before = dom0_sees(livepatch_host)
    first = payloads.replace(returns="level 0")
    second = payloads.replace(returns="level 1", on=first)
    applied = []
    for file in (first, second, payloads.replace(returns="level 2", on=second)):
        applied.append(livepatch_host.livepatch.upload(file))
        applied[-1].apply()
    assert dom0_sees(livepatch_host) == "level 2"
    for level in (1, 0):
        applied.pop().revert()
        assert dom0_sees(livepatch_host) == f"level {level}"
    applied.pop().revert()
    assert dom0_sees(livepatch_host) == before


def test_payloads_of_a_stack_that_patch_different_functions(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """Two payloads of a stack are in force at the same time when they patch different functions."""
    first = payloads.replace(EXTRA_VERSION, returns="both")
    sysctl.patch(first)
    sysctl.patch(payloads.replace(MINOR_VERSION, returns=22, on=first))
    assert (dom0_sees(livepatch_host), dom0_sees(livepatch_host, "version/minor")) == ("both", "22")


def test_only_the_top_of_a_stack_is_reverted(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Reverting a payload below another one is refused with EBUSY, and nothing changes.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": the order of the stack is strict.
    """
    bottom, _ = stacked(sysctl, payloads, 2)
    with pytest.raises(LivepatchError) as refused:
        livepatch_host.livepatch.payload(bottom.name).revert(patience_s=0)
    assert refused.value.errno == "EBUSY"
    livepatch_host.console.wait_for("p1: can't unload. Top is p2", 5)
    assert sysctl.states() == {"p1": "APPLIED", "p2": "APPLIED"}
    assert dom0_sees(livepatch_host) == "level 1"


def test_the_first_payload_depends_on_the_hypervisor(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A payload that depends on another one cannot be applied as the first.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": "The very first payload depends on the hypervisor
    build-id only".
    """
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="orphan", on=payloads.replace(returns="absent")))
    with pytest.raises(LivepatchError) as refused:
        payload.apply()
    assert refused.value.errno == "EINVAL"
    assert sysctl.get(payload.name).state == "CHECKED"
    livepatch_host.console.wait_for("check against hypervisor build-id failed", 5)


def test_a_dependency_must_be_applied_not_only_uploaded(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A payload waits until the one it depends on has been applied.

    docs/misc/livepatch.pandoc, "Live patch interdependencies".
    """
    first = payloads.replace(returns="first", name="lower")
    livepatch_host.livepatch.upload(first)
    assert sysctl.patch(payloads.replace(returns="second", on=first, name="upper")).error == "EINVAL"
    assert sysctl.action("lower", Action.APPLY).failure == ""
    assert sysctl.action("upper", Action.APPLY).failure == ""
    assert dom0_sees(livepatch_host) == "second"


@pytest.mark.parametrize("depends_on", ["hypervisor", "bottom"])
def test_a_payload_goes_on_the_top_of_the_stack_only(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, depends_on: str
) -> None:
    """With two payloads applied, one that depends on the hypervisor or on the lower one is refused with EINVAL.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": each depends on the previous payload in the stack.
    """
    bottom, _ = stacked(sysctl, payloads, 2)
    on = None if depends_on == "hypervisor" else bottom
    outcome = sysctl.patch(payloads.replace(MINOR_VERSION, returns=1, on=on))
    assert (outcome.error, outcome.state) == ("EINVAL", "CHECKED")
    livepatch_host.console.wait_for("p3: check against p2 build-id failed", 5)


@pytest.mark.needs("livepatch-nodeps")
@pytest.mark.parametrize("depends_on", ["hypervisor", "absent"])
def test_nodeps_ignores_the_stack(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, depends_on: str
) -> None:
    """`apply --nodeps` applies a payload whatever was applied before.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_APPLY_NODEPS: "ignores inter-module buildid dependency".
    """
    stacked(sysctl, payloads, 1)
    on = None if depends_on == "hypervisor" else payloads.replace(returns="absent")
    payload = livepatch_host.livepatch.upload(payloads.replace(MINOR_VERSION, returns=1, on=on))
    payload.apply(nodeps=True)
    assert (dom0_sees(livepatch_host), dom0_sees(livepatch_host, "version/minor")) == ("level 0", "1")


@pytest.mark.needs("livepatch-nodeps")
def test_a_payload_applied_with_nodeps_is_the_new_top(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """What was applied with --nodeps is part of the stack: the next depends on it, and it is reverted first.

    docs/misc/livepatch.pandoc, "Live patch interdependencies".
    """
    (bottom,) = stacked(sysctl, payloads, 1)
    loose = payloads.replace(returns="loose")
    assert sysctl.patch(loose, flags=NODEPS).failure == ""
    assert sysctl.action(bottom.name, Action.REVERT).error == "EBUSY"
    assert sysctl.patch(payloads.replace(returns="upon", on=loose)).failure == ""
    assert dom0_sees(livepatch_host) == "upon"


def test_a_flag_that_does_not_exist(livepatch_host: Host, payloads: Payloads) -> None:
    """`xen-livepatch apply` with an unknown flag does nothing and says so."""
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="never"))
    answer = livepatch_host.fail("xen-livepatch", "apply", payload.name, "--nosuchflag")
    assert b"Unsupported flag: --nosuchflag" in answer.stderr
    assert payload.state == "CHECKED"


def test_replace_ends_a_stack(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """`replace` reverts all applied payloads and applies one that depends on the hypervisor alone.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_REPLACE: "Revert all applied payloads and apply this payload".
    """
    before = dom0_sees(livepatch_host)
    stacked(sysctl, payloads, 3)
    payload = livepatch_host.livepatch.upload(payloads.replace(MINOR_VERSION, returns=7))
    payload.replace()
    assert sysctl.states() == {"p1": "CHECKED", "p2": "CHECKED", "p3": "CHECKED", "p4": "APPLIED"}
    assert (dom0_sees(livepatch_host), dom0_sees(livepatch_host, "version/minor")) == (before, "7")


def test_replace_of_the_same_function(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload replaces another one of the same function, and its own revert leads back to the original.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_REPLACE.
    """
    before = dom0_sees(livepatch_host)
    stacked(sysctl, payloads, 1)
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="instead"))
    payload.replace()
    assert dom0_sees(livepatch_host) == "instead"
    payload.revert()
    assert dom0_sees(livepatch_host) == before


def test_a_replaced_payload_can_be_applied_again(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """Payloads that `replace` reverted are CHECKED like any reverted ones: they can be applied and unloaded.

    docs/misc/livepatch.pandoc, "State transition table".
    """
    (replaced,) = stacked(sysctl, payloads, 1)
    sysctl.patch(payloads.replace(returns="instead", name="new"), Action.REPLACE)
    sysctl.action("new", Action.REVERT)
    assert sysctl.action(replaced.name, Action.APPLY).failure == ""
    assert dom0_sees(livepatch_host) == "level 0"


def test_replace_with_nothing_applied(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """`replace` applies a payload when there is nothing to revert, too."""
    assert sysctl.patch(payloads.replace(returns="alone"), Action.REPLACE).state == "APPLIED"
    assert dom0_sees(livepatch_host) == "alone"


def test_replace_checks_against_the_hypervisor(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """`replace` with a payload that depends on another one is refused with EINVAL, and the stack stands.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": what is applied first depends on the hypervisor.
    """
    (bottom,) = stacked(sysctl, payloads, 1)
    outcome = sysctl.patch(payloads.replace(returns="never", on=bottom), Action.REPLACE)
    assert (outcome.error, outcome.state) == ("EINVAL", "CHECKED")
    assert sysctl.get(bottom.name).state == "APPLIED"
    assert dom0_sees(livepatch_host) == "level 0"


def test_replace_whose_expectation_is_not_met_reverts_all_the_same(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """Expectations of a replacing payload are looked at after all others were reverted; if not met, none is in force.

    docs/misc/livepatch.pandoc, "State transition table": REPLACE with error leads to CHECKED; Xen warns on its console.
    """
    before = dom0_sees(livepatch_host)
    (bottom,) = stacked(sysctl, payloads, 1)
    wrong = payloads.replace(MINOR_VERSION, returns=1, expect=Expectation(b"\xde\xad"))
    assert sysctl.patch(wrong, Action.REPLACE).status == Status("", "CHECKED", "EINVAL")
    assert sysctl.get(bottom.name).state == "CHECKED"
    assert dom0_sees(livepatch_host) == before
    livepatch_host.console.wait_for("SYSTEM MIGHT BE INSECURE", 5)


VETOING = [Hook.PRE_APPLY, Hook.POST_APPLY, Hook.PRE_REVERT, Hook.POST_REVERT]


@pytest.mark.parametrize("kind", VETOING, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("where", ["new", "applied"])
def test_replace_and_vetoing_hooks_exclude_each_other(
    sysctl: LivepatchSysctl, payloads: Payloads, kind: Hook, where: str
) -> None:
    """`replace` is refused with EOPNOTSUPP when the new or an applied payload has a pre- or post-hook.

    xen/include/xen/livepatch_payload.h: filling any of those hooks "will block the usage of the REPLACE action".
    """
    plain = payloads.replace(returns="plain")
    hooked = payloads.builder().replace(MINOR_VERSION, returns_value=1).hook(kind, returns(0)).build()
    lower, upper = (plain, hooked) if where == "new" else (hooked, plain)
    assert sysctl.patch(lower).failure == ""
    outcome = sysctl.patch(upper, Action.REPLACE)
    assert (outcome.error, outcome.state) == ("EOPNOTSUPP", "CHECKED")
    assert sysctl.get(lower.name).state == "APPLIED"
