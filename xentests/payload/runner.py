"""A static Linux program of some 700 bytes that makes raw hypercalls from dom0, and the script it reads.

Xen's tools check, wait and retry on their own; a test of the hypercall interface must be able to send exactly what it
wants (a wrong padding, a time limit of 1 ns) and to repeat actions as fast as Xen goes. The program knows nothing of
live patching: it reads a script into a fixed buffer, executes its steps, and writes the buffer back. The buffer is
memory of /dev/xen/hypercall, which the kernel never moves (what libxencall uses, too).
"""

from __future__ import annotations

import struct
from enum import IntEnum

from xentests.errors import LabError, UsageError
from xentests.payload.x86 import Code, Register

BASE = 0x2000_0000
"""Where the buffer lies in the program's memory: pointers in a script are absolute."""
BUFFER_SIZE = 1 << 20
_TEXT = 0x40_0000
_STEP = struct.Struct("<q6Qq")
_HEADER = struct.Struct("<QQ")
_IOCTL_PRIVCMD_HYPERCALL = 0x305000  # _IOC(none, 'P', 0, 48); linux/include/uapi/xen/privcmd.h
_OPEN, _READ, _WRITE, _MMAP, _IOCTL, _EXIT = 2, 0, 1, 9, 16, 60


class _Op(IntEnum):
    END = 0
    HYPERCALL = 1
    JUMP_IF_EQUAL = 2
    COUNT_DOWN = 3


class Script:
    """Steps and data for one run, at most ``room`` steps. ``data`` returns addresses valid inside the program."""

    def __init__(self, room: int = 60) -> None:
        self.steps: list[tuple[int, tuple[int, ...]]] = []
        self.data_at = _HEADER.size + (room + 1) * _STEP.size
        """Offset of the data in the buffer; the steps come before it."""
        self._room = room
        self._data = bytearray()

    def data(self, content: bytes) -> int:
        """Put bytes into the buffer, 8-aligned; their absolute address."""
        self._data += bytes(-len(self._data) % 8)
        address = BASE + self.data_at + len(self._data)
        self._data += content
        if self.data_at + len(self._data) > BUFFER_SIZE:
            raise UsageError(f"a hypercall script holds {BUFFER_SIZE - self.data_at} bytes of data, not more")
        return address

    def hypercall(self, number: int, *arguments: int) -> int:
        """A step that makes one hypercall; its index, for :meth:`Reply.result`."""
        return self._add(_Op.HYPERCALL, number, *arguments)

    def jump_if_equal(self, address: int, value: int, step: int) -> int:
        """Go to ``step`` when the 32 bits at ``address`` are ``value``."""
        return self._add(_Op.JUMP_IF_EQUAL, address, value & 0xFFFFFFFF, self.address_of(step))

    def count_down(self, count: int, step: int) -> int:
        """Go to ``step`` until this step has been reached ``count`` times."""
        return self._add(_Op.COUNT_DOWN, count, 0, self.address_of(step))

    def end(self) -> int:
        """End the run here. The end of the script is one, too."""
        return self._add(_Op.END)

    def address_of(self, step: int) -> int:
        """The address of a step: for jumps, also forward ones."""
        return BASE + _HEADER.size + step * _STEP.size

    def result_at(self, step: int) -> int:
        """The address of a hypercall step's result, for jumps on it."""
        return self.address_of(step) + _STEP.size - 8

    def encode(self) -> bytes:
        """What the program reads from its standard input."""
        self._add(_Op.END)
        steps = b"".join(_STEP.pack(op, *arguments, 0) for op, arguments in self.steps)
        if _HEADER.size + len(steps) > self.data_at:
            raise UsageError(
                f"a hypercall script of {len(self.steps) - 1} steps; it was made with room for {self._room}"
            )
        size = self.data_at + len(self._data)
        return (_HEADER.pack(size, 0) + steps).ljust(self.data_at, b"\0") + bytes(self._data)

    def _add(self, op: _Op, *arguments: int) -> int:
        words = tuple(value & (1 << 64) - 1 for value in arguments) + (0,) * (6 - len(arguments))
        self.steps.append((int(op), words))
        return len(self.steps) - 1


class Reply:
    """The buffer after the run."""

    def __init__(self, content: bytes, script: Script) -> None:
        if len(content) < script.data_at:
            raise LabError(f"the hypercall runner answered {len(content)} bytes instead of its whole buffer")
        self._content = content

    def result(self, step: int) -> int:
        """What a hypercall step returned last: 0 or more, or a negative errno; 0 when it was never reached."""
        return int(_STEP.unpack_from(self._content, _HEADER.size + step * _STEP.size)[7])

    def left(self, step: int) -> int:
        """How often a :meth:`Script.count_down` step would still have jumped back."""
        return int(_STEP.unpack_from(self._content, _HEADER.size + step * _STEP.size)[1])

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address that :meth:`Script.data` gave."""
        return self._content[address - BASE : address - BASE + size]


def program(*, privcmd: str = "/dev/xen/privcmd", memory: str = "/dev/xen/hypercall") -> bytes:
    """The program as an ELF file for Linux on x86-64. Exit codes: 0; 2 and 3: a device is missing; 4: no memory.

    Selftests name other devices, so that the program can run where there is no Xen.
    """
    head = 64 + 56
    names_at = _TEXT + head + len(_assemble(0, 0))
    code = _assemble(names_at, names_at + len(privcmd) + 1)
    content = code.content + f"{privcmd}\0{memory}\0".encode()
    size = head + len(content)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _TEXT + head, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _TEXT, _TEXT, size, size, 0x1000)
    return header + segment + content


def _assemble(privcmd_at: int, memory_at: int) -> Code:
    """The addresses change immediates only, never the length. Lasting registers: rbx privcmd, rbp step, r13 size."""
    code = Code()
    _call(code, _OPEN, privcmd_at, 2)
    code.copy(to="rbx", source="rax").test("rax").jump("no-privcmd", when="s")
    _call(code, _OPEN, memory_at, 2)
    code.copy(to="r8", source="rax").test("rax").jump("no-memory-device", when="s")
    code.mov("r10", 0x11).mov("r9", 0)  # MAP_SHARED | MAP_FIXED, offset 0
    _call(code, _MMAP, BASE, BUFFER_SIZE, 3)
    code.mov("rdx", BASE).compare("rax", "rdx").jump("no-memory", when="ne")

    code.mov("r13", BASE).label("read")
    code.mov("rdi", 0).copy(to="rsi", source="r13").mov("rdx", 1 << 16).mov("rax", _READ).syscall()
    code.test("rax").jump("read-all", when="le")
    code.raw(b"\x49\x01\xc5").jump("read")  # add %rax, %r13
    code.label("read-all").mov("rbp", BASE + _HEADER.size)

    code.label("next").load("rax", "rbp")
    for op, label in ((_Op.HYPERCALL, "hypercall"), (_Op.JUMP_IF_EQUAL, "if-equal"), (_Op.COUNT_DOWN, "count")):
        code.mov("rdx", op).compare("rax", "rdx").jump(label, when="e")
    code.mov("rsi", BASE).load("rdx", "rsi").mov("rdi", 1).mov("rax", _WRITE).syscall()
    _exit(code, 0)

    code.label("hypercall").copy(to="rdi", source="rbx").mov("rsi", _IOCTL_PRIVCMD_HYPERCALL)
    code.copy(to="rdx", source="rbp").add("rdx", 8).mov("rax", _IOCTL).syscall().store("rbp", 56, "rax")
    code.label("advance").add("rbp", _STEP.size).jump("next")

    code.label("if-equal").load("rdx", "rbp", 8).load("rax", "rdx", 0, wide=False).load("rdx", "rbp", 16)
    code.compare("rax", "rdx").jump("advance", when="ne").label("go").load("rbp", "rbp", 24).jump("next")

    code.label("count").load("rax", "rbp", 8).add("rax", -1).store("rbp", 8, "rax")
    code.test("rax").jump("go", when="g").jump("advance")
    for label, status in (("no-privcmd", 2), ("no-memory-device", 3), ("no-memory", 4)):
        code.label(label)
        _exit(code, status)
    return code


def _call(code: Code, number: int, *arguments: int) -> None:
    registers: tuple[Register, ...] = ("rdi", "rsi", "rdx")
    for register, value in zip(registers, arguments, strict=False):
        code.mov(register, value)
    code.mov("rax", number).syscall()


def _exit(code: Code, status: int) -> None:
    code.mov("rdi", status).mov("rax", _EXIT).syscall()
