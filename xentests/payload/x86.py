"""A very small x86-64 assembler: the two dozen instructions that payloads and the hypercall runner are made of.

Not a general assembler: each method emits exactly one encoding (Intel SDM volume 2). What a test needs beyond that is
given as bytes to :meth:`Code.raw`.
"""

# ruff: noqa: D102 (the verbs of a function are told of where they are declared)
from __future__ import annotations

import re
from typing import Literal, Self

from xentests.errors import UsageError
from xentests.payload import code
from xentests.payload.code import Target
from xentests.payload.elf import R_X86_64_PC32

Register = Literal["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13"]
_REGISTERS: tuple[Register, ...] = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
)  # fmt: skip
Condition = Literal["e", "ne", "l", "g", "le", "s", "ns"]
_CONDITIONS: dict[Condition, int] = {"e": 4, "ne": 5, "s": 8, "ns": 9, "l": 12, "le": 14, "g": 15}

ENDBR64 = b"\xf3\x0f\x1e\xfa"
NOP = b"\x90"


class Code(code.Code):
    """Code for x86-64; registers are given by name."""

    # -- the verbs of a function --------------------------------------------------------------------------------

    def ret(self) -> Self:
        return self.raw(b"\xc3")

    def set_result(self, value: int) -> Self:
        return self.raw(b"\xb8" + (value & 0xFFFFFFFF).to_bytes(4, "little"))  # mov $value, %eax

    def result_address(self, target: Target) -> Self:
        return self.lea("rax", target)

    def load_result(self, target: Target) -> Self:
        return self.raw(b"\x8b\x05").fix(target, -4)  # mov target(%rip), %eax

    def load_pointer(self, target: Target) -> Self:
        return self.raw(b"\x48\x8b\x05").fix(target, -4)  # mov target(%rip), %rax

    def load_member(self, offset: int) -> Self:
        return self.load("rax", "rdi", offset, wide=False)

    def load_interrupts(self) -> Self:
        return self.raw(b"\x9c\x58\x25\x00\x02\x00\x00")  # pushf; pop %rax; and $IF, %eax

    def argument_address(self, target: Target) -> Self:
        return self.lea("rdi", target)

    def add32(self, target: Target, value: int) -> Self:
        return self.raw(b"\x81\x05").fix(target, -8).raw((value & 0xFFFFFFFF).to_bytes(4, "little"))  # addl

    def put_letter(self, buffer: Target, count: Target, letter: int) -> Self:
        self.load_result(count).raw(b"\x83\xe0\x0f")  # and $15, %eax
        self.lea("rdx", buffer).raw(b"\xc6\x04\x02" + bytes([letter]))  # movb $letter, (%rdx,%rax)
        return self.add32(count, 1)

    def nop(self) -> Self:
        return self.raw(NOP)

    def enter(self) -> Self:
        return self.push("rbx")

    def leave(self) -> Self:
        return self.pop("rbx")

    def call(self, target: Target) -> Self:
        return self.raw(b"\xe8").fix(target, -4)

    def jump_to(self, target: Target) -> Self:
        return self.raw(b"\xe9").fix(target, -4)

    def keep_argument(self) -> Self:
        return self.copy(to="rbx", source="rdi")

    def argument_kept(self) -> Self:
        return self.copy(to="rdi", source="rbx")

    def argument_from(self, number: int, member: int, addend: int) -> Self:
        register: Register = ("rdi", "rsi")[number]
        return self.load(register, "rbx", member).add(register, addend)

    def set_behind(self, member: int, addend: int, value: int, *, size: int) -> Self:
        self.load("rdx", "rbx", member).set_result(value)
        if size == 1:
            return self.raw(b"\x88\x82" + _signed32(addend))  # mov %al, addend(%rdx)
        return self.store("rdx", addend, "rax", wide=False)

    def go(self, label: str) -> Self:
        return self.jump(label)

    def go_if(self, value: int, label: str) -> Self:
        return self._compare_eax(value).jump(label, when="e")

    def go_unless(self, value: int, label: str) -> Self:
        return self._compare_eax(value).jump(label, when="ne")

    # -- instructions -------------------------------------------------------------------------------------------

    def jump(self, label: str, *, when: Condition | None = None) -> Self:
        """``jmp label`` or ``jCC label``, always with 32 bits of displacement."""
        self.raw(b"\xe9" if when is None else bytes([0x0F, 0x80 | _CONDITIONS[when]]))
        self._jumps.append((len(self._bytes), label))
        return self.raw(b"\0\0\0\0")

    def mov(self, register: Register, value: int) -> Self:
        """``movabs $value, %register`` with all 64 bits."""
        number = _REGISTERS.index(register)
        opcode = bytes([0x48 | number >> 3, 0xB8 | number & 7])
        return self.raw(opcode + (value & (1 << 64) - 1).to_bytes(8, "little"))

    def copy(self, *, to: Register, source: Register) -> Self:
        """``mov %source, %to``."""
        into, out = _REGISTERS.index(to), _REGISTERS.index(source)
        return self.raw(bytes([0x48 | out >> 3 << 2 | into >> 3, 0x89, 0xC0 | (out & 7) << 3 | into & 7]))

    def load(self, to: Register, base: Register, displacement: int = 0, *, wide: bool = True) -> Self:
        """``mov displacement(%base), %to``: 64 bits, or 32 with ``wide=False``."""
        return self._memory(0x8B, to, base, displacement, wide=wide)

    def store(self, base: Register, displacement: int, source: Register, *, wide: bool = True) -> Self:
        """``mov %source, displacement(%base)``: 64 bits, or 32 with ``wide=False``."""
        return self._memory(0x89, source, base, displacement, wide=wide)

    def add(self, register: Register, value: int) -> Self:
        """``add $value, %register`` with a sign-extended 32-bit immediate."""
        number = _REGISTERS.index(register)
        return self.raw(bytes([0x48 | number >> 3, 0x81, 0xC0 | number & 7]) + _signed32(value))

    def compare(self, left: Register, right: Register) -> Self:
        """``cmp %right, %left``."""
        one, two = _REGISTERS.index(left), _REGISTERS.index(right)
        return self.raw(bytes([0x48 | two >> 3 << 2 | one >> 3, 0x39, 0xC0 | (two & 7) << 3 | one & 7]))

    def test(self, register: Register) -> Self:
        """``test %register, %register``."""
        number = _REGISTERS.index(register)
        return self.raw(bytes([0x48 | number >> 3 << 2 | number >> 3, 0x85, 0xC0 | (number & 7) << 3 | number & 7]))

    def lea(self, register: Register, target: Target, addend: int = 0) -> Self:
        """``lea target+addend(%rip), %register``."""
        number = _REGISTERS.index(register)
        return self.raw(bytes([0x48 | number >> 3 << 2, 0x8D, 5 | (number & 7) << 3])).fix(target, addend - 4)

    def push(self, register: Register) -> Self:
        """``push %register``."""
        return self._stack(0x50, register)

    def pop(self, register: Register) -> Self:
        """``pop %register``."""
        return self._stack(0x58, register)

    def syscall(self) -> Self:
        """``syscall`` (for programs in dom0, not for payloads)."""
        return self.raw(b"\x0f\x05")

    def ud2(self) -> Self:
        """``ud2``, which Xen takes for a bug frame."""
        return self.raw(b"\x0f\x0b")

    def fix(self, target: Target, addend: int) -> Self:
        """Four bytes relative to themselves, to be filled by a relocation (R_X86_64_PC32)."""
        return self.fixup(target, R_X86_64_PC32, addend).raw(b"\0\0\0\0")

    def _compare_eax(self, value: int) -> Self:
        return self.raw(b"\x83\xf8" + value.to_bytes(1, "little", signed=True))  # cmp $value, %eax

    def _aimed(self, jump: bytes, distance: int) -> bytes:
        return _signed32(distance - len(jump))

    def _stack(self, opcode: int, register: Register) -> Self:
        number = _REGISTERS.index(register)
        return self.raw((b"\x41" if number > 7 else b"") + bytes([opcode | number & 7]))

    def _memory(self, opcode: int, register: Register, base: Register, displacement: int, *, wide: bool) -> Self:
        one, two = _REGISTERS.index(register), _REGISTERS.index(base)
        if two & 7 == 4:
            raise UsageError(f"%{base} as a base needs a SIB byte, which this assembler does not emit")
        prefix = (0x48 if wide else 0x40) | one >> 3 << 2 | two >> 3
        return self.raw(bytes([prefix, opcode, 0x80 | (one & 7) << 3 | two & 7]) + _signed32(displacement))


def _signed32(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


def branch(source: int, target: int) -> bytes:
    """``jmp target`` as it stands at the address ``source``."""
    return b"\xe9" + _signed32(target - source - 5)


def keeps_state_apart(apply: bytes) -> bool:
    """Whether ``arch_livepatch_apply`` keeps its state outside ``.livepatch.funcs``.

    Where it does not, applying a function clears ``patch_offset``, byte 65 of ``struct livepatch_func``, by
    ``movb $0, 65(%register)``.
    """
    return re.search(rb"\xc6[\x40-\x47]\x41\x00", apply) is None
