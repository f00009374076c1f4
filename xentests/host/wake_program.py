"""The program that wakes a clone: some system calls in a static ELF file of half a kilobyte, made here for either arch.

It is on the way of every test: a shell with `date` and `cat` cost 245 ms of an emulated CPU that has everything yet to
translate, this costs 60. And no program in dom0 can make the kernel's random generator forget its old key.

Reads from stdin what ``request`` packs; sets the clock, adds the seed, has the generator reseed itself, and visits
physical CPUs, if it is to. The exit code has a bit for each call that failed, in the order of ``CALLS``. Sources:
clock_settime(2), random(4), elf(5), the system call tables of Linux; Xen's public/sched.h for what SCHEDOP_pin_override
and SCHEDOP_poll take.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CALLS = (
    "read", "clock_settime", "open", "RNDADDENTROPY", "RNDRESEEDCRNG", "open privcmd", "SCHEDOP_pin_override",
    "SCHEDOP_poll",
)  # fmt: skip
SEED_BYTES = 64

_TIME = struct.Struct("<qq")  # struct timespec
_POOL = struct.Struct("<ii")  # struct rand_pool_info: bits of entropy, bytes that follow
_REQUEST = _TIME.size + _POOL.size + SEED_BYTES
_STACK = 256
_BASE = 0x400000
_HEADERS = 64 + 56
_CLOCK_REALTIME = 0
_AT_FDCWD = -100
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_IOCTL_PRIVCMD_HYPERCALL = 0x305000
_HYPERCALL = struct.Struct("<6Q")  # struct privcmd_hypercall: number, five arguments
_SCHED_OP, _POLL, _PIN_OVERRIDE = 29, 3, 7
_SCHED_POLL = struct.Struct("<QI4xQ")  # struct sched_poll: ports, how many, when to give up in ns of Xen's time
_LONG_PAST = 1
_NO_PIN = -1
HERE = -2
_PRIVCMD = "/dev/xen/privcmd"

Good = Literal["request", "zero", "not negative"]


@dataclass(frozen=True)
class _Call:
    """One system call: its name in ``CALLS``, its number, its arguments, and which result is good.

    An argument is a number, ``@N`` (byte N of the buffer on the stack), ``+N`` (byte N of the data behind the code) or
    ``fd`` (what ``open`` returned last).
    """

    name: str
    number: int
    arguments: tuple[int | str, ...]
    good: Good = "zero"
    keeps_fd: bool = False


def request(now_s: float, seed: bytes) -> bytes:
    """What the program reads: the time since the epoch, and ``SEED_BYTES`` of randomness."""
    whole = int(now_s)
    head = _TIME.pack(whole, int((now_s - whole) * 1e9)) + _POOL.pack(8 * SEED_BYTES, SEED_BYTES)
    return head + seed[:SEED_BYTES].ljust(SEED_BYTES, b"\0")


def failed_calls(exit_code: int) -> list[str]:
    """The names of the calls that an exit code says have failed."""
    return [name for bit, name in enumerate(CALLS) if exit_code & 1 << bit]


def program(
    arch: str,
    *,
    visit: Sequence[int] = (),
    clock: int = _CLOCK_REALTIME,
    device: str = "/dev/urandom",
    privcmd: str = _PRIVCMD,
) -> bytes:
    """The ELF file for ``amd64`` or ``arm64``. Selftests give a clock that there is not and harmless devices.

    ``visit``: the physical CPUs on which it has Xen set the timer, one after the other, before it lets Xen choose
    again; ``HERE`` stands for that on which it runs.
    """
    made = _Program(arch)
    read, settime, ioctl = (0, 227, 16) if made.amd64 else (63, 112, 29)
    made.call("read", read, (0, "@0", _REQUEST), good="request")
    made.call("clock_settime", settime, (clock, "@0"))
    made.open("open", device)
    made.call("RNDADDENTROPY", ioctl, ("fd", _RNDADDENTROPY, f"@{_TIME.size}"))
    made.call("RNDRESEEDCRNG", ioctl, ("fd", _RNDRESEEDCRNG, 0))
    if visit:
        made.open("open privcmd", privcmd, writable=True)
        # Xen refuses another pin before the last one was undone (vcpu_temporary_affinity() in common/sched/core.c).
        for pcpu in visit:
            if pcpu != HERE:
                made.pin(pcpu)
            made.past_timer()
            if pcpu != HERE:
                made.pin(_NO_PIN)
    return made.elf()


def rearming(arch: str, *, privcmd: str = _PRIVCMD) -> bytes:
    """The ELF file of a program that has Xen set the timer of the CPU that it runs on, and does nothing else."""
    made = _Program(arch)
    made.open("open privcmd", privcmd, writable=True)
    made.past_timer()
    return made.elf()


class _Program:
    """System calls that are to be made, one after the other."""

    def __init__(self, arch: str) -> None:
        self.amd64 = arch == "amd64"
        self._data = _Data()
        self._calls: list[_Call] = []

    def call(self, name: str, number: int, arguments: tuple[int | str, ...], *, good: Good = "zero") -> None:
        """Any system call."""
        self._calls.append(_Call(name, number, arguments, good))

    def open(self, name: str, path: str, *, writable: bool = False) -> None:
        """Open a file, to be ``fd`` in what follows."""
        words: tuple[int | str, ...] = (f"+{self._data.add(path.encode() + bytes(1))}", 2 if writable else 0)
        number, where = (2, words) if self.amd64 else (56, (_AT_FDCWD, *words))  # arm64 has openat only
        self._calls.append(_Call(name, number, where, good="not negative", keeps_fd=True))

    def hypercall(self, name: str, operation: int, argument: bytes) -> None:
        """A hypercall of the scheduler's."""
        at = self._data.add(argument)
        # Its second argument is an address, known once the code is.
        about = self._data.add(_HYPERCALL.pack(_SCHED_OP, operation, at, 0, 0, 0), address_at=16)
        self.call(name, 16 if self.amd64 else 29, ("fd", _IOCTL_PRIVCMD_HYPERCALL, f"+{about}"))

    def pin(self, pcpu: int) -> None:
        """Move to a physical CPU and stay there, or, without one, go where Xen likes."""
        self.hypercall("SCHEDOP_pin_override", _PIN_OVERRIDE, struct.pack("<i", pcpu))

    def past_timer(self) -> None:
        """Wait until a moment that is long past: no timer of this CPU is earlier, so Xen looks at all and sets one."""
        self.hypercall("SCHEDOP_poll", _POLL, _SCHED_POLL.pack(0, 0, _LONG_PAST))

    def elf(self) -> bytes:
        """The whole file."""
        assemble = _amd64 if self.amd64 else _arm64
        data_at = -(-(_BASE + _HEADERS + len(assemble(self._calls, 0))) // 8) * 8
        code = assemble(self._calls, data_at).ljust(data_at - _BASE - _HEADERS, b"\0") + self._data.content(data_at)
        size, machine = _HEADERS + len(code), 62 if self.amd64 else 183
        head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        head += struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)  # PT_LOAD, readable and executable
        return head + code


class _Data:
    """What stands behind the code: 8-aligned pieces, of which some hold the address of others."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._addresses: list[int] = []

    def add(self, piece: bytes, *, address_at: int | None = None) -> int:
        """Its offset. ``address_at``: where in it there is an offset that is to become an address."""
        self._bytes += bytes(-len(self._bytes) % 8)
        at = len(self._bytes)
        self._bytes += piece
        if address_at is not None:
            self._addresses.append(at + address_at)
        return at

    def content(self, base: int) -> bytes:
        """All of it, for a place in memory."""
        made = bytearray(self._bytes)
        for at in self._addresses:
            struct.pack_into("<Q", made, at, base + struct.unpack_from("<Q", made, at)[0])
        return bytes(made)


def _amd64(calls: Sequence[_Call], data_at: int) -> bytes:
    """rbx collects the bits, rbp keeps the descriptor; arguments in rdi, rsi, rdx, number and result in rax."""
    registers = (0xBF, 0xBE, 0xBA)  # mov $imm32, %edi / %esi / %edx
    from_fd = b"\x89\xef"  # mov %ebp, %edi
    from_stack = {1: b"\x48\x8d\x74\x24", 2: b"\x48\x8d\x54\x24"}  # lea N(%rsp), %rsi / %rdx
    code = b"\x48\x81\xec" + struct.pack("<I", _STACK) + b"\x31\xdb"  # sub $256, %rsp; xor %ebx, %ebx
    for call in calls:
        bit = CALLS.index(call.name)
        for place, value in enumerate(call.arguments):
            if value == "fd":
                code += from_fd
            elif isinstance(value, str) and value.startswith("@"):
                code += from_stack[place] + bytes([int(value[1:])])
            else:
                number = data_at + int(value) if isinstance(value, str) else value
                code += bytes([registers[place]]) + struct.pack("<I", number)
        code += b"\xb8" + struct.pack("<I", call.number) + b"\x0f\x05"  # mov $number, %eax; syscall
        if call.keeps_fd:
            code += b"\x89\xc5"  # mov %eax, %ebp
        code += {
            "request": b"\x83\xf8" + bytes([_REQUEST]) + b"\x74\x03",  # cmp $request, %eax; je over the next
            "zero": b"\x85\xc0\x74\x03",  # test %eax, %eax; je
            "not negative": b"\x85\xc0\x79\x03",  # test %eax, %eax; jns
        }[call.good]
        code += b"\x80\xcb" + bytes([1 << bit])  # or $bit, %bl
    return code + b"\x89\xdf\xb8\x3c\0\0\0\x0f\x05"  # mov %ebx, %edi; mov $60, %eax; syscall


def _arm64(calls: Sequence[_Call], data_at: int) -> bytes:
    """x19 collects the bits, x20 keeps the descriptor; arguments in x0 to x2, number in x8, result in x0."""

    def mov(register: int, value: int) -> list[int]:
        if value < 0:
            return [0x92800000 | ~value << 5 | register]  # movn
        low, high = value & 0xFFFF, value >> 16
        return [0xD2800000 | low << 5 | register, 0xF2A00000 | high << 5 | register]  # movz; movk, lsl 16

    def add(target: int, source: int, value: int) -> int:
        return 0x91000000 | value << 10 | source << 5 | target

    words = [0xD1000000 | _STACK << 10 | 31 << 5 | 31, *mov(19, 0)]  # sub sp, sp, #256
    for call in calls:
        bit = CALLS.index(call.name)
        for place, value in enumerate(call.arguments):
            if value == "fd":
                words.append(0xAA0003E0 | 20 << 16 | place)  # mov xN, x20
            elif isinstance(value, str) and value.startswith("@"):
                words.append(add(place, 31, int(value[1:])))
            else:
                words += mov(place, data_at + int(value) if isinstance(value, str) else value)
        words += [*mov(8, call.number), 0xD4000001]  # svc #0
        if call.keeps_fd:
            words.append(0xAA0003F4)  # mov x20, x0
        words += {
            "request": [0xF100001F | _REQUEST << 10, 0x54000040],  # cmp x0, #request; b.eq over the next
            "zero": [0xB4000040],  # cbz x0
            "not negative": [0xB6F80040],  # tbz x0, #63
        }[call.good]
        words.append(add(19, 19, 1 << bit))
    words += [0xAA1303E0, *mov(8, 93), 0xD4000001]  # mov x0, x19; exit
    return struct.pack(f"<{len(words)}I", *words)
