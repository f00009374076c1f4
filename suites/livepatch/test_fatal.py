"""What ends the hypervisor: by design, when a hook lies to it; and malformed payloads that should not, but do.

Where released Xens are known to be wrong, a test asks for what is right and says the known reason when it fails in the
known way; on a Xen that has been mended it passes.
"""

from __future__ import annotations

import pytest

from suites.livepatch.known import FAULT, known_crash
from suites.livepatch.refused import damaged, sound
from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload import damage
from xentests.payload.builder import Hook, Payload, PayloadBuilder
from xentests.payload.code import returns, returns_address
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.sysctl import Action

UNREPORTED = "xen_changeset"
"""A function that Xen's own crash reports do not call, unlike those that tell its version."""

pytestmark = pytest.mark.needs("livepatch")


def lying(payloads: Payloads, kind: Hook) -> PayloadBuilder:
    """A payload whose hook claims to have done what it has not."""
    return payloads.builder("liar").replace(MINOR_VERSION, returns_value=1).hook(kind, returns(0))


def test_an_apply_hook_that_only_says_so(xen_host: Host, payloads: Payloads) -> None:
    """An apply hook that reports success without having applied the functions ends Xen, rather than leave a half patch.

    xen/include/xen/livepatch_payload.h: hooks must "make sure the state of the payload after apply or revert is as
    expected".
    """
    with xen_host.console.expect_crash("partially applied payload 'liar'"):
        xen_host.livepatch.sysctl.patch(lying(payloads, Hook.APPLY).build())


def test_a_revert_hook_that_only_says_so(xen_host: Host, payloads: Payloads) -> None:
    """A revert hook that reports success without having reverted the functions ends Xen.

    xen/include/xen/livepatch_payload.h: hooks must "make sure the state of the payload after apply or revert is as
    expected".
    """
    assert xen_host.livepatch.sysctl.patch(lying(payloads, Hook.REVERT).build()).failure == ""
    with xen_host.console.expect_crash("partially reverted payload 'liar'"):
        xen_host.livepatch.sysctl.action("liar", Action.REVERT)


def _nameless(payloads: Payloads) -> Payload:
    return payloads.builder("bad").nop(MINOR_VERSION, 1, named=False).build()


def _relocating_nothing(payloads: Payloads) -> Payload:
    builder = payloads.builder("bad").replace(EXTRA_VERSION, returns_value="bad")
    return builder.build(damage.relocations(".text", sh_info=0))


CRASHING = {
    "relocations-of-section-0": (
        _relocating_nothing,
        "livepatch_elf_perform_relocs() follows the missing header of section 0",
    ),
    "empty-metadata": (
        damaged(damage.add(".modinfo")),
        "prepare_payload() looks for a NUL 4 GiB behind metadata of no bytes",
    ),
    "size-that-overflows": (
        damaged(damage.add(".data.huge", b"x" * 64, flags=3, sh_size=(1 << 64) - 64)),
        "elf_resolve_sections() adds offset and size without looking for an overflow",
    ),
    "function-without-name-and-address": (
        _nameless,
        "resolve_old_address() looks the name up without having one",
    ),
}


@pytest.mark.parametrize("case", CRASHING)
def test_a_malformed_payload_that_crashes(xen_host: Host, payloads: Payloads, case: str) -> None:
    """Whether such a file is taken or refused, Xen must live on.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD": "if there are any issues the proper return code will be
    returned".
    """
    make, why = CRASHING[case]
    with known_crash(xen_host, FAULT, f"Xen 4.14 to 4.22 crash: {why}"):
        xen_host.livepatch.sysctl.upload(b"bad\0", make(payloads).content)
    assert xen_host.livepatch.sysctl.clear().payloads == 0


def test_a_section_without_alignment(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A section of alignment 0, which ELF says is the same as 1, gets a place of its own.

    docs/misc/livepatch.pandoc, "Design of payload format": "loads the payload as a standard ELF binary"; gABI,
    "Section Header": "Values 0 and 1 mean the section has no alignment constraints".
    """
    builder = payloads.builder().patch(MINOR_VERSION, returns(55))
    other = builder.section(".text.other", flags=6, align=1)
    builder.patch(EXTRA_VERSION, builder.code(returns_address(builder.string("OTHER")), section=other.name), new_size=8)
    sysctl.patch(builder.build(damage.section(other.name, sh_addralign=0)))
    assert dom0_sees(livepatch_host) == "OTHER"
    if dom0_sees(livepatch_host, "version/minor") != "55":
        pytest.xfail("Xen 4.14 to 4.22 put a section of alignment 0 on top of the first one of its kind")


def test_a_function_named_twice(xen_host: Host, payloads: Payloads) -> None:
    """A payload that replaces a function twice is refused, or leaves the original when it is reverted.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": a revert "copies the data from the undo buffer".
    """
    before = dom0_sees(xen_host)
    builder = payloads.builder("twice").replace(EXTRA_VERSION, returns_value="ONE")
    xen_host.livepatch.sysctl.patch(builder.replace(EXTRA_VERSION, returns_value="TWO").build())
    assert dom0_sees(xen_host) == "TWO"
    assert xen_host.livepatch.sysctl.action("twice", Action.REVERT).failure == ""
    if dom0_sees(xen_host) == "ONE":
        pytest.xfail("Xen 4.14 to 4.22 restore in the order of applying: the function still jumps into the payload")
    assert dom0_sees(xen_host) == before


@pytest.mark.parametrize("what", ["write-to-code", "write-to-constants", "run-data"])
def test_a_payloads_memory_is_protected(xen_host: Host, payloads: Payloads, what: str) -> None:
    """A payload's code and read-only data cannot be written to, nor its data be run: Xen ends with a fault.

    docs/misc/livepatch.pandoc, "Not Yet Done", "Alter `.rodata` to be read-only", which has been done since.
    """
    builder = payloads.builder()
    code = builder.new_code()
    if what == "write-to-code":
        code.add32(builder.code(returns(0)), 0)
    elif what == "write-to-constants":
        code.add32(builder.string("constant"), 0)
    else:
        code.jump_to(builder.data(returns(0)(builder.new_code()).content))
    xen_host.livepatch.sysctl.patch(builder.patch(UNREPORTED, code.ret()).build())
    with xen_host.console.expect_crash("FATAL PAGE FAULT|Unexpected Trap"):
        dom0_sees(xen_host, "properties/changeset")


def test_an_undamaged_payload_is_sound(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """What all malformed payloads are made from is taken and applied: it is the damage that is refused."""
    assert sysctl.patch(sound(payloads).build()).failure == ""
