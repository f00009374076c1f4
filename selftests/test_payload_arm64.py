"""The small AArch64 assembler, each instruction against words that objdump reads back; and payloads made with it."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from xentests.errors import UsageError
from xentests.payload import elf, runner_code
from xentests.payload.architecture import AMD64, ARM64, of_machine
from xentests.payload.arm64 import BRANCH_RANGE, Code, branch, keeps_state_apart
from xentests.payload.builder import FUNCS, Hook, note_section
from xentests.payload.elf import ElfFile, Place, Section, Symbol
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.hooks import apply_action, marking, marking_outcome, revert_action
from xentests.payload.runner import program
from xentests.payload.symbols import HypervisorSymbols, read_symbols

# Each was read back with aarch64-linux-gnu-objdump 2.40: the ids say what it shows.
ENCODINGS = {
    "ret": (Code().ret(), [0xD65F03C0]),
    "nop": (Code().nop(), [0xD503201F]),
    "mov w0, #0x11": (Code().set_result(17), [0x52800220]),
    "mov w0, #0xffffffea": (Code().set_result(-22), [0x128002A0]),
    "mov w0, #0x5678; movk w0, #0x1234, lsl #16": (Code().set_result(0x12345678), [0x528ACF00, 0x72A24680]),
    "mov w0, #0xffffffff": (Code().set_result(-1), [0x12800000]),
    "mov x9, #...": (
        Code().mov(9, 0x1122334455667788),
        [0xD28EF109, 0xF2AAACC9, 0xF2C66889, 0xF2E22449],
    ),
    "mov x19, x0": (Code().copy(to=19, source=0), [0xAA0003F3]),
    "ldr x1, [x19, #112]": (Code().load(1, 19, 112), [0xF9403A61]),
    "ldr w0, [x0, #4]": (Code().load(0, 0, 4, wide=False), [0xB9400400]),
    "str x0, [x20, #56]": (Code().store(0, 20, 56), [0xF9001E80]),
    "str w10, [x9, #44]": (Code().store(10, 9, 44, wide=False), [0xB9002D2A]),
    "add x20, x20, #64": (Code().add(20, 64), [0x91010294]),
    "sub x0, x0, #1": (Code().add(0, -1), [0xD1000400]),
    "add x21, x21, x0": (Code().add_register(21, 0), [0x8B0002B5]),
    "cmp x0, x2": (Code().compare(0, 2), [0xEB02001F]),
    "cmp x0, #3": (Code().compare_number(0, 3), [0xF1000C1F]),
    "svc #0": (Code().supervisor_call(), [0xD4000001]),
    "stp x29, x30, [sp, #-32]!; str x19, [sp, #16]": (Code().enter(), [0xA9BE7BFD, 0xF9000BF3]),
    "ldr x19, [sp, #16]; ldp x29, x30, [sp], #32": (Code().leave(), [0xF9400BF3, 0xA8C27BFD]),
    "mrs x0, daif; eor x0, x0, #0x80; and x0, x0, #0x80": (
        Code().load_interrupts(),
        [0xD53B4220, 0xD2790000, 0x92790000],
    ),
    "ldr x9, [x19, #104]; mov w10, #1; strb w10, [x9, #64]": (
        Code().set_behind(104, 64, 1, size=1),
        [0xF9403669, 0x5280002A, 0x3901012A],
    ),
    "ldr x9, [x19, #112]; mov w10, #1; str w10, [x9, #44]": (
        Code().set_behind(112, 44, 1, size=4),
        [0xF9403A69, 0x5280002A, 0xB9002D2A],
    ),
}


def words(content: bytes) -> list[int]:
    """Instructions."""
    return [word for (word,) in struct.iter_unpack("<I", content)]


@pytest.mark.parametrize("case", ENCODINGS)
def test_an_instruction_has_its_one_encoding(case: str) -> None:
    code, expected = ENCODINGS[case]
    assert [hex(word) for word in words(code.content)] == [hex(word) for word in expected]


def test_jumps_reach_labels_forward_and_back() -> None:
    code = Code().label("top").go("end").go_if(3, "end").go_unless(0, "top").go_when("gt", "top").label("end").ret()
    assert words(code.content) == [
        0x14000006,  # b +24
        0x71000C1F, 0x54000080,  # cmp w0, #3; b.eq +16
        0x7100001F, 0x54FFFF81,  # cmp w0, #0; b.ne -16
        0x54FFFF6C,  # b.gt -20
        0xD65F03C0,
    ]  # fmt: skip


def test_a_jump_to_nowhere_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="'nowhere'"):
        _ = Code().go("nowhere").content


@pytest.mark.parametrize("offset", [3, -8, 4096 * 8])
def test_an_offset_that_an_instruction_cannot_hold(offset: int) -> None:
    with pytest.raises(UsageError, match="no offset or number"):
        Code().load(0, 1, offset)


def test_references_are_left_to_relocations() -> None:
    text = Place(".rodata", 8)
    code = Code().address(0, text).call("printk").load_pointer("there").jump_to("revert_payload")
    assert words(code.content) == [0x90000000, 0x91000000, 0x94000000, 0x90000000, 0xF9400000, 0x14000000]
    assert [(fixup.offset, fixup.target, fixup.addend, fixup.kind) for fixup in code.fixups] == [
        (0, text, 0, elf.R_AARCH64_ADR_PREL_PG_HI21),
        (4, text, 0, elf.R_AARCH64_ADD_ABS_LO12_NC),
        (8, "printk", 0, elf.R_AARCH64_CALL26),
        (12, "there", 0, elf.R_AARCH64_ADR_PREL_PG_HI21),
        (16, "there", 0, elf.R_AARCH64_LDST64_ABS_LO12_NC),
        (20, "revert_payload", 0, elf.R_AARCH64_JUMP26),
    ]


@pytest.mark.parametrize(
    ("distance", "word"),
    [(4, 0x14000001), (-4, 0x17FFFFFF), (BRANCH_RANGE - 4, 0x15FFFFFF), (-BRANCH_RANGE, 0x16000000)],
)
def test_the_branch_of_a_trampoline(distance: int, word: int) -> None:
    assert branch(0x20000000, 0x20000000 + distance) == word.to_bytes(4, "little")


@pytest.mark.parametrize("distance", [2, BRANCH_RANGE, -BRANCH_RANGE - 4])
def test_a_branch_that_does_not_reach(distance: int) -> None:
    with pytest.raises(UsageError, match="no branch leads"):
        branch(0x20000000, 0x20000000 + distance)


@pytest.mark.parametrize(("word", "apart"), [(0x91002020, True), (0x91008660, False), (0xB8021260, False)])
def test_where_xen_keeps_its_state_is_read_from_its_code(word: int, apart: bool) -> None:
    """``add x0, x1, #8`` against ``add x0, x19, #33`` and ``stur w0, [x19, #33]``."""
    assert keeps_state_apart(Code().nop().words(word).ret().content) is apart


def test_every_machine_has_one_architecture() -> None:
    assert (of_machine(elf.EM_X86_64), of_machine(elf.EM_AARCH64)) == (AMD64, ARM64)
    with pytest.raises(UsageError, match="machine 243"):
        of_machine(243)


# -- payloads ---------------------------------------------------------------------------------------------------------

BASE = 0x200000


@pytest.fixture
def symbols(tmp_path: Path) -> HypervisorSymbols:
    """Those of a small file that looks like xen-syms for arm64."""
    minor, extra, apply = Code().set_result(17).ret(), Code().address(0, "x").ret(), Code().nop().ret()
    content, symbols = b"", []
    for name, code in ((MINOR_VERSION, minor), (EXTRA_VERSION, extra), ("arch_livepatch_apply", apply)):
        fields = {"st_value": BASE + len(content), "st_info": 0x12}
        symbols.append(Symbol(name, Place(".text"), size=len(code), fields=fields))
        content += code.content
    text = Section(".text", elf.SHF_ALLOC | elf.SHF_EXECINSTR, content, fields={"sh_addr": BASE})
    path = tmp_path / "xen-syms"
    path.write_bytes(
        ElfFile(elf.EM_AARCH64, [text, note_section(".note.gnu.build-id", bytes(range(20)))], symbols).to_bytes()
    )
    return read_symbols(path)


def test_a_payload_is_for_the_hypervisors_machine(symbols: HypervisorSymbols) -> None:
    payloads = Payloads(symbols)
    builder = payloads.builder().replace(EXTRA_VERSION, returns_value="new")
    for kind, body in (
        (Hook.LOAD, marking("L")),
        (Hook.APPLY, apply_action(symbols, "A")),
        (Hook.POST_APPLY, marking_outcome(good="+", bad="-")),
        (Hook.REVERT, revert_action("R")),
    ):
        builder.hook(kind, body)
    file = ELFFile(io.BytesIO(builder.build().content))
    assert (file["e_machine"], payloads.arch) == ("EM_AARCH64", ARM64)
    tables: list[Any] = list(file.iter_sections("SHT_RELA"))
    kinds = {table.name: {entry["r_info_type"] for entry in table.iter_relocations()} for table in tables}
    assert kinds[f".rela{FUNCS}"] == {elf.R_AARCH64_ABS64}
    assert kinds[".rela.text"] == {
        elf.R_AARCH64_ADR_PREL_PG_HI21, elf.R_AARCH64_ADD_ABS_LO12_NC, elf.R_AARCH64_CALL26, elf.R_AARCH64_JUMP26
    }  # fmt: skip
    assert payloads.first_instruction(MINOR_VERSION) == 0


def test_the_hypercall_runner_is_a_program_for_arm64() -> None:
    content = program("arm64", privcmd="/dev/one", memory="/dev/two")
    file = ELFFile(io.BytesIO(content))
    assert (file["e_machine"], file["e_type"]) == ("EM_AARCH64", "ET_EXEC")
    assert content.endswith(b"/dev/one\0/dev/two\0")
    code = runner_code.arm64(0x40_0000, 0x40_0100)
    assert code.fixups == []
    assert len(code) == len(runner_code.arm64(0, 0))
