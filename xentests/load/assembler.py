"""The same two dozen instructions for x86-64 and 64-bit Arm, so that a program is written once and runs on both.

Not a general assembler: registers have the names below, constants are at most 64 bits, and a label is a label. Values
are 64 bits and signed where they are compared. A hypercall spoils ``a`` to ``d`` and no other register. Sources: Intel
SDM volume 2; Arm ARM, C6.2; xen/include/public/arch-x86/xen-x86_64.h and arch-arm.h (how a hypercall is made).
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

from xentests.errors import UsageError

Register = Literal["a", "b", "c", "d", "base", "count", "skew", "last", "next", "end", "at"]
Condition = Literal["==", "!=", "<", ">="]


class Assembler(ABC):
    """Machine code under construction; methods append and return the object, so that calls can be chained."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._references: list[tuple[int, str]] = []

    @property
    def content(self) -> bytes:
        """The bytes, with every label resolved. UsageError for one that was never placed."""
        done = bytearray(self._code)
        for place, label in self._references:
            if label not in self._labels:
                raise UsageError(f"the label {label!r} was never placed")
            self._resolve(done, place, self._labels[label])
        return bytes(done)

    def label(self, name: str) -> Self:
        """Name this place."""
        self._labels[name] = len(self._code)
        return self

    def _refer(self, label: str) -> None:
        self._references.append((len(self._code), label))

    @abstractmethod
    def _resolve(self, code: bytearray, place: int, target: int) -> None:
        """Have the instruction that ends or begins at ``place`` lead to ``target``."""

    @abstractmethod
    def address(self, to: Register, label: str) -> Self:
        """Where a label is when the program runs."""

    @abstractmethod
    def const(self, to: Register, value: int) -> Self:
        """A number."""

    @abstractmethod
    def copy(self, to: Register, source: Register) -> Self:
        """``to = source``."""

    @abstractmethod
    def load(self, to: Register, base: Register, offset: int, *, size: int = 8) -> Self:
        """8, 4 or 1 bytes of memory, without a sign."""

    @abstractmethod
    def store(self, base: Register, offset: int, source: Register, *, size: int = 8) -> Self:
        """8, 4 or 1 bytes into memory."""

    @abstractmethod
    def add(self, to: Register, source: Register) -> Self:
        """``to += source``."""

    @abstractmethod
    def sub(self, to: Register, source: Register) -> Self:
        """``to -= source``."""

    @abstractmethod
    def shift(self, to: Register, bits: int) -> Self:
        """To the left; to the right (zeros come in) where negative."""

    @abstractmethod
    def jump(self, label: str) -> Self:
        """Go there."""

    @abstractmethod
    def branch(self, label: str, left: Register, condition: Condition, right: Register) -> Self:
        """Go there if that holds."""

    @abstractmethod
    def hypercall(self, number: int, *arguments: int | Register) -> Self:
        """Make a hypercall; its answer is in ``a``. Arguments: numbers, ``d``, or registers that it does not spoil."""

    @abstractmethod
    def now(self, to: Register) -> Self:
        """The time counter in ns; spoils ``a`` and ``d``."""

    @abstractmethod
    def work(self, instructions: int) -> Self:
        """So many instructions that do nothing; spoils ``d``."""


class X86(Assembler):
    """A PV guest's kernel on x86-64. The counter is the TSC, which under QEMU's instruction counting ticks in ns."""

    _NUMBERS: ClassVar[dict[Register, int]] = {
        "a": 0, "b": 1, "c": 9, "d": 2,
        "base": 5, "count": 3, "skew": 13, "last": 14, "next": 15, "end": 12, "at": 8,
    }  # fmt: skip
    _ARGUMENTS = (7, 6, 2, 10)  # rdi, rsi, rdx, r10

    def take_start(self, to: Register) -> Self:
        """The address of the start info page, which a PV guest has in RSI at first."""
        return self._two(0x89, 6, self._NUMBERS[to])

    def _resolve(self, code: bytearray, place: int, target: int) -> None:
        code[place - 4 : place] = struct.pack("<i", target - place)

    def _two(self, opcode: int, register: int, other: int) -> Self:
        self._code += bytes([0x48 | register >> 3 << 2 | other >> 3, opcode, 0xC0 | (register & 7) << 3 | other & 7])
        return self

    def _memory(self, opcode: int, register: int, base: int, offset: int, *, wide: bool) -> Self:
        sib = b"\x24" if base & 7 == 4 else b""
        prefix = (0x48 if wide else 0x40) | register >> 3 << 2 | base >> 3
        self._code += bytes([prefix, opcode, 0x80 | (register & 7) << 3 | base & 7]) + sib + struct.pack("<i", offset)
        return self

    def _move(self, register: int, value: int) -> None:
        self._code += bytes([0x48 | register >> 3, 0xB8 | register & 7]) + struct.pack("<Q", value & (1 << 64) - 1)

    def address(self, to: Register, label: str) -> Self:
        number = self._NUMBERS[to]
        self._code += bytes([0x48 | number >> 3 << 2, 0x8D, 5 | (number & 7) << 3]) + bytes(4)  # lea label(%rip)
        self._refer(label)
        return self

    def const(self, to: Register, value: int) -> Self:
        self._move(self._NUMBERS[to], value)
        return self

    def copy(self, to: Register, source: Register) -> Self:
        return self._two(0x89, self._NUMBERS[source], self._NUMBERS[to])

    def load(self, to: Register, base: Register, offset: int, *, size: int = 8) -> Self:
        if size == 1:
            return self.const(to, 0)._memory(0x8A, self._NUMBERS[to], self._NUMBERS[base], offset, wide=False)
        return self._memory(0x8B, self._NUMBERS[to], self._NUMBERS[base], offset, wide=size == 8)

    def store(self, base: Register, offset: int, source: Register, *, size: int = 8) -> Self:
        opcode = 0x88 if size == 1 else 0x89
        return self._memory(opcode, self._NUMBERS[source], self._NUMBERS[base], offset, wide=size == 8)

    def add(self, to: Register, source: Register) -> Self:
        return self._two(0x01, self._NUMBERS[source], self._NUMBERS[to])

    def sub(self, to: Register, source: Register) -> Self:
        return self._two(0x29, self._NUMBERS[source], self._NUMBERS[to])

    def shift(self, to: Register, bits: int) -> Self:
        self._two(0xC1, 4 if bits > 0 else 5, self._NUMBERS[to])
        self._code.append(abs(bits))
        return self

    def jump(self, label: str) -> Self:
        self._code += b"\xe9" + bytes(4)
        self._refer(label)
        return self

    def branch(self, label: str, left: Register, condition: Condition, right: Register) -> Self:
        self._two(0x39, self._NUMBERS[right], self._NUMBERS[left])  # cmp
        self._code += bytes([0x0F, {"==": 0x84, "!=": 0x85, "<": 0x8C, ">=": 0x8D}[condition]]) + bytes(4)
        self._refer(label)
        return self

    def hypercall(self, number: int, *arguments: int | Register) -> Self:
        for register, value in zip(self._ARGUMENTS, arguments, strict=False):
            if isinstance(value, int):
                self._move(register, value)
            else:
                self._two(0x89, self._NUMBERS[value], register)
        self._move(0, number)
        self._code += b"\x0f\x05"  # syscall: to Xen, from a PV guest's kernel
        return self

    def now(self, to: Register) -> Self:
        self._code += b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0"  # rdtsc; shl $32, %rdx; or %rdx, %rax
        return self if to == "a" else self.copy(to, "a")

    def work(self, instructions: int) -> Self:
        self._code += b"\x48\xff\xc2" * instructions  # inc %rdx
        return self


class Arm64(Assembler):
    """An arm64 guest's kernel with its MMU off. The counter is CNTPCT_EL0 of a Cortex-A57 in QEMU: 62.5 MHz.

    Xen's traces are in its ticks, too; CNTVCT_EL0 begins anew with every guest.
    """

    _NUMBERS: ClassVar[dict[Register, int]] = {
        "a": 0, "b": 9, "c": 10, "d": 11,
        "base": 19, "count": 20, "skew": 21, "last": 22, "next": 23, "end": 24, "at": 25,
    }  # fmt: skip
    _TICK_BITS = 4  # 16 ns

    def _word(self, value: int) -> Self:
        self._code += struct.pack("<I", value)
        return self

    def _resolve(self, code: bytearray, place: int, target: int) -> None:
        (word,) = struct.unpack_from("<I", code, place)
        distance = target - place
        if word >> 26 == 5:  # b
            word |= distance >> 2 & 0x3FFFFFF
        elif word >> 24 == 0x54:  # b.cond
            word |= (distance >> 2 & 0x7FFFF) << 5
        else:  # adr
            word |= (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5
        struct.pack_into("<I", code, place, word)

    def _move(self, register: int, value: int) -> None:
        value &= (1 << 64) - 1
        self._word(0xD2800000 | (value & 0xFFFF) << 5 | register)  # movz
        for part in range(1, 4):
            if piece := value >> 16 * part & 0xFFFF:
                self._word(0xF2800000 | part << 21 | piece << 5 | register)  # movk

    def address(self, to: Register, label: str) -> Self:
        self._refer(label)
        return self._word(0x10000000 | self._NUMBERS[to])

    def const(self, to: Register, value: int) -> Self:
        self._move(self._NUMBERS[to], value)
        return self

    def copy(self, to: Register, source: Register) -> Self:
        return self._word(0xAA0003E0 | self._NUMBERS[source] << 16 | self._NUMBERS[to])

    def _memory(self, opcode: int, size: int, register: Register, base: Register, offset: int) -> Self:
        if offset % size or not 0 <= offset // size < 4096:
            raise UsageError(f"offset {offset}: a multiple of {size} below {4096 * size}")
        size_bits = {1: 0, 4: 2, 8: 3}[size] << 30
        return self._word(
            opcode | size_bits | offset // size << 10 | self._NUMBERS[base] << 5 | self._NUMBERS[register]
        )

    def load(self, to: Register, base: Register, offset: int, *, size: int = 8) -> Self:
        return self._memory(0x39400000, size, to, base, offset)

    def store(self, base: Register, offset: int, source: Register, *, size: int = 8) -> Self:
        return self._memory(0x39000000, size, source, base, offset)

    def add(self, to: Register, source: Register) -> Self:
        number = self._NUMBERS[to]
        return self._word(0x8B000000 | self._NUMBERS[source] << 16 | number << 5 | number)

    def sub(self, to: Register, source: Register) -> Self:
        number = self._NUMBERS[to]
        return self._word(0xCB000000 | self._NUMBERS[source] << 16 | number << 5 | number)

    def shift(self, to: Register, bits: int) -> Self:
        number = self._NUMBERS[to]
        rotate, last = (64 - bits, 63 - bits) if bits > 0 else (-bits, 63)
        return self._word(0xD3400000 | rotate << 16 | last << 10 | number << 5 | number)  # ubfm

    def jump(self, label: str) -> Self:
        self._refer(label)
        return self._word(0x14000000)

    def branch(self, label: str, left: Register, condition: Condition, right: Register) -> Self:
        self._word(0xEB00001F | self._NUMBERS[right] << 16 | self._NUMBERS[left] << 5)  # cmp
        self._refer(label)
        return self._word(0x54000000 | {"==": 0, "!=": 1, ">=": 10, "<": 11}[condition])

    def hypercall(self, number: int, *arguments: int | Register) -> Self:
        for register, value in enumerate(arguments):
            if isinstance(value, int):
                self._move(register, value)
            else:
                self._word(0xAA0003E0 | self._NUMBERS[value] << 16 | register)
        self._move(16, number)
        return self._word(0xD4000002 | 0xEA1 << 5)  # hvc

    def now(self, to: Register) -> Self:
        number = self._NUMBERS[to]
        return self._word(0xD53BE020 | number).shift(to, self._TICK_BITS)  # mrs CNTPCT_EL0

    def work(self, instructions: int) -> Self:
        for _ in range(instructions):
            self._word(0x91000400 | 11 << 5 | 11)  # add x11, x11, #1
        return self
