"""The hypercall runner's machine code: one loop over the steps of a script, for either architecture.

What the program is for is told in ``runner``; how a script lies in memory is told here, since the code reads it.
System call numbers are those of Linux (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from xentests.payload import arm64 as a64
from xentests.payload import x86

BASE = 0x2000_0000
"""Where the buffer lies in the program's memory: pointers in a script are absolute."""
BUFFER_SIZE = 1 << 20
STEP = struct.Struct("<q6Qq")
HEADER = struct.Struct("<QQ")
_IOCTL_PRIVCMD_HYPERCALL = 0x305000  # _IOC(none, 'P', 0, 48); linux/include/uapi/xen/privcmd.h
_SHARED_FIXED, _READ_WRITE = 0x11, 3
_CHUNK = 1 << 16
_AT_FDCWD = -100


class Op(IntEnum):
    """What a step does."""

    END = 0
    HYPERCALL = 1
    JUMP_IF_EQUAL = 2
    COUNT_DOWN = 3


@dataclass(frozen=True)
class _Calls:
    open: int
    read: int
    write: int
    mmap: int
    ioctl: int
    exit: int


_AMD64 = _Calls(open=2, read=0, write=1, mmap=9, ioctl=16, exit=60)
_ARM64 = _Calls(open=56, read=63, write=64, mmap=222, ioctl=29, exit=93)  # "open" is openat
_ARM64_SCHED_SETAFFINITY = 122


def amd64(privcmd_at: int, memory_at: int) -> x86.Code:
    """For x86-64. The addresses change immediates only, never the length.

    Lasting registers: rbx privcmd, rbp step, r13 size.
    """
    code = x86.Code()
    _call_amd64(code, _AMD64.open, privcmd_at, 2)
    code.copy(to="rbx", source="rax").test("rax").jump("no-privcmd", when="s")
    _call_amd64(code, _AMD64.open, memory_at, 2)
    code.copy(to="r8", source="rax").test("rax").jump("no-memory-device", when="s")
    code.mov("r10", 0x11).mov("r9", 0)  # MAP_SHARED | MAP_FIXED, offset 0
    _call_amd64(code, _AMD64.mmap, BASE, BUFFER_SIZE, 3)
    code.mov("rdx", BASE).compare("rax", "rdx").jump("no-memory", when="ne")

    code.mov("r13", BASE).label("read")
    code.mov("rdi", 0).copy(to="rsi", source="r13").mov("rdx", 1 << 16).mov("rax", _AMD64.read).syscall()
    code.test("rax").jump("read-all", when="le")
    code.raw(b"\x49\x01\xc5").jump("read")  # add %rax, %r13
    code.label("read-all").mov("rbp", BASE + HEADER.size)

    code.label("next").load("rax", "rbp")
    for op, label in ((Op.HYPERCALL, "hypercall"), (Op.JUMP_IF_EQUAL, "if-equal"), (Op.COUNT_DOWN, "count")):
        code.mov("rdx", op).compare("rax", "rdx").jump(label, when="e")
    code.mov("rsi", BASE).load("rdx", "rsi").mov("rdi", 1).mov("rax", _AMD64.write).syscall()
    _exit_amd64(code, 0)

    code.label("hypercall").copy(to="rdi", source="rbx").mov("rsi", _IOCTL_PRIVCMD_HYPERCALL)
    code.copy(to="rdx", source="rbp").add("rdx", 8).mov("rax", _AMD64.ioctl).syscall().store("rbp", 56, "rax")
    code.label("advance").add("rbp", STEP.size).jump("next")

    code.label("if-equal").load("rdx", "rbp", 8).load("rax", "rdx", 0, wide=False).load("rdx", "rbp", 16)
    code.compare("rax", "rdx").jump("advance", when="ne").label("go").load("rbp", "rbp", 24).jump("next")

    code.label("count").load("rax", "rbp", 8).add("rax", -1).store("rbp", 8, "rax")
    code.test("rax").jump("go", when="g").jump("advance")
    for label, status in (("no-privcmd", 2), ("no-memory-device", 3), ("no-memory", 4)):
        code.label(label)
        _exit_amd64(code, status)
    return code


def _call_amd64(code: x86.Code, number: int, *arguments: int) -> None:
    registers: tuple[x86.Register, ...] = ("rdi", "rsi", "rdx")
    for register, value in zip(registers, arguments, strict=False):
        code.mov(register, value)
    code.mov("rax", number).syscall()


def _exit_amd64(code: x86.Code, status: int) -> None:
    code.mov("rdi", status).mov("rax", _AMD64.exit).syscall()


def arm64(privcmd_at: int, memory_at: int) -> a64.Code:
    """For AArch64, as above. Lasting registers: x19 privcmd, x20 step, x21 size.

    It stays on one of dom0's vCPUs: what pins a vCPU (SCHEDOP_pin_override) must be undone by the same.
    """
    code = a64.Code().words(0xD10043FF).mov(9, 1).words(0xF90003E9)  # sub sp, sp, #16; str x9, [sp]
    code.mov(0, 0).mov(1, 8).words(0x910003E2).mov(8, _ARM64_SCHED_SETAFFINITY).supervisor_call()  # mov x2, sp
    _call_arm64(code, _ARM64.open, _AT_FDCWD, privcmd_at, 2)
    code.copy(to=19, source=0).compare_number(0, 0).go_when("mi", "no-privcmd")
    _call_arm64(code, _ARM64.open, _AT_FDCWD, memory_at, 2)
    code.copy(to=4, source=0).compare_number(0, 0).go_when("mi", "no-memory-device")
    code.mov(3, _SHARED_FIXED).mov(5, 0)
    _call_arm64(code, _ARM64.mmap, BASE, BUFFER_SIZE, _READ_WRITE)
    code.mov(2, BASE).compare(0, 2).go_when("ne", "no-memory")

    code.mov(21, BASE).label("read").copy(to=1, source=21)
    code.mov(0, 0).mov(2, _CHUNK).mov(8, _ARM64.read).supervisor_call()
    code.compare_number(0, 0).go_when("le", "read-all").add_register(21, 0).go("read")
    code.label("read-all").mov(20, BASE + HEADER.size)

    code.label("next").load(0, 20)
    for op, label in ((Op.HYPERCALL, "hypercall"), (Op.JUMP_IF_EQUAL, "if-equal"), (Op.COUNT_DOWN, "count")):
        code.compare_number(0, op).go_when("eq", label)
    code.mov(1, BASE).load(2, 1).mov(0, 1).mov(8, _ARM64.write).supervisor_call()
    _exit_arm64(code, 0)

    code.label("hypercall").copy(to=0, source=19).mov(1, _IOCTL_PRIVCMD_HYPERCALL)
    code.copy(to=2, source=20).add(2, 8).mov(8, _ARM64.ioctl).supervisor_call().store(0, 20, 56)
    code.label("advance").add(20, STEP.size).go("next")

    code.label("if-equal").load(2, 20, 8).load(0, 2, wide=False).load(2, 20, 16)
    code.compare(0, 2).go_when("ne", "advance").label("go").load(20, 20, 24).go("next")

    code.label("count").load(0, 20, 8).add(0, -1).store(0, 20, 8)
    code.compare_number(0, 0).go_when("gt", "go").go("advance")
    for label, status in (("no-privcmd", 2), ("no-memory-device", 3), ("no-memory", 4)):
        code.label(label)
        _exit_arm64(code, status)
    return code


def _call_arm64(code: a64.Code, number: int, *arguments: int) -> None:
    for register, value in enumerate(arguments):
        code.mov(register, value)
    code.mov(8, number).supervisor_call()


def _exit_arm64(code: a64.Code, status: int) -> None:
    code.mov(0, status).mov(8, _ARM64.exit).supervisor_call()
