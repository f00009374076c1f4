"""What payloads for x86-64 have: alternatives, an exception table, bug frames. For arm64: ``test_arm64``."""

from __future__ import annotations

import struct

import pytest

from suites.livepatch.refused import Case, damaged, sound, try_upload
from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload import damage, elf
from xentests.payload.builder import PayloadBuilder
from xentests.payload.code import returns
from xentests.payload.elf import R_X86_64_PC32, Place, Relocation
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.x86 import NOP, Code

pytestmark = pytest.mark.needs("livepatch", "amd64")

ALWAYS, NEVER = 0, 10
"""CPU features by number: leaf 1, edx: bit 0 (an FPU) is there on every x86-64, bit 10 is reserved."""
UNREPORTED = "xen_changeset"
"""A function that Xen's own crash reports do not call, unlike those that tell its version."""
NON_CANONICAL = 0xDEAD << 48


def add_alternative(builder: PayloadBuilder, feature: int, *, original: Place, length: int, replacement: bytes) -> None:
    """Add an entry of .altinstructions (struct alt_instr: two relative addresses, feature, three lengths, private)."""
    text = builder.section(".altinstr_replacement", flags=elf.SHF_ALLOC | elf.SHF_EXECINSTR, align=1)
    place = builder.put(text, replacement)
    table = builder.section(".altinstructions", align=1)
    entry = builder.put(table, bytes(8) + struct.pack("<HBBBB", feature, length, len(replacement), 0, 0))
    table.relocations.append(Relocation(entry.offset, original, R_X86_64_PC32))
    table.relocations.append(Relocation(entry.offset + 4, place, R_X86_64_PC32))


def add_fixup(builder: PayloadBuilder, fault: Place, resume: Place) -> None:
    """Add an entry of .ex_table: where an exception may happen, and where to go on; both relative to themselves."""
    table = builder.section(".ex_table", align=4)
    entry = builder.put(table, bytes(8))
    table.relocations.append(Relocation(entry.offset, fault, R_X86_64_PC32))
    table.relocations.append(Relocation(entry.offset + 4, resume, R_X86_64_PC32))


def add_bug_frame(builder: PayloadBuilder, kind: int, where: Place, *, file: str, line: int) -> None:
    """Add a bug frame (xen/include/xen/bug.h): two displacements of 24 bits, each with half of the line above it."""
    frames = builder.section(f".bug_frames.{kind}", align=4)
    frame = builder.put(frames, bytes(8))
    name = builder.put(builder.section(".rodata.files", align=1), file.encode() + b"\0")
    frames.relocations.append(Relocation(frame.offset, where, R_X86_64_PC32, line >> 7 << 24))
    frames.relocations.append(Relocation(frame.offset + 4, name, R_X86_64_PC32, 4 + ((line & 0x7F) << 24)))


@pytest.mark.parametrize(("feature", "expected"), [(ALWAYS, 2), (NEVER, 1)], ids=["present", "absent"])
def test_alternatives(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, feature: int, expected: int
) -> None:
    """An instruction has its alternative put in its place when the CPU has the feature, and not otherwise.

    docs/misc/livepatch.pandoc, "Alternative assembler".
    """
    builder = payloads.builder()
    place = builder.code(returns(1))
    add_alternative(builder, feature, original=place, length=5, replacement=Code().set_result(2).content)
    sysctl.patch(builder.patch(MINOR_VERSION, place, new_size=6).build())
    assert dom0_sees(livepatch_host, "version/minor") == str(expected)


def test_a_shorter_alternative_is_padded(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """What a shorter alternative leaves of the original instruction is filled with NOPs.

    docs/misc/livepatch.pandoc, "Alternative assembler": "padded with `nop` operations".
    """
    builder = payloads.builder()
    place = builder.code(Code(b"\x31\xc0").set_result(1).ret())  # xor %eax, %eax; mov $1, %eax
    add_alternative(builder, ALWAYS, original=place + 2, length=5, replacement=NOP)
    sysctl.patch(builder.patch(MINOR_VERSION, place, new_size=8).build())
    assert dom0_sees(livepatch_host, "version/minor") == "0"


def test_alternatives_without_replacements(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """An empty .altinstructions is no fault.

    docs/misc/livepatch.pandoc, "Design of payload format": architecture-specific sections are optional.
    """
    payload = sound(payloads).build(damage.add(".altinstructions"))
    sysctl.patch(payload)
    assert dom0_sees(livepatch_host, "version/minor") == "13"


@pytest.mark.needs("livepatch-checked-alternatives")
@pytest.mark.parametrize("case", ["original-outside", "replacement-outside", "no-replacements"])
def test_alternatives_that_reach_out(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """Alternatives that would patch anything but the payload's own code, or come from elsewhere, are refused: EINVAL.

    docs/misc/livepatch.pandoc, "Alternative assembler".
    """
    builder = payloads.builder("bad")
    place = builder.code(returns(1))
    builder.patch(MINOR_VERSION, place, new_size=6)
    text = Code().set_result(2).content
    add_alternative(builder, ALWAYS, original=place, length=5, replacement=text)
    table = builder.section(".altinstructions").relocations
    if case == "original-outside":
        table[0] = Relocation(0, MINOR_VERSION, R_X86_64_PC32)
        reason = "Alternative orig .* outside payload text"
    elif case == "replacement-outside":
        table[1] = Relocation(4, place, R_X86_64_PC32)
        reason = "Alternative repl .* outside .altinstr_replacement"
    else:
        builder.section(".altinstr_replacement").name = ".text.elsewhere"
        table[1] = Relocation(4, Place(".text.elsewhere"), R_X86_64_PC32)
        reason = "no .altinstr_replacement"
    try_upload(livepatch_host, payloads, Case(lambda _: builder.build(), ("EINVAL",), f".*{reason}"))


def test_the_size_of_the_exception_table(livepatch_host: Host, payloads: Payloads) -> None:
    """An exception table that is no array of whole entries is refused with EINVAL.

    docs/misc/livepatch.pandoc, "Design of payload format": architecture-specific sections.
    """
    cut_off = damaged(damage.add(".ex_table", bytes(12)))
    try_upload(livepatch_host, payloads, Case(cut_off, ("EINVAL",), r"Wrong size 12 of .ex_table"))


def test_the_exception_table(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """New code that touches a non-canonical address goes on where the payload's exception table says.

    docs/misc/livepatch.pandoc, "Exception tables and symbol tables growth".
    """
    builder = payloads.builder()
    code = Code().mov("rdx", NON_CANONICAL).label("fault").load("rax", "rdx").lea("rax", builder.string("NO FAULT"))
    code.ret().label("fixup").lea("rax", builder.string("CAUGHT")).ret()
    place = builder.code(code)
    add_fixup(builder, place + code.offset_of("fault"), place + code.offset_of("fixup"))
    sysctl.patch(builder.patch(EXTRA_VERSION, place).build())
    assert dom0_sees(livepatch_host) == "CAUGHT"
    assert livepatch_host.succeed("xl", "list").exit_code == 0


def test_the_exception_table_is_sorted(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Entries of an exception table are found in whatever order they come.

    docs/misc/livepatch.pandoc, "Exception tables and symbol tables growth".
    """
    builder = payloads.builder()
    code = Code().mov("rdx", NON_CANONICAL).label("1").load("rax", "rdx").ret()
    code.label("2").load("rax", "rdx").ret().label("3").lea("rax", builder.string("BOTH")).ret()
    place = builder.code(code)
    for fault, resume in (("2", "3"), ("1", "2")):
        add_fixup(builder, place + code.offset_of(fault), place + code.offset_of(resume))
    sysctl.patch(builder.patch(EXTRA_VERSION, place).build())
    assert dom0_sees(livepatch_host) == "BOTH"


def test_a_warning_in_new_code(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """WARN in new code tells the payload's own file and line, and goes on.

    docs/misc/livepatch.pandoc, "Exception tables and symbol tables growth": "additional entries in the exception table
    and/or the bug frames".
    """
    builder = payloads.builder()
    place = builder.code(Code().ud2().lea("rax", builder.string("WARNED")).ret())
    add_bug_frame(builder, 1, place, file="hotfix.c", line=321)
    sysctl.patch(builder.patch(UNREPORTED, place).build())
    livepatch_host.console.read()
    assert dom0_sees(livepatch_host, "properties/changeset") == "WARNED"
    livepatch_host.console.wait_for(r"Xen WARN at hotfix\.c:321", 5)
    assert livepatch_host.succeed("xl", "list").exit_code == 0


def test_a_bug_in_new_code(guest_host: Host, payloads: Payloads) -> None:
    """BUG in new code ends Xen with a report that tells the payload's file and line, and the payload by its name.

    docs/misc/livepatch.pandoc, "Exception tables and symbol tables growth".
    """
    builder = payloads.builder("culprit")
    place = builder.code(Code(NOP * 4).ud2())
    builder.export("xentests_culprit", place + 1)
    add_bug_frame(builder, 2, place + 4, file="hotfix.c", line=1234)
    guest_host.livepatch.upload(builder.patch(UNREPORTED, place).build()).apply()
    with guest_host.console.expect_crash(r"Xen BUG at hotfix\.c:1234") as crash:
        dom0_sees(guest_host, "properties/changeset")
    assert "xentests_culprit" in crash.report
    assert "[culprit]" in crash.report
