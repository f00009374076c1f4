"""Files that are not proper ELF payloads: each is refused with its errno, and Xen lives on with nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from suites.livepatch.refused import Case, Make, damaged, rewritten, sound, try_tool, try_upload
from xentests.host.host import Host
from xentests.payload import damage, elf
from xentests.payload.architecture import AMD64, ARM64, Architecture, of_machine
from xentests.payload.builder import Payload
from xentests.payload.elf import ElfFile, Place, Relocation
from xentests.payload.factory import Payloads

pytestmark = pytest.mark.needs("livepatch")

INVALID, UNSUPPORTED = ("EINVAL",), ("EOPNOTSUPP",)
MACHINE = "Unsupported ELF Machine type"
NOT_ELF = "Not an ELF payload"
NOT_RELOCATABLE = "Invalid ELF payload"

FILES = {
    "empty": Case(rewritten(lambda content: b""), INVALID),
    "one-byte": Case(rewritten(lambda content: content[:1]), INVALID, "Section header is bigger than payload"),
    "half-a-header": Case(rewritten(lambda content: content[:63]), INVALID, "Section header is bigger than payload"),
    "header-alone": Case(rewritten(lambda content: content[:64]), INVALID, "Bogus e_shoff"),
    "a-third": Case(rewritten(lambda content: content[: len(content) // 3]), INVALID, "Bogus e_shoff"),
    "last-byte-missing": Case(rewritten(lambda content: content[:-1]), INVALID, "Section header size is corrupted"),
    "zeros": Case(rewritten(lambda content: bytes(4096)), INVALID, NOT_ELF),
    "random-bytes": Case(rewritten(lambda content: random.Random(7).randbytes(4096)), INVALID, NOT_ELF),
    "text": Case(rewritten(lambda content: b"#!/bin/sh\n" * 100), INVALID, NOT_ELF),
    "huge": Case(rewritten(lambda content: content.ljust((2 << 20) + 1, b"\0")), INVALID),
}


def _of_the_other(payloads: Payloads) -> Payload:
    """A payload whose file says that it is for the other architecture."""
    other = ARM64 if payloads.arch is AMD64 else AMD64
    return sound(payloads).build(damage.header(e_machine=other.machine))


HEADERS = {
    "magic": Case(damaged(damage.header(ei_mag0=0x7E)), INVALID, NOT_ELF),
    "wrong-machine": Case(damaged(damage.header(e_machine=elf.EM_386)), UNSUPPORTED, MACHINE),
    "32-bit": Case(damaged(damage.header(ei_class=1)), UNSUPPORTED, MACHINE),
    "big-endian": Case(
        damaged(damage.header(ei_data=2)),
        UNSUPPORTED,
        MACHINE,
        taken={"arm64": "Xen 4.14 to 4.22 on Arm: arch_livepatch_verify_elf() does not look at the order of bytes"},
    ),
    "other-architecture": Case(_of_the_other, UNSUPPORTED, MACHINE),
    "32-bit-arm": Case(damaged(damage.header(e_machine=elf.EM_ARM)), UNSUPPORTED, MACHINE),
    "executable": Case(damaged(damage.header(e_type=2)), UNSUPPORTED, NOT_RELOCATABLE),
    "shared-library": Case(damaged(damage.header(e_type=3)), UNSUPPORTED, NOT_RELOCATABLE),
    "elf-version": Case(damaged(damage.header(e_version=2)), UNSUPPORTED, NOT_RELOCATABLE),
    "os-abi": Case(damaged(damage.header(ei_osabi=3)), UNSUPPORTED, NOT_RELOCATABLE),
    "abi-version": Case(damaged(damage.header(ei_abiversion=1)), UNSUPPORTED, NOT_RELOCATABLE),
    "program-headers": Case(damaged(damage.header(e_phnum=1)), UNSUPPORTED, NOT_RELOCATABLE),
    "no-section-names": Case(damaged(damage.header(e_shstrndx=0)), INVALID, "Section name idx is undefined"),
    "names-past-end": Case(damaged(damage.header(e_shstrndx=99)), INVALID, "Section name idx .* is past end"),
    "no-sections": Case(damaged(damage.header(e_shnum=0)), INVALID, "Section name idx .* is past end"),
    "too-many-sections": Case(damaged(damage.header(e_shnum=1024)), UNSUPPORTED, "Too many .* sections"),
    "sections-past-end": Case(damaged(damage.header(e_shnum=1000)), INVALID, "Section header size is corrupted"),
    "section-table-past-end": Case(damaged(damage.header(e_shoff=1 << 40)), INVALID, "Bogus e_shoff"),
    "short-section-headers": Case(damaged(damage.header(e_shentsize=40)), INVALID, "Section header size is 40!"),
}

SECTIONS = {
    "in-the-header": Case(damaged(damage.section(".text", sh_offset=0)), INVALID, "Section .* data at ELF header"),
    "offset-past-end": Case(damaged(damage.section(".text", sh_offset=1 << 30)), INVALID, "Section .* is past end"),
    "size-past-end": Case(damaged(damage.section(".text", sh_size=1 << 30)), INVALID, "Section .* is past end"),
    "alignment": Case(damaged(damage.section(".text", sh_addralign=3)), UNSUPPORTED, "Section .* alignment .*0x3"),
    "address": Case(damaged(damage.section(".text", sh_addr=4)), INVALID, "Section .* is not aligned properly"),
    "huge-bss": Case(damaged(damage.add(".bss", flags=3, sh_type=elf.SHT_NOBITS, sh_size=(2 << 20) + 1)), INVALID),
    "writable-code": Case(damaged(damage.section(".text", sh_flags=7)), UNSUPPORTED),
    "name-past-end": Case(damaged(damage.section(".text", sh_name=9999)), INVALID, "Section .* not within .shstrtab"),
    "names-not-strings": Case(
        damaged(damage.section(".shstrtab", sh_type=1)), INVALID, "Section string table is corru"
    ),
    "names-without-end": Case(
        damaged(damage.section(".shstrtab", sh_size=5)), INVALID, "Section string table is corru"
    ),
    "two-symbol-tables": Case(damaged(damage.section(".data", sh_type=2)), UNSUPPORTED, "Unsupported multiple symbol"),
    "no-symbol-table": Case(damaged(damage.section(".symtab", sh_type=1)), INVALID, "No symbol table found"),
    "symbols-without-names": Case(damaged(damage.section(".symtab", sh_link=99)), INVALID, "Symbol table idx"),
    "symbols-empty": Case(damaged(damage.section(".symtab", sh_size=0)), INVALID, "Symbol table header is corrupted"),
    "symbol-size": Case(damaged(damage.section(".symtab", sh_entsize=8)), INVALID, "Symbol table header is corrupted"),
    "half-a-symbol": Case(damaged(damage.section(".symtab", sh_size=36)), INVALID, "Symbol table header is corrupted"),
    "strings-not-strings": Case(
        damaged(damage.section(".strtab", sh_type=1)), INVALID, "String table section is corru"
    ),
    "strings-empty": Case(damaged(damage.section(".strtab", sh_size=0)), INVALID, "String table section is corrupted"),
}


def _relocated(
    offset: int = 0,
    kind: Callable[[Architecture], int] = lambda arch: arch.absolute64,
    addend: int = 0,
    index: int | None = None,
) -> Make:
    """A sound payload with one more relocation, of a type that its architecture has."""

    def make(payloads: Payloads) -> Payload:
        entry = Relocation(offset, Place(".data"), kind(payloads.arch), addend, index)
        return sound(payloads).build(damage.relocate(".data", entry))

    return make


def _remarked(file: ElfFile) -> None:
    """Have data refer to a symbol of a section that is not loaded."""
    file.section(".data").relocations.append(Relocation(0, "remark", of_machine(file.machine).relative32))


SYMBOLS = {
    "unknown": Case(
        lambda payloads: sound(payloads).build(damage.symbol("no_such_symbol_in_xen")),
        ("ENOENT",),
        "Unknown symbol: no_such_symbol_in_xen",
    ),
    "common": Case(
        damaged(damage.symbol("shared", st_shndx=elf.SHN_COMMON)), INVALID, "Unexpected common symbol: shared"
    ),
    "section-past-end": Case(
        damaged(damage.symbol("far", st_shndx=500)), INVALID, "Out of bounds symbol section 0x1f4"
    ),
    "reserved-section": Case(
        damaged(damage.symbol("far", st_shndx=0xFF00)), UNSUPPORTED, "Out of bounds symbol section 0xff00"
    ),
    "name-past-end": Case(damaged(damage.symbol("far", st_name=9999)), INVALID, "Symbol .* name is not within .strtab"),
    "one-of-xen": Case(
        damaged(damage.export("printk", Place(".text", 1))), ("EEXIST",), "duplicate new symbol: printk"
    ),
}

RELOCATIONS = {
    "without-addend": Case(
        damaged(damage.relocations(".livepatch.funcs", sh_type=elf.SHT_REL)),
        ("EOPNOTSUPP", "ENOSYS"),
        "SHT_REL relocation unsupp",
        silent=frozenset({"arm64"}),
    ),
    "unknown-type": Case(_relocated(kind=lambda arch: arch.unsupported), UNSUPPORTED, "Unhandled relocation 10?"),
    "no-symbol": Case(_relocated(index=0), UNSUPPORTED, "Encountered STN_UNDEF"),
    "symbol-past-end": Case(_relocated(index=999), INVALID, "Relative relocation wants symbol@999"),
    "symbol-not-loaded": Case(
        damaged(
            damage.add(".comment", b"xentests", flags=0),
            damage.export("remark", Place(".comment")),
            _remarked,
        ),
        INVALID,
        "Relocation against ignored symbol remark",
    ),
    "offset-past-end": Case(_relocated(offset=12), INVALID, "Relative relocation offset is past .data"),
    "offset-far-off": Case(_relocated(offset=1 << 20), INVALID, "Relative relocation offset is past .data"),
    "too-far": Case(
        _relocated(kind=lambda arch: arch.relative32, addend=1 << 40),
        ("EOVERFLOW",),
        "Overflow in relocation 0 in .rela.data",
    ),
    "entry-size": Case(
        damaged(damage.relocations(".livepatch.funcs", sh_entsize=8)), INVALID, "Section relative header is corrupted"
    ),
    "half-an-entry": Case(
        damaged(damage.relocations(".livepatch.funcs", sh_size=36)), INVALID, "Section relative header is corrupted"
    ),
    "wrong-symbol-table": Case(
        damaged(damage.relocations(".livepatch.funcs", sh_link=1)), INVALID, "Relative link of .* is incorrect"
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_payload(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """What is not a whole ELF file of at most 2 MiB is refused.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD": "if there are any issues the proper return code will be
    returned"; "Design of payload format": an ELF file.
    """
    try_tool(livepatch_host, payloads, FILES[case])


@pytest.mark.parametrize("case", HEADERS)
def test_an_elf_header_that_is_wrong(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """A file of another machine, class, type or version, or with a section table that cannot be, is refused.

    docs/misc/livepatch.pandoc, "Design of payload format": "a relocatable ELF binary".
    """
    try_upload(livepatch_host, payloads, HEADERS[case])


@pytest.mark.parametrize("case", SECTIONS)
def test_sections_that_are_wrong(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """Sections beyond the file, badly aligned, too big or both writable and executable, and broken tables are refused.

    docs/misc/livepatch.pandoc, "Design of payload format".
    """
    try_upload(livepatch_host, payloads, SECTIONS[case])


@pytest.mark.parametrize("case", SYMBOLS)
def test_symbols_that_are_wrong(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """Symbols that Xen does not know, has itself, or that lie nowhere are refused.

    docs/misc/livepatch.pandoc, "Design of payload format": loaded as a standard ELF binary, like a kernel module.
    """
    try_upload(livepatch_host, payloads, SYMBOLS[case])


@pytest.mark.parametrize("case", RELOCATIONS)
def test_relocations_that_are_wrong(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """Relocations of unknown types, out of their section or out of reach are refused.

    docs/misc/livepatch.pandoc, "Design of payload format": relocations for each of the sections.
    """
    try_upload(livepatch_host, payloads, RELOCATIONS[case])
