"""The small assembler: each instruction against bytes that objdump reads back as the instruction meant."""

from __future__ import annotations

import pytest

from xentests.errors import UsageError
from xentests.payload.elf import Place
from xentests.payload.x86 import Code

# Each was read back with objdump 2.40: the ids say what it shows.
ENCODINGS = {
    "mov-eax": (Code().set_result(77), "b84d000000"),
    "mov-eax-negative": (Code().set_result(-22), "b8eaffffff"),
    "movabs-rdi": (Code().mov("rdi", 0x1122334455667788), "48bf8877665544332211"),
    "movabs-r13": (Code().mov("r13", 1), "49bd0100000000000000"),
    "mov-rbx-rax": (Code().copy(to="rbx", source="rax"), "4889c3"),
    "mov-r8-rax": (Code().copy(to="r8", source="rax"), "4989c0"),
    "mov-rsi-r13": (Code().copy(to="rsi", source="r13"), "4c89ee"),
    "load-wide": (Code().load("rax", "rbp", 0x10), "488b8510000000"),
    "load-narrow": (Code().load("rax", "rdi", 4, wide=False), "408b8704000000"),
    "load-r8-r9": (Code().load("r8", "r9", -8), "4d8b81f8ffffff"),
    "store-wide": (Code().store("rbp", 56, "rax"), "48898538000000"),
    "store-r10": (Code().store("rbx", 0, "r10"), "4c899300000000"),
    "add": (Code().add("rbp", 64), "4881c540000000"),
    "add-negative": (Code().add("rax", -1), "4881c0ffffffff"),
    "cmp": (Code().compare("rax", "rdx"), "4839d0"),
    "cmp-r9-r10": (Code().compare("r9", "r10"), "4d39d1"),
    "test": (Code().test("rax"), "4885c0"),
    "test-r12": (Code().test("r12"), "4d85e4"),
    "push-rbx": (Code().push("rbx"), "53"),
    "push-r12": (Code().push("r12"), "4154"),
    "pop-rdi": (Code().pop("rdi"), "5f"),
    "pop-r13": (Code().pop("r13"), "415d"),
    "syscall": (Code().syscall(), "0f05"),
    "ud2": (Code().ud2(), "0f0b"),
    "ret": (Code().ret(), "c3"),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_an_instruction_has_its_one_encoding(case: str) -> None:
    code, expected = ENCODINGS[case]
    assert code.content.hex() == expected


def test_jumps_reach_labels_forward_and_back() -> None:
    code = Code().label("top").jump("end").jump("top", when="ne").label("end").ret()
    assert code.content.hex() == "e906000000" + "0f85f5ffffff" + "c3"


def test_a_jump_to_nowhere_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="'nowhere'"):
        _ = Code().jump("nowhere").content


def test_a_base_register_that_needs_a_sib_byte_is_refused() -> None:
    with pytest.raises(UsageError, match="rsp"):
        Code().load("rax", "rsp")


def test_references_leave_four_zero_bytes_and_a_fixup() -> None:
    code = Code().lea("rdx", Place(".data", 8)).call("printk").add32("flag", 5)
    assert code.content.hex() == "488d1500000000" + "e800000000" + "81050000000005000000"
    assert [(fixup.offset, fixup.target, fixup.addend) for fixup in code.fixups] == [
        (3, Place(".data", 8), -4),
        (8, "printk", -4),
        (14, "flag", -8),
    ]
