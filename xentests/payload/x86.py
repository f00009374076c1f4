"""A very small x86-64 assembler: the two dozen instructions that payloads and the hypercall runner are made of.

Not a general assembler: each method emits exactly one encoding (Intel SDM volume 2). What a test needs beyond that is
given as bytes to :meth:`Code.raw`. Addresses of other things stay open as fixups, which become ELF relocations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from xentests.errors import UsageError
from xentests.payload.elf import Place

Target = str | Place
"""What an instruction refers to: a symbol of the hypervisor or of a loaded payload, or a place in this payload."""

Register = Literal["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13"]
_REGISTERS: tuple[Register, ...] = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
)  # fmt: skip
Condition = Literal["e", "ne", "l", "g", "le", "s", "ns"]
_CONDITIONS: dict[Condition, int] = {"e": 4, "ne": 5, "s": 8, "ns": 9, "l": 12, "le": 14, "g": 15}

ENDBR64 = b"\xf3\x0f\x1e\xfa"
NOP = b"\x90"
MOV_EAX_IMM32 = 0xB8


@dataclass(frozen=True)
class Fixup:
    """Four bytes at ``offset`` that take ``target + addend - address of the four bytes``."""

    offset: int
    target: Target
    addend: int


class Code:
    """Machine code under construction. Methods append and return the object itself, so that calls can be chained."""

    def __init__(self, content: bytes = b"") -> None:
        self._bytes = bytearray(content)
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self.fixups: list[Fixup] = []

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def content(self) -> bytes:
        """The bytes with all jumps resolved. Raises :class:`UsageError` for a jump to a label that is nowhere."""
        done = bytearray(self._bytes)
        for offset, label in self._jumps:
            if label not in self._labels:
                raise UsageError(f"jump to the label {label!r}, which was never placed")
            done[offset : offset + 4] = _signed32(self._labels[label] - offset - 4)
        return bytes(done)

    def raw(self, content: bytes) -> Self:
        """Append bytes as they are."""
        self._bytes += content
        return self

    def append(self, other: Code) -> Self:
        """Append other code, which has no labels of its own, with its fixups."""
        base = len(self._bytes)
        self.fixups += [Fixup(base + fixup.offset, fixup.target, fixup.addend) for fixup in other.fixups]
        return self.raw(other.content)

    def label(self, name: str) -> Self:
        """Name this place for :meth:`jump`."""
        self._labels[name] = len(self._bytes)
        return self

    def offset_of(self, label: str) -> int:
        """The offset of a placed label, in bytes from the start."""
        return self._labels[label]

    def jump(self, label: str, *, when: Condition | None = None) -> Self:
        """``jmp label`` or ``jCC label``, always with 32 bits of displacement."""
        self.raw(b"\xe9" if when is None else bytes([0x0F, 0x80 | _CONDITIONS[when]]))
        self._jumps.append((len(self._bytes), label))
        return self.raw(b"\0\0\0\0")

    def ret(self) -> Self:
        """``ret``."""
        return self.raw(b"\xc3")

    def mov_eax(self, value: int) -> Self:
        """``mov $value, %eax``; negative values are two's complement, as an ``int`` of C is returned."""
        return self.raw(bytes([MOV_EAX_IMM32]) + (value & 0xFFFFFFFF).to_bytes(4, "little"))

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

    def load_eax(self, target: Target) -> Self:
        """``mov target(%rip), %eax``."""
        return self.raw(b"\x8b\x05").fix(target, -4)

    def store_imm32(self, target: Target, value: int) -> Self:
        """``movl $value, target(%rip)``."""
        return self.raw(b"\xc7\x05").fix(target, -8).raw((value & 0xFFFFFFFF).to_bytes(4, "little"))

    def increment32(self, target: Target) -> Self:
        """``incl target(%rip)``."""
        return self.raw(b"\xff\x05").fix(target, -4)

    def call(self, target: Target) -> Self:
        """``call target`` with the stack kept as the caller aligned it."""
        return self.raw(b"\xe8").fix(target, -4)

    def jump_to(self, target: Target) -> Self:
        """``jmp target``: a tail call."""
        return self.raw(b"\xe9").fix(target, -4)

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
        self.fixups.append(Fixup(len(self._bytes), target, addend))
        return self.raw(b"\0\0\0\0")

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


def returns(value: int) -> Code:
    """A function that returns an integer."""
    return Code().mov_eax(value).ret()


def returns_address(target: Target) -> Code:
    """A function that returns the address of something, e.g. of a string."""
    return Code().lea("rax", target).ret()
