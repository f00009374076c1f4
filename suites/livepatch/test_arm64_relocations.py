"""Relocations of arm64: those that code and data are made with do what the ABI says, and what does not fit is refused.

Source of all: "ELF for the Arm 64-bit Architecture" (AAELF64), "Relocation". The old function's number or string is
replaced by one that the new code finds by the relocation under test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from suites.livepatch.refused import Case, Make, damaged, try_upload
from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload import damage, elf
from xentests.payload.arm64 import BRANCH, Code
from xentests.payload.builder import PayloadBuilder
from xentests.payload.code import returns
from xentests.payload.elf import Place, Relocation
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads

pytestmark = pytest.mark.needs("livepatch", "arm64")

NUMBER = 177
GIVEN = "xentests_given"
"""A symbol of the payload that is a number, not an address."""


def table(builder: PayloadBuilder, target: Place | str, kind: int) -> Place:
    """Eight bytes of read-only data that a relocation is applied to."""
    section = builder.section(".rodata.table")
    place = builder.put(section, bytes(8))
    section.relocations.append(Relocation(place.offset, target, kind))
    return place


def _movw(builder: PayloadBuilder, text: Place) -> Code:
    code = Code().fixup(text, elf.R_AARCH64_MOVW_UABS_G0_NC).words(0xD2800000)  # movz x0
    code.fixup(text, elf.R_AARCH64_MOVW_UABS_G1_NC).words(0xF2A00000)  # movk x0, lsl #16
    code.fixup(text, elf.R_AARCH64_MOVW_UABS_G2_NC).words(0xF2C00000)
    return code.fixup(text, elf.R_AARCH64_MOVW_UABS_G3).words(0xF2E00000)


def _relative(kind: int, load: int) -> Callable[[PayloadBuilder, Place], Code]:
    """Code that adds the distance in a table to the table's address; ``load`` is an instruction: x0 from [x1]."""
    return lambda builder, text: Code().address(1, table(builder, text, kind)).words(load).add_register(0, 1)


ADDRESSES: dict[str, Callable[[PayloadBuilder, Place], Code]] = {
    "adr": lambda builder, text: Code().fixup(text, elf.R_AARCH64_ADR_PREL_LO21).words(0x10000000),
    "adrp-add": lambda builder, text: Code().address(0, text),
    "movz-movk": _movw,
    "absolute-64": lambda builder, text: Code().load_pointer(table(builder, text, elf.R_AARCH64_ABS64)),
    "relative-64": _relative(elf.R_AARCH64_PREL64, 0xF9400020),  # ldr
    "relative-32": _relative(elf.R_AARCH64_PREL32, 0xB9800020),  # ldrsw
    "relative-16": _relative(elf.R_AARCH64_PREL16, 0x79800020),  # ldrsh
}

NUMBERS: dict[str, Callable[[PayloadBuilder], Code]] = {
    "absolute-32": lambda builder: Code().load_result(table(builder, GIVEN, elf.R_AARCH64_ABS32)),
    "absolute-16": lambda builder: Code().load_result(table(builder, GIVEN, elf.R_AARCH64_ABS16)),
    "movz": lambda builder: Code().fixup(GIVEN, elf.R_AARCH64_MOVW_UABS_G0).words(0xD2800000),
    "load-64": lambda builder: Code().load_pointer(builder.data(NUMBER.to_bytes(8, "little"))),
}

BRANCHES = {
    "b": (elf.R_AARCH64_JUMP26, BRANCH),
    "b.al": (elf.R_AARCH64_CONDBR19, 0x5400000E),
    "cbz": (elf.R_AARCH64_CONDBR19, 0xB400001F),  # cbz xzr
    "tbz": (elf.R_AARCH64_TSTBR14, 0x3600001F),  # tbz wzr, #0
}


@pytest.mark.parametrize("how", ADDRESSES)
def test_code_finds_an_address(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, how: str) -> None:
    """The address of a string, as compilers find it in code and in tables."""
    builder = payloads.builder()
    code = ADDRESSES[how](builder, builder.string(f"by {how}"))
    assert sysctl.patch(builder.patch(EXTRA_VERSION, code.ret()).build()).failure == ""
    assert dom0_sees(livepatch_host) == f"by {how}"


@pytest.mark.parametrize("how", NUMBERS)
def test_code_finds_a_number(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, how: str) -> None:
    """A symbol's value as a number of 16 or 32 bits, and a load from an address in two parts."""
    builder = payloads.builder()
    code = NUMBERS[how](builder)
    given = damage.symbol(GIVEN, st_shndx=elf.SHN_ABS, st_value=NUMBER)
    assert sysctl.patch(builder.patch(MINOR_VERSION, code.ret()).build(given)).failure == ""
    assert dom0_sees(livepatch_host, "version/minor") == str(NUMBER)


@pytest.mark.parametrize("how", BRANCHES)
def test_code_branches(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, how: str) -> None:
    """Each kind of branch leads to another section of the payload."""
    builder = payloads.builder()
    kind, instruction = BRANCHES[how]
    target = builder.code(returns(NUMBER), section=".text.elsewhere")
    code = Code().fixup(target, kind).words(instruction).set_result(0).ret()
    assert sysctl.patch(builder.patch(MINOR_VERSION, code).build()).failure == ""
    assert dom0_sees(livepatch_host, "version/minor") == str(NUMBER)


def test_code_calls(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A call leads to another section of the payload, and back."""
    builder = payloads.builder()
    target = builder.code(returns(NUMBER - 1), section=".text.elsewhere")
    code = Code().enter().call(target).add(0, 1).leave().ret()
    assert sysctl.patch(builder.patch(MINOR_VERSION, code).build()).failure == ""
    assert dom0_sees(livepatch_host, "version/minor") == str(NUMBER)


def _reaching(kind: int, addend: int) -> Make:
    """A sound payload with a relocation to ``addend`` bytes from its code, some pages away from it."""
    return damaged(damage.relocate(".data", Relocation(0, Place(".text"), kind, addend)))


def _beyond(kind: int, addend: int, *, known: str = "") -> Case:
    taken = {"arm64": known} if known else {}
    return Case(_reaching(kind, addend), ("EOVERFLOW",), "Overflow in relocation 0 in .rela.data", taken=taken)


KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TOO_FAR = {
    "absolute-32": _beyond(elf.R_AARCH64_ABS32, 1 << 40),
    "absolute-16": _beyond(elf.R_AARCH64_ABS16, 0),
    "relative-32": _beyond(elf.R_AARCH64_PREL32, 1 << 40),
    "relative-32-back": _beyond(elf.R_AARCH64_PREL32, -(1 << 40)),
    "relative-16": _beyond(elf.R_AARCH64_PREL16, 1 << 17),
    "movz": _beyond(elf.R_AARCH64_MOVW_UABS_G0, 0),
    "movz-16": _beyond(elf.R_AARCH64_MOVW_UABS_G1, 1 << 48),
    "movz-32": _beyond(elf.R_AARCH64_MOVW_UABS_G2, 1 << 49),
    "adr": _beyond(elf.R_AARCH64_ADR_PREL_LO21, 2 * MIB),
    "adr-back": _beyond(elf.R_AARCH64_ADR_PREL_LO21, -2 * MIB),
    "adrp": _beyond(elf.R_AARCH64_ADR_PREL_PG_HI21, 8 * GIB),
    "adrp-back": _beyond(elf.R_AARCH64_ADR_PREL_PG_HI21, -8 * GIB),
    "b": _beyond(elf.R_AARCH64_JUMP26, 129 * MIB),
    "b-back": _beyond(elf.R_AARCH64_JUMP26, -129 * MIB),
    "bl": _beyond(elf.R_AARCH64_CALL26, 129 * MIB),
    "bl-back": _beyond(elf.R_AARCH64_CALL26, -129 * MIB),
    "b.cond": _beyond(elf.R_AARCH64_CONDBR19, 2 * MIB),
    "b.cond-back": _beyond(elf.R_AARCH64_CONDBR19, -2 * MIB),
    "tbz": _beyond(
        elf.R_AARCH64_TSTBR14,
        128 * KIB,
        known="Xen 4.14 to 4.22 check R_AARCH64_TSTBR14 as if it had 19 bits: this one goes somewhere else",
    ),
    "tbz-far": _beyond(elf.R_AARCH64_TSTBR14, 2 * MIB),
}

NEAR = {
    "adr": (elf.R_AARCH64_ADR_PREL_LO21, 900 * KIB),
    "adrp": (elf.R_AARCH64_ADR_PREL_PG_HI21, 3 * GIB),
    "b": (elf.R_AARCH64_JUMP26, 127 * MIB),
    "bl-back": (elf.R_AARCH64_CALL26, -127 * MIB),
    "b.cond": (elf.R_AARCH64_CONDBR19, 900 * KIB),
    "without-check": (elf.R_AARCH64_ADD_ABS_LO12_NC, 1 << 40),
}


@pytest.mark.parametrize("case", TOO_FAR)
def test_what_a_relocation_cannot_hold(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """A value or a distance that the relocated place has no bits for is refused with EOVERFLOW."""
    try_upload(livepatch_host, payloads, TOO_FAR[case])


@pytest.mark.parametrize("case", NEAR)
def test_what_a_relocation_just_holds(sysctl: LivepatchSysctl, payloads: Payloads, case: str) -> None:
    """A tenth less than the farthest distance is taken, and so is whatever value where the ABI asks for no check."""
    payload = _reaching(*NEAR[case])(payloads)
    assert sysctl.upload(payload.name.encode() + b"\0", payload.content).error == ""


def test_a_relocation_in_the_last_half_word(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A 16-bit relocation at the last two bytes of a section is applied."""
    builder = payloads.builder("last").replace(MINOR_VERSION, returns_value=1)
    section = builder.section(".rodata.last", align=2)
    builder.put(section, bytes(2))
    section.relocations.append(Relocation(0, GIVEN, elf.R_AARCH64_ABS16))
    payload = builder.build(damage.symbol(GIVEN, st_shndx=elf.SHN_ABS, st_value=NUMBER))
    answer = sysctl.upload(b"last\0", payload.content)
    if answer.error == "EINVAL":
        pytest.xfail("Xen 4.14 to 4.22 on Arm hold that no relocation has less than 32 bits")
    assert answer.error == ""
