"""A static Linux program of less than a kilobyte that makes raw hypercalls from dom0, and the script it reads.

Xen's tools check, wait and retry on their own; a test of the hypercall interface must be able to send exactly what it
wants (a wrong padding, a time limit of 1 ns) and to repeat actions as fast as Xen goes. The program knows nothing of
live patching: it reads a script into a fixed buffer, executes its steps, and writes the buffer back. The buffer is
memory of /dev/xen/hypercall, which the kernel never moves (what libxencall uses, too).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from xentests.errors import LabError, UsageError
from xentests.payload import elf, runner_code
from xentests.payload.code import Code
from xentests.payload.runner_code import BASE, BUFFER_SIZE, HEADER, STEP, Op

_TEXT = 0x40_0000
_ASSEMBLERS: Mapping[str, tuple[int, Callable[[int, int], Code]]] = {
    "amd64": (elf.EM_X86_64, runner_code.amd64),
    "arm64": (elf.EM_AARCH64, runner_code.arm64),
}


class Script:
    """Steps and data for one run, at most ``room`` steps. ``data`` returns addresses valid inside the program."""

    def __init__(self, room: int = 60) -> None:
        self.steps: list[tuple[int, tuple[int, ...]]] = []
        self.data_at = HEADER.size + (room + 1) * STEP.size
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
        return self._add(Op.HYPERCALL, number, *arguments)

    def jump_if_equal(self, address: int, value: int, step: int) -> int:
        """Go to ``step`` when the 32 bits at ``address`` are ``value``."""
        return self._add(Op.JUMP_IF_EQUAL, address, value & 0xFFFFFFFF, self.address_of(step))

    def count_down(self, count: int, step: int) -> int:
        """Go to ``step`` until this step has been reached ``count`` times."""
        return self._add(Op.COUNT_DOWN, count, 0, self.address_of(step))

    def end(self) -> int:
        """End the run here. The end of the script is one, too."""
        return self._add(Op.END)

    def address_of(self, step: int) -> int:
        """The address of a step: for jumps, also forward ones."""
        return BASE + HEADER.size + step * STEP.size

    def result_at(self, step: int) -> int:
        """The address of a hypercall step's result, for jumps on it."""
        return self.address_of(step) + STEP.size - 8

    def encode(self) -> bytes:
        """What the program reads from its standard input."""
        self._add(Op.END)
        steps = b"".join(STEP.pack(op, *arguments, 0) for op, arguments in self.steps)
        if HEADER.size + len(steps) > self.data_at:
            raise UsageError(
                f"a hypercall script of {len(self.steps) - 1} steps; it was made with room for {self._room}"
            )
        size = self.data_at + len(self._data)
        return (HEADER.pack(size, 0) + steps).ljust(self.data_at, b"\0") + bytes(self._data)

    def _add(self, op: Op, *arguments: int) -> int:
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
        return int(STEP.unpack_from(self._content, HEADER.size + step * STEP.size)[7])

    def left(self, step: int) -> int:
        """How often a :meth:`Script.count_down` step would still have jumped back."""
        return int(STEP.unpack_from(self._content, HEADER.size + step * STEP.size)[1])

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address that :meth:`Script.data` gave."""
        return self._content[address - BASE : address - BASE + size]


def program(arch: str, *, privcmd: str = "/dev/xen/privcmd", memory: str = "/dev/xen/hypercall") -> bytes:
    """The program as an ELF file for Linux on ``amd64`` or ``arm64``.

    Exit codes: 0; 2 and 3: a device is missing; 4: no memory.

    Selftests name other devices, so that the program can run where there is no Xen.
    """
    machine, assemble = _ASSEMBLERS[arch]
    head = 64 + 56
    names_at = _TEXT + head + len(assemble(0, 0))
    code = assemble(names_at, names_at + len(privcmd) + 1)
    content = code.content + f"{privcmd}\0{memory}\0".encode()
    size = head + len(content)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _TEXT + head, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _TEXT, _TEXT, size, size, 0x1000)
    return header + segment + content
