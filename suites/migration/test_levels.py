"""A guest moves to a host whose CPU has other features: refused or taken as Xen's rules say, or levelled beforehand.

Xen compares how far a CPU's leaves go and not its features (xen/lib/x86/policy.c): a guest whose features a host has
not is taken all the same, and loses them while it runs. This suite computes from both hosts' policies what has to
happen, and asks the CPUID instruction inside the guest whether it did.
"""

from __future__ import annotations

import pytest

from fixtures.migration import Travellers
from suites.migration.levels import PAIRS, machine_of_level
from xentests.host.cpu_policy import domain_policy, executed, host_policies, levelled, words
from xentests.host.cpuid_program import fsgsbase_program, typed
from xentests.host.guest_log import GuestFailure
from xentests.host.guest_spec import GuestSpec
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

pytestmark = pytest.mark.needs("save-restore", "pvh", "amd64")

MOST, DEFAULT = "HVM Max", "HVM Default"
_ILLEGAL = 128 + 4


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_unlevelled(travellers: Travellers, one_cpu: Machine, source: str, target: str) -> None:
    """A guest with all that its CPU has is refused by a host that cannot give it that, and runs on where it was.

    docs/features/feature-levelling.pandoc; xen/lib/x86/policy.c, x86_cpu_policies_are_compatible().
    """
    here, there = (machine_of_level(one_cpu, level) for level in (source, target))
    guest = travellers(GuestSpec(kind="pvh"), here=here, there=there, again=False)
    other = guest.migration.other(guest.guest.host)
    mine, most = domain_policy(guest.guest), host_policies(other)[MOST]
    refusal, missing = mine.exceeds(most), mine.features - most.features
    before, seen = guest.progress(), executed(guest.guest)
    log = guest.log_there()
    attempt = guest.migration.attempt(guest.guest)
    told = f"by policy it is to be {(refusal and 'refused for ' + refusal) or 'accepted'}; it has {words(missing)} more"
    if refusal:
        assert not attempt.succeeded, f"{told}:\n{attempt}"
        assert f"Failed to set CPUID policy: {refusal}" in attempt.said, attempt
        guest.stays(before)
        return
    if not attempt.succeeded and missing:
        # Not by policy, but late, by state of the CPU that the other cannot hold: bits of CR4, or what XSAVE had.
        assert "Unable to restore HVM context" in attempt.said, attempt
        guest.stays(before)
        return
    assert attempt.succeeded, f"{told}:\n{attempt}"
    assert attempt.source is None, f"{told}:\n{attempt}"
    assert attempt.destination is not None, f"{told}:\n{attempt}"
    arrived = guest.arrive(log, attempt.destination.domid)
    try:
        now = executed(arrived)
    except GuestFailure:
        said = log.raw()
        if missing and (b"invalid opcode" in said or b"Illegal instruction" in said):
            pytest.xfail(f"Xen takes a guest to a CPU without {words(missing)}, and it dies there")
        raise
    lost, new = seen.features - now.features, now.features - seen.features
    assert not new, f"it sees what it has not booted with: {words(new)}"
    assert lost <= missing, f"{told}, and lost {words(lost)}"
    guest.works_since(before)
    if lost:
        pytest.xfail(f"Xen takes a guest to a CPU without {words(lost)}, which it loses while it runs")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_levelled(travellers: Travellers, one_cpu: Machine, source: str, target: str) -> None:
    """A guest that was made with what both CPUs have moves there and back, and CPUID answers it the same all along.

    docs/man/xl.cfg.5, "cpuid"; docs/features/feature-levelling.pandoc.
    """
    here, there = (machine_of_level(one_cpu, level) for level in (source, target))
    pair = travellers.pair(here=here, there=there)
    mine, theirs = host_policies(pair.a)[DEFAULT], host_policies(pair.b)[DEFAULT]
    spec = GuestSpec(kind="pvh", options={"cpuid": levelled(mine, theirs)})
    guest = travellers.made(pair, spec)
    policy, seen = domain_policy(guest.guest), executed(guest.guest)
    common = mine.features & theirs.features
    assert policy.features == common, (
        f"the levelled set is not the intersection: it lacks {words(common - policy.features)}, and has "
        f"{words(policy.features - common)} more"
    )
    for _ in ("there", "back"):
        guest.go()
        now = executed(guest.guest)
        assert now.features == seen.features, (
            f"CPUID lost {words(seen.features - now.features)}, and won {words(now.features - seen.features)}"
        )
        assert now.limits == seen.limits


def test_a_masked_feature_cannot_be_used(hosts: Hosts, one_cpu: Machine) -> None:
    """A guest uses FSGSBASE where it has it; one that was levelled for a CPU without is not told of it, and is stopped.

    docs/man/xl.cfg.5, "cpuid"; AMD64 Architecture Programmer's Manual volume 3, RDFSBASE: #UD without CR4.FSGSBASE,
    which Xen does not let a guest set whose policy has not got it (hvm_cr4_guest_valid_bits()).
    """
    host = hosts.pristine(machine=machine_of_level(one_cpu, "max"), again=False)
    endings = []
    for name, cpuid in (("all", ""), ("masked", "host,fsgsbase=0")):
        guest = host.guests.create(GuestSpec(name=name, kind="pvh", cpuid=cpuid))
        assert ("fsgsbase" in words(executed(guest).features).split()) == (name == "all")
        for line in typed(fsgsbase_program(), "/tmp/rdfsbase"):
            guest.succeed(line)
        endings.append(guest.run("/tmp/rdfsbase 2>/dev/null").exit_code)
    assert endings == [0, _ILLEGAL]


def test_a_policy_beyond_the_host_is_refused(hosts: Hosts, one_cpu: Machine) -> None:
    """A guest that is to have more leaves of CPUID than its host can give is not made, and xl says which leaf.

    xen/lib/x86/policy.c: "if ( guest->basic.max_leaf > host->basic.max_leaf )".
    """
    host = hosts.pristine(machine=one_cpu)
    before = host.leaks.snapshot()
    spec = GuestSpec(kind="pvh", options={"cpuid": [f"0x0:eax={0xFF:032b}"]})
    with pytest.raises(GuestFailure) as refused:
        host.guests.create(spec)
    assert "err leaf 0, " in str(refused.value)
    host.leaks.check(before)
