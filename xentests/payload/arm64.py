"""A very small AArch64 assembler: the two dozen instructions that payloads and the hypercall runner are made of.

Not a general assembler: each method emits one encoding (Arm Architecture Reference Manual, DDI 0487, chapter C6), or
the few that it takes. What a test needs beyond that is given as words to :meth:`Code.words`. Relocations are those of
"ELF for the Arm 64-bit Architecture" (AAELF64), "Relocation"; registers are used as AAPCS64 has them: x0 to x7 are
arguments and x0 the result, x9 to x15 are free, x19 is kept across calls.
"""

# ruff: noqa: D102 (the verbs of a function are told of where they are declared)
from __future__ import annotations

import struct
from typing import Literal, Self

from xentests.errors import UsageError
from xentests.payload import code
from xentests.payload.code import Target
from xentests.payload.elf import (
    R_AARCH64_ADD_ABS_LO12_NC,
    R_AARCH64_ADR_PREL_PG_HI21,
    R_AARCH64_CALL26,
    R_AARCH64_JUMP26,
    R_AARCH64_LDST64_ABS_LO12_NC,
)

Condition = Literal["eq", "ne", "mi", "gt", "le"]
_CONDITIONS: dict[Condition, int] = {"eq": 0, "ne": 1, "mi": 4, "gt": 12, "le": 13}

INSTRUCTION = 4
"""Size of every instruction, and what its address is a multiple of."""
NOP = 0xD503201F
RET = 0xD65F03C0
BRANCH = 0x14000000
BRANCH_RANGE = 128 << 20
"""B reaches from 128 MiB back to 128 MiB less an instruction ahead (DDI 0487, C6.2, "B")."""
BRK = 0xD4200000
_B_COND = 0x54000000
_FRAME, _KEPT = 32, 19


class Code(code.Code):
    """Code for AArch64; registers are given by number."""

    def words(self, *instructions: int) -> Self:
        """Append instructions as they are."""
        return self.raw(struct.pack(f"<{len(instructions)}I", *instructions))

    # -- the verbs of a function --------------------------------------------------------------------------------

    def ret(self) -> Self:
        return self.words(RET)

    def set_result(self, value: int) -> Self:
        return self.mov32(0, value)

    def result_address(self, target: Target) -> Self:
        return self.address(0, target)

    def load_result(self, target: Target) -> Self:
        return self.address(0, target).load(0, 0, wide=False)

    def load_pointer(self, target: Target) -> Self:
        self.fixup(target, R_AARCH64_ADR_PREL_PG_HI21).words(0x90000000)  # adrp x0, target
        return self.fixup(target, R_AARCH64_LDST64_ABS_LO12_NC).words(0xF9400000)  # ldr x0, [x0, :lo12:target]

    def load_member(self, offset: int) -> Self:
        return self.load(0, 0, offset, wide=False)

    def load_interrupts(self) -> Self:
        return self.words(0xD53B4220, 0xD2790000, 0x92790000)  # mrs x0, daif; eor x0, x0, #0x80; and x0, x0, #0x80

    def argument_address(self, target: Target) -> Self:
        return self.address(0, target)

    def add32(self, target: Target, value: int) -> Self:
        self.address(9, target).load(10, 9, wide=False).mov32(11, value)
        return self.words(0x0B0B014A).store(10, 9, wide=False)  # add w10, w10, w11

    def put_letter(self, buffer: Target, count: Target, letter: int) -> Self:
        self.address(9, count).load(10, 9, wide=False).words(0x12000D4B)  # and w11, w10, #15
        self.address(12, buffer).mov32(13, letter).words(0x382B698D)  # strb w13, [x12, x11]
        return self.words(0x1100054A).store(10, 9, wide=False)  # add w10, w10, #1

    def nop(self) -> Self:
        return self.words(NOP)

    def enter(self) -> Self:
        return self.words(0xA9BE7BFD, 0xF9000BF3)  # stp x29, x30, [sp, #-32]!; str x19, [sp, #16]

    def leave(self) -> Self:
        return self.words(0xF9400BF3, 0xA8C27BFD)  # ldr x19, [sp, #16]; ldp x29, x30, [sp], #32

    def call(self, target: Target) -> Self:
        return self.fixup(target, R_AARCH64_CALL26).words(0x94000000)

    def jump_to(self, target: Target) -> Self:
        return self.fixup(target, R_AARCH64_JUMP26).words(BRANCH)

    def keep_argument(self) -> Self:
        return self.copy(to=_KEPT, source=0)

    def argument_kept(self) -> Self:
        return self.copy(to=0, source=_KEPT)

    def argument_from(self, number: int, member: int, addend: int) -> Self:
        return self.load(number, _KEPT, member).add(number, addend)

    def set_behind(self, member: int, addend: int, value: int, *, size: int) -> Self:
        self.load(9, _KEPT, member).mov32(10, value)
        if size == 1:
            return self.words(0x39000000 | _unsigned(addend, 1) << 10 | 9 << 5 | 10)  # strb w10, [x9, #addend]
        return self.store(10, 9, addend, wide=False)

    def go(self, label: str) -> Self:
        self._jumps.append((len(self), label))
        return self.words(BRANCH)

    def go_if(self, value: int, label: str) -> Self:
        return self._compare32(value).go_when("eq", label)

    def go_unless(self, value: int, label: str) -> Self:
        return self._compare32(value).go_when("ne", label)

    # -- instructions -------------------------------------------------------------------------------------------

    def address(self, register: int, target: Target) -> Self:
        """``adrp`` and ``add``: the address of something within 4 GiB."""
        self.fixup(target, R_AARCH64_ADR_PREL_PG_HI21).words(0x90000000 | register)
        return self.fixup(target, R_AARCH64_ADD_ABS_LO12_NC).words(0x91000000 | register << 5 | register)

    def mov32(self, register: int, value: int) -> Self:
        """A 32-bit number: by one instruction if it or its complement has 16 bits, else by two."""
        value &= 0xFFFFFFFF
        if value >> 16 == 0xFFFF:
            return self.words(0x12800000 | (~value & 0xFFFF) << 5 | register)
        self.words(0x52800000 | (value & 0xFFFF) << 5 | register)
        return self.words(0x72A00000 | value >> 16 << 5 | register) if value >> 16 else self

    def mov(self, register: int, value: int) -> Self:
        """A 64-bit number, always by ``movz`` and three ``movk``, so that its size does not depend on it."""
        value &= (1 << 64) - 1
        self.words(0xD2800000 | (value & 0xFFFF) << 5 | register)
        for half in (1, 2, 3):
            self.words(0xF2800000 | half << 21 | (value >> 16 * half & 0xFFFF) << 5 | register)
        return self

    def copy(self, *, to: int, source: int) -> Self:
        """``mov xTO, xSOURCE``."""
        return self.words(0xAA0003E0 | source << 16 | to)

    def load(self, to: int, base: int, offset: int = 0, *, wide: bool = True) -> Self:
        """``ldr xTO, [xBASE, #offset]``, or of 32 bits with ``wide=False``."""
        size = 8 if wide else 4
        return self.words((0xF9400000 if wide else 0xB9400000) | _unsigned(offset, size) << 10 | base << 5 | to)

    def store(self, source: int, base: int, offset: int = 0, *, wide: bool = True) -> Self:
        """``str xSOURCE, [xBASE, #offset]``, or of 32 bits with ``wide=False``."""
        size = 8 if wide else 4
        return self.words((0xF9000000 if wide else 0xB9000000) | _unsigned(offset, size) << 10 | base << 5 | source)

    def add(self, register: int, value: int) -> Self:
        """``add`` or ``sub xREGISTER, xREGISTER, #value``."""
        opcode = 0xD1000000 if value < 0 else 0x91000000
        return self.words(opcode | _unsigned(abs(value), 1) << 10 | register << 5 | register)

    def add_register(self, register: int, other: int) -> Self:
        """``add xREGISTER, xREGISTER, xOTHER``."""
        return self.words(0x8B000000 | other << 16 | register << 5 | register)

    def compare(self, left: int, right: int) -> Self:
        """``cmp xLEFT, xRIGHT``."""
        return self.words(0xEB00001F | right << 16 | left << 5)

    def compare_number(self, register: int, value: int) -> Self:
        """``cmp xREGISTER, #value``."""
        return self.words(0xF100001F | _unsigned(value, 1) << 10 | register << 5)

    def go_when(self, condition: Condition, label: str) -> Self:
        """``b.CONDITION label``, after a comparison."""
        self._jumps.append((len(self), label))
        return self.words(_B_COND | _CONDITIONS[condition])

    def supervisor_call(self) -> Self:
        """``svc #0`` (for programs in dom0, not for payloads)."""
        return self.words(0xD4000001)

    def _compare32(self, value: int) -> Self:
        return self.words(0x7100001F | _unsigned(value, 1) << 10)  # cmp w0, #value

    def _aimed(self, jump: bytes, distance: int) -> bytes:
        word = int.from_bytes(jump, "little")
        if word & 0xFF000000 == _B_COND:
            word |= (distance // INSTRUCTION & 0x7FFFF) << 5
        else:
            word |= distance // INSTRUCTION & 0x3FFFFFF
        return word.to_bytes(4, "little")


def branch(source: int, target: int) -> bytes:
    """``b target`` as it stands at the address ``source``. Raises UsageError where it does not reach."""
    distance = target - source
    if distance % INSTRUCTION or not -BRANCH_RANGE <= distance < BRANCH_RANGE:
        raise UsageError(f"no branch leads from {source:#x} to {target:#x}")
    return (BRANCH | distance // INSTRUCTION & 0x3FFFFFF).to_bytes(4, "little")


def keeps_state_apart(apply: bytes) -> bool:
    """Whether ``arch_livepatch_apply`` saves what it replaces outside ``.livepatch.funcs``.

    Where it does not, it does so in ``opaque``, 33 bytes into ``struct livepatch_func``: no aligned store reaches that,
    so the offset shows in an ``add xN, xM, #33`` or a ``stur wN, [xM, #33]``.
    """
    words = (word & 0xFFFFFC00 for (word,) in struct.iter_unpack("<I", apply))
    return not any(word in (0x91000000 | 33 << 10, 0xB8000000 | 33 << 12) for word in words)


def _unsigned(value: int, scale: int) -> int:
    """A 12-bit immediate in units of ``scale`` bytes."""
    if value % scale or not 0 <= value // scale < 1 << 12:
        raise UsageError(f"{value} is no offset or number that one instruction of this assembler holds")
    return value // scale
