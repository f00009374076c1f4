"""Payloads read back by another ELF implementation (pyelftools), and damage that is exactly what was asked for."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from xentests.errors import LabError, UsageError
from xentests.payload import damage, elf
from xentests.payload.builder import FUNC_SIZE, FUNCS, Damage, Expectation, Hook, Payload, note_section
from xentests.payload.code import returns
from xentests.payload.elf import ElfFile, Place, Relocation, Section, Symbol
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.hooks import TRACE, keeps_state_apart, marking
from xentests.payload.symbols import HypervisorSymbols, parse_build_id, read_symbols
from xentests.payload.x86 import ENDBR64, Code

BUILD_ID = bytes(range(20))
BASE = 0xFFFF82D040200000
EXTRA = ENDBR64 + bytes.fromhex("488d0500000000c3")
MINOR = bytes.fromhex("b814000000c3")


def hypervisor(*extra: Symbol, build_id: bytes = BUILD_ID) -> ElfFile:
    """A small file that looks like xen-syms: two functions, a static one, a note."""
    text = Section(".text", elf.SHF_ALLOC | elf.SHF_EXECINSTR, EXTRA + MINOR + b"\x90" * 64, fields={"sh_addr": BASE})
    at = {EXTRA_VERSION: (0, len(EXTRA)), MINOR_VERSION: (len(EXTRA), len(MINOR)), "printk": (20, 8)}
    symbols = [
        Symbol(name, Place(".text"), size=size, fields={"st_value": BASE + offset, "st_info": 0x12})
        for name, (offset, size) in at.items()
    ]
    static = Symbol("revert_payload", Place(".text"), size=40, fields={"st_value": BASE + 30, "st_info": 0x02})
    note = note_section(".note.gnu.build-id", build_id)
    note.fields["sh_addr"] = BASE + 0x1000
    return ElfFile(elf.EM_X86_64, [text, note], [*symbols, static, *extra])


@pytest.fixture
def symbols(tmp_path: Path) -> HypervisorSymbols:
    path = tmp_path / "xen-syms"
    path.write_bytes(hypervisor().to_bytes())
    return read_symbols(path)


@pytest.fixture
def payloads(symbols: HypervisorSymbols) -> Payloads:
    return Payloads(symbols)


def parsed(payload: Payload) -> ELFFile:
    return ELFFile(io.BytesIO(payload.content))


def part(file: ELFFile, name: str) -> Any:
    """A section, which must be there; its kind is for the caller to know."""
    found = file.get_section_by_name(name)
    assert found is not None, name
    return found


def relocations(file: ELFFile, name: str) -> list[tuple[int, int, str, int]]:
    """Offset, type, symbol (or section) and addend of each relocation of a section."""
    table = part(file, ".symtab")
    found = []
    for entry in part(file, f".rela{name}").iter_relocations():
        symbol = table.get_symbol(entry["r_info_sym"])
        shown = symbol.name or file.get_section(symbol["st_shndx"]).name
        found.append((entry["r_offset"], entry["r_info_type"], shown, entry["r_addend"]))
    return found


# -- symbols ----------------------------------------------------------------------------------------------------------


def test_symbols_have_address_size_code_and_build_id(symbols: HypervisorSymbols) -> None:
    assert symbols.build_id == BUILD_ID
    assert symbols.address(EXTRA_VERSION) == BASE
    assert symbols.code(EXTRA_VERSION) == EXTRA
    assert symbols.code(MINOR_VERSION) == MINOR
    assert symbols.size("printk") == 8
    assert symbols.symbol("printk").is_global
    assert not symbols.symbol("revert_payload").is_global


def test_gzipped_symbols_are_read(tmp_path: Path) -> None:
    path = tmp_path / "xen-syms.gz"
    path.write_bytes(gzip.compress(hypervisor().to_bytes()))
    assert read_symbols(path).code(MINOR_VERSION) == MINOR


def test_a_symbol_that_is_not_there(symbols: HypervisorSymbols) -> None:
    with pytest.raises(UsageError, match="no symbol 'nothing'"):
        symbols.address("nothing")
    with pytest.raises(UsageError, match="not within one section"):
        symbols.read(0x1000, 4)


def test_static_symbols_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    twins = [Symbol("helper", Place(".text"), fields={"st_value": BASE + n, "st_info": 2}) for n in (8, 16)]
    path = tmp_path / "xen-syms"
    path.write_bytes(hypervisor(*twins).to_bytes())
    with pytest.raises(UsageError, match="several symbols 'helper'"):
        read_symbols(path).address("helper")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a readable xen-syms"),
        (b"\x7fELF" + bytes(100), "not a readable xen-syms"),
        (b"\x1f\x8bgarbage", "not a readable xen-syms"),
        (hypervisor(build_id=b"").to_bytes(), "no GNU build-id"),
    ],
    ids=["empty", "zeros", "gzip", "no-build-id"],
)
def test_files_that_are_no_xen_syms(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "xen-syms"
    path.write_bytes(content)
    with pytest.raises(LabError, match=says):
        read_symbols(path)


def test_missing_symbols(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot read the hypervisor's symbols"):
        read_symbols(tmp_path / "nowhere")


def test_stripped_symbols(tmp_path: Path) -> None:
    file = hypervisor()
    file.symtab_fields["sh_name"] = 0
    path = tmp_path / "xen-syms"
    path.write_bytes(file.to_bytes())
    with pytest.raises(LabError, match="no symbol table"):
        read_symbols(path)


@pytest.mark.parametrize("note", [b"", b"\4\0\0\0", struct.pack("<3I", 4, 20, 1) + b"GNU\0" + bytes(20)])
def test_what_is_no_build_id_note(note: bytes) -> None:
    assert parse_build_id(note) == b""


# -- payloads ---------------------------------------------------------------------------------------------------------


def test_a_payload_is_a_relocatable_file_with_its_sections(payloads: Payloads) -> None:
    builder = payloads.builder("full").replace(EXTRA_VERSION, returns_value="new").metadata({"a": "b", "c": "d"})
    builder.data(b"data")
    builder.bss(100)
    file = parsed(builder.hook(Hook.LOAD, returns(0)).build())
    assert (file["e_type"], file["e_machine"], file["e_phnum"]) == ("ET_REL", "EM_X86_64", 0)
    flags = {section.name: section["sh_flags"] for section in file.iter_sections() if section["sh_flags"]}
    assert flags == {
        ".rodata": 2, ".text": 6, ".data": 3, ".bss": 3, FUNCS: 3, Hook.LOAD.value: 2, ".rodata.names": 2,
        ".modinfo": 2, ".livepatch.depends": 2, ".livepatch.xen_depends": 2, ".note.gnu.build-id": 2,
    }  # fmt: skip
    assert part(file, ".modinfo").data() == b"a=b\0c=d\0"
    assert part(file, ".bss")["sh_size"] == 104
    assert part(file, ".bss")["sh_type"] == "SHT_NOBITS"


def test_a_function_entry_is_laid_out_as_xen_reads_it(payloads: Payloads) -> None:
    expectation = Expectation(b"\xaa\xbb", reserved=2)
    file = parsed(payloads.builder().replace(MINOR_VERSION, returns_value=7, expect=expectation).build())
    entry = part(file, FUNCS).data()
    assert len(entry) == FUNC_SIZE
    name, new, old, new_size, old_size, version = struct.unpack_from("<QQQIIB", entry)
    assert (name, new, old, new_size, old_size, version) == (0, 0, 0, 6, len(MINOR), 2)
    assert entry[33:72] == bytes(39)
    assert entry[72:] == bytes([0b10_00010_1, 0xAA, 0xBB]) + bytes(29)
    assert relocations(file, FUNCS) == [(0, elf.R_X86_64_64, ".rodata.names", 0), (8, elf.R_X86_64_64, ".text", 0)]
    assert part(file, ".rodata.names").data() == MINOR_VERSION.encode() + b"\0"
    assert part(file, ".text").data() == bytes.fromhex("b807000000c3")


def test_a_nop_has_no_new_function_and_a_given_address_stays(payloads: Payloads) -> None:
    file = parsed(payloads.builder().nop(EXTRA_VERSION, 4, old_address=0x1234, named=False).build())
    entry = part(file, FUNCS).data()
    assert struct.unpack_from("<QQQII", entry) == (0, 0, 0x1234, 4, len(EXTRA))
    assert file.get_section_by_name(f".rela{FUNCS}") is None  # nothing to relocate


def test_code_is_relocated_against_xen_by_name_and_statics_by_address(payloads: Payloads) -> None:
    builder = payloads.builder()
    code = Code().lea("rdi", builder.string("text")).call("printk").call("revert_payload").jump_to("unknown").ret()
    file = parsed(builder.patch(EXTRA_VERSION, code).build())
    assert relocations(file, ".text") == [
        (3, elf.R_X86_64_PC32, ".rodata", -4),
        (8, elf.R_X86_64_PC32, "printk", -4),
        (13, elf.R_X86_64_PC32, "revert_payload", -4),
        (18, elf.R_X86_64_PC32, "unknown", -4),
    ]
    table = {symbol.name: symbol for symbol in part(file, ".symtab").iter_symbols() if symbol.name}
    assert table["printk"]["st_shndx"] == "SHN_UNDEF"
    assert table["unknown"]["st_shndx"] == "SHN_UNDEF"
    assert (table["revert_payload"]["st_shndx"], table["revert_payload"]["st_value"]) == ("SHN_ABS", BASE + 30)


def test_hooks_are_pointers_to_code(payloads: Payloads) -> None:
    builder = payloads.builder().hook(Hook.LOAD, returns(1)).hook(Hook.LOAD, returns(2)).hook(Hook.APPLY, returns(3))
    file = parsed(builder.build())
    assert relocations(file, Hook.LOAD.value) == [(0, 1, ".text", 0), (8, 1, ".text", 16)]
    assert relocations(file, Hook.APPLY.value) == [(0, 1, ".text", 32)]
    builder.hooks_writable = True
    assert part(parsed(builder.build()), Hook.APPLY.value)["sh_flags"] == 3


def test_notes_say_what_a_payload_is_and_depends_on(payloads: Payloads) -> None:
    first = payloads.replace(returns="first")
    second = payloads.replace(returns="second", on=first)
    file = parsed(second)
    notes = {name: parse_build_id(part(file, name).data()) for name in (
        ".livepatch.depends", ".livepatch.xen_depends", ".note.gnu.build-id"
    )}  # fmt: skip
    assert notes == {
        ".livepatch.depends": first.build_id,
        ".livepatch.xen_depends": BUILD_ID,
        ".note.gnu.build-id": second.build_id,
    }


def test_the_same_calls_give_the_same_bytes(symbols: HypervisorSymbols) -> None:
    one, two = (Payloads(symbols).replace(returns="same") for _ in range(2))
    assert one == two
    other = Payloads(symbols).replace(returns="same", name="other")
    assert other.build_id != one.build_id


def test_the_tracer_exports_its_buffer(payloads: Payloads) -> None:
    file = parsed(payloads.tracer())
    exported = part(file, ".symtab").get_symbol_by_name(TRACE)[0]
    assert file.get_section(exported["st_shndx"]).name == ".data"


def test_a_mark_is_one_letter() -> None:
    with pytest.raises(UsageError, match="one ASCII letter"):
        marking("ab")(Code())


@pytest.mark.parametrize(("code", "apart"), [("c74741000000", True), ("c6474100", False)])
def test_where_xen_keeps_its_state_is_read_from_its_code(tmp_path: Path, code: str, apart: bool) -> None:
    content = bytes.fromhex(code)
    file = hypervisor(Symbol("arch_livepatch_apply", Place(".text"), size=len(content), fields={"st_value": BASE + 30}))
    file.sections[0].content = EXTRA + MINOR + bytes(12) + content + bytes(32)
    path = tmp_path / "xen-syms"
    path.write_bytes(file.to_bytes())
    assert keeps_state_apart(read_symbols(path)) is apart


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no binutils here")
def test_readelf_has_nothing_to_complain_about(payloads: Payloads, tmp_path: Path) -> None:
    builder = payloads.builder().replace(EXTRA_VERSION, returns_value="new").hook(Hook.UNLOAD, marking("u"))
    builder.bss(8)
    path = tmp_path / "payload"
    path.write_bytes(builder.build().content)
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=True, timeout=10)
    assert done.stderr == ""


# -- damage -----------------------------------------------------------------------------------------------------------


def damaged(payloads: Payloads, *damages: Damage) -> bytes:
    builder = payloads.builder("victim").replace(EXTRA_VERSION, returns_value="text")
    return builder.build(*damages).content


def test_header_members_are_overridden(payloads: Payloads) -> None:
    content = damaged(payloads, damage.header(e_machine=40, e_shnum=999, ei_class=1))
    assert struct.unpack_from("<H", content, 18) == (40,)
    assert struct.unpack_from("<H", content, 60) == (999,)
    assert content[4] == 1


def test_an_unknown_header_member_is_the_callers_mistake(payloads: Payloads) -> None:
    with pytest.raises(UsageError, match="e_nonsense"):
        damaged(payloads, damage.header(e_nonsense=1))
    with pytest.raises(UsageError, match=r"no section \.nowhere"):
        damaged(payloads, damage.drop(".nowhere"))
    with pytest.raises(UsageError, match=r"relocation against \.rodata"):
        damaged(payloads, damage.drop(".rodata"))


def test_section_damage(payloads: Payloads) -> None:
    content = damaged(
        payloads,
        damage.section(".text", sh_size=1 << 40),
        damage.section(".symtab", sh_link=77),
        damage.relocations(FUNCS, sh_entsize=3),
        damage.resize(".rodata", 2),
        damage.overwrite(FUNCS, 32, b"\x09"),
        damage.add(".odd", b"xyz", sh_addralign=0),
    )
    # The damage is read back from the raw headers: no ELF reader would take this file as a whole.
    headers_at, count = struct.unpack_from("<Q", content, 40)[0], struct.unpack_from("<H", content, 60)[0]
    headers = [struct.unpack_from("<IIQQQQIIQQ", content, headers_at + 64 * index) for index in range(count)]
    sizes = [header[5] for header in headers]
    assert 1 << 40 in sizes
    assert 77 in [header[6] for header in headers]
    assert 3 in [header[9] for header in headers]
    funcs = next(header for header in headers if header[5] == FUNC_SIZE)
    assert content[funcs[4] + 32] == 9
    assert (3, 0) in [(header[5], header[8]) for header in headers]


def test_damage_to_one_payload_leaves_the_builder_alone(payloads: Payloads) -> None:
    builder = payloads.builder("victim").replace(EXTRA_VERSION, returns_value="text")
    sound = builder.build()
    builder.build(damage.empty(FUNCS), damage.section(".text", sh_size=0), damage.drop(".livepatch.depends"))
    assert builder.build() == sound


def test_a_relocation_may_name_any_symbol(payloads: Payloads) -> None:
    entry = Relocation(0, Place(".rodata"), elf.R_X86_64_64, symbol_index=4711)
    content = damaged(payloads, damage.relocate(".rodata", entry))
    assert (4711 << 32 | elf.R_X86_64_64).to_bytes(8, "little") in content


def test_dropped_and_doubled_sections(payloads: Payloads) -> None:
    builder = payloads.builder("victim").replace(EXTRA_VERSION, returns_value="text")
    file = parsed(builder.build(damage.drop(".livepatch.depends"), damage.add(".rodata")))
    names = [section.name for section in file.iter_sections()]
    assert ".livepatch.depends" not in names
    assert names.count(".rodata") == 2
